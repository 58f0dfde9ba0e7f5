"""Guests that start from a saved state: booted, with the product in it, set up and rebooted.

Several scenarios share one. It has the packages of all of them, the most memory and the largest
region; services of packages that a scenario does not name are stopped and disabled when it starts.
What a saved state depends on is its name in the cache: see `key`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rekernel_lab import cache
from rekernel_lab.errors import LabError
from rekernel_lab.images import guestfiles
from rekernel_lab.progress import Progress
from rekernel_lab.run import text
from rekernel_lab.scenario import product, session
from rekernel_lab.scenario.assemble import Assembly
from rekernel_lab.scenario.scenario import Scenario
from rekernel_lab.scenario.session import Deadline, Session
from rekernel_lab.vm import netns, qemu, saved
from rekernel_lab.vm.qemu import Machine
from rekernel_lab.vm.saved import Saved

# What the guest's configuration was before `rekernel setup`: names and contents, and units.
BEFORE_SETUP = "/root/before-setup"
CONFIGURATION = (
    "find /etc /boot/grub /var/lib/rekernel -type f ! -name '*.cache' -print0 2>/dev/null"
    " | xargs -0 sha256sum; systemctl list-unit-files --no-legend"
)

# The units that packages of scenarios enable, as patterns of systemctl.
UNITS = {
    "nginx-light": ("nginx.service",),
    "php-fpm": ("php*-fpm.service", "phpsessionclean.timer"),
    "podman": ("netavark-dhcp-proxy.*",),
    "redis-server": ("redis-server.service",),
}

# Those that enable none.
NO_SERVICES = frozenset({"busybox-static", "crun", "libc6-dev", "libcriu2", "tcc"})

_PREPARE_S = 600.0


def shared(scenarios: Sequence[Scenario]) -> Scenario:
    """Return what a guest must be like to serve each of these scenarios.

    Raises LabError if they begin with different kernels.
    """
    if len({one.kernel_from for one in scenarios}) != 1:
        raise LabError("scenarios that begin with different kernels share no guest")
    return dataclasses.replace(
        scenarios[0],
        name="shared",
        packages=tuple(sorted({package for one in scenarios for package in one.packages})),
        memory_mib=max(one.memory_mib for one in scenarios),
        region_mib=max(one.region_mib for one in scenarios),
        disk_mib=max(one.disk_mib for one in scenarios),
    )


def left_out(scenario: Scenario, base: Scenario) -> list[str]:
    """Return patterns of the units that packages of `base` enable and those of a scenario don't."""
    others = set(base.packages) - set(scenario.packages)
    return sorted(unit for package in others for unit in UNITS.get(package, ()))


def prepare(
    assembly: Assembly, deb: Path, base: Scenario, cpus: int, progress: Progress, output: Path
) -> Saved:
    """Return the saved state of a guest like `base` with the package in it, set up.

    It is made if it is not there: that takes as long as for one scenario.
    """
    machine = Machine(assembly.accelerator, base.memory_mib, cpus, base.disk_mib)
    name = key(assembly, deb, machine, base.region_mib)
    with cache.building(saved.KIND, name) as scratch:
        if scratch:
            with session.opened(
                f"prepare-{os.getpid()}",
                assembly,
                progress,
                output,
                Deadline(_PREPARE_S, "the preparation of a guest"),
                memory_mib=base.memory_mib,
                cpus=cpus,
                disk_mib=base.disk_mib,
            ) as running:
                running.install(deb)
                running.machine.guest.run(f"({CONFIGURATION}) > {BEFORE_SETUP}")
                running.set_up(base.region_mib)
                with progress.step("Saving the state of the guest"):
                    running.machine.save(scratch)
            saved.prune()
    return Saved(cache.root() / saved.KIND / name)


def take_over(running: Session, scenario: Scenario, base: Scenario) -> None:
    """Make a guest that was resumed one for this scenario."""
    guest = running.machine.guest
    # It stood still since it was saved.
    guest.run(["date", "--utc", f"--set=@{time.time():.2f}"])
    patterns = shlex.join(left_out(scenario, base))
    if patterns:
        listed = f"systemctl list-unit-files --no-legend --state=enabled {patterns}"
        guest.run(f"systemctl disable --quiet --now $({listed} | cut -d ' ' -f 1)")


def key(assembly: Assembly, deb: Path, machine: Machine, region_mib: int) -> str:
    """Return the name of a saved state, made of all that it depends on: what QEMU needs to load it,
    and what would make another one.
    """
    modules = (guestfiles, netns, product, qemu, saved, session)
    code = [Path(str(module.__file__)).read_bytes() for module in modules]
    return cache.key(
        [hashlib.sha256(content).hexdigest() for content in [*code, Path(__file__).read_bytes()]],
        assembly.image.directory.name,
        assembly.releases[0],
        hashlib.sha256(deb.read_bytes()).hexdigest(),
        dataclasses.asdict(machine),
        region_mib,
        text([qemu.BINARY, "--version"]),
        _host_cpu() if machine.accelerator == "kvm" else "",
    )


def _host_cpu() -> str:
    """What a guest with `-cpu host` sees of this machine."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    found = re.findall(r"^(?:model name|flags|microcode)\s*:.*$", lines, re.MULTILINE)
    return "\n".join([platform.release(), *found])
