"""`rekernel-lab bench blackout`: how long services stand still, and how long they would otherwise.

One VM, one run: in place and with images at several sizes of Redis data, a plain kexec reboot and
a cold one with the service restarted, and the floor, a bare kexec to /init with the same initrd.
Every change is to the kernel that runs already, so that all of them boot the same thing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rekernel_lab.bench.jump import Jumps, parting
from rekernel_lab.bench.redis import MIB, GapClient, Redis
from rekernel_lab.bench.registry import Request, benchmark
from rekernel_lab.bench.result import (
    COLD,
    IMAGE,
    IN_PLACE,
    KEXEC,
    Found,
    Measurement,
    phases_of_blackout,
    table,
)
from rekernel_lab.errors import LabError
from rekernel_lab.images import rootfs
from rekernel_lab.scenario import assemble, product, runner
from rekernel_lab.scenario.session import Deadline, Session, opened
from rekernel_lab.vm import vm

SIZES_MIB = (64, 512, 2048)

_MEMORY_MIB = 12288
_REGION_MIB = 6144
_LIMIT_S = 5400.0

# Nothing is saved in between, and clients are on the other end of the cable.
_CONFIGURE = r"""
sed -i -e 's/^bind .*/bind 0.0.0.0/' -e 's/^protected-mode .*/protected-mode no/' \
    -e '/^save /d' /etc/redis/redis.conf
printf 'save ""\nenable-debug-command yes\n' >> /etc/redis/redis.conf
"""

# A restart of any kind is a longer silence than any answer takes.
_REBOOT_GAP_S = 3.0


class _Bench:
    """The guest of the benchmark."""

    def __init__(self, session: Session, release: str, found: Found) -> None:
        self._session = session
        self._release = release
        self._found = found
        self._jumps = Jumps(session, release)
        self._machine = session.machine
        self._namespace = session.machine.state.namespace

    def prepare(self, deb: Path) -> None:
        """Redis as packaged but for its drop-in, the region, and our own tools."""
        session = self._session
        session.install(deb)
        self._machine.guest.run(_CONFIGURE)
        session.set_up(_REGION_MIB)
        self._jumps.install()

    def fill(self, size_mib: int) -> None:
        """A fresh Redis with so much data."""
        with self._session.progress.step(f"Redis: {size_mib} MiB of data"):
            self._machine.guest.run("systemctl restart redis-server.service")
            with Redis(self._namespace) as redis:
                keys = redis.fill(size_mib * MIB)
                redis.ask("SET", "bench", "0")
            self._session.progress.line(f"{keys} keys")

    def carry(self, method: str, size_mib: int, *, measured: bool = True) -> None:
        """An upgrade, with one client that stays connected."""
        backend = "region" if method == IN_PLACE else "image"
        with GapClient(self._namespace, reconnect=False) as client:
            outcome = self._session.upgrade(self._release, None, [f"--memory={backend}"])
            gap = client.longest_s
            if client.error:
                raise LabError(f"the client lost its connection: {client.error}")
        if not outcome.passed:
            raise LabError(f"{method}, {size_mib} MiB: exit code {outcome.exit_code}, "
                           f"{outcome.error}")  # fmt: skip
        report = outcome.report
        memory = report["memory"]
        if memory["backend"] != backend:
            raise LabError(f"the upgrade used the {memory['backend']} back-end")
        if measured:
            self._add(
                Measurement(
                    method,
                    size_mib,
                    round(gap, 3),
                    report["blackout_s"],
                    phases_of_blackout(report),
                    memory["resident_bytes"],
                    memory["bytes_copied"],
                )
            )
        self._machine.wait_started(self._session.deadline.left(vm.BOOT_TIMEOUT_S))

    def reboot(self, method: str, size_mib: int) -> None:
        """A reboot after which Redis loads its data from disk, and clients connect again."""
        with Redis(self._namespace) as redis:
            redis.ask("SAVE")
        limit = self._session.deadline.left(vm.BOOT_TIMEOUT_S)
        with (
            self._session.progress.step(method),
            GapClient(self._namespace, reconnect=True) as client,
        ):
            if method == COLD:
                self._machine.reboot(timeout=limit)
                gap = client.wait_for_gap(_REBOOT_GAP_S, limit)
            else:
                self._jumps.load()
                with parting(self._session, ["systemctl", "kexec"]) as command:
                    gap = client.wait_for_gap(_REBOOT_GAP_S, limit, command.check)
        self._add(Measurement(method, size_mib, round(gap, 3)))
        self._machine.wait_ready(limit)
        self._machine.wait_started(limit)

    def floor(self) -> None:
        """What every kexec takes, whatever is carried."""
        self._found.floor_s.append(round(self._jumps.floor(), 3))

    def _add(self, one: Measurement) -> None:
        self._found.measurements.append(one)
        blackout = "" if one.blackout_s is None else f"blackout {one.blackout_s:.2f} s, "
        self._session.progress.line(
            f"{one.method}, {one.size_mib} MiB: {blackout}client gap {one.client_gap_s:.2f} s"
        )


def _everything_once(bench: _Bench, size: int) -> None:
    bench.floor()
    bench.fill(size)
    for method in (IN_PLACE, IMAGE):
        bench.carry(method, size)
    for method in (KEXEC, COLD):
        bench.reboot(method, size)


def _measure(bench: _Bench, sizes: Sequence[int], rounds: int) -> None:
    # For the caches of the host, which everything else finds warm.
    bench.fill(sizes[0])
    bench.carry(IN_PLACE, sizes[0], measured=False)
    # Up and down again, as emulation becomes slower with every kernel that has run: one way only
    # would measure the largest on the slowest machine.
    for size in sizes:
        bench.floor()
        bench.fill(size)
        for _ in range(rounds):
            bench.carry(IN_PLACE, size)
        # Once: that one is minutes, and there is nothing to be read from its hundredths.
        bench.carry(IMAGE, size)
    for size in reversed(sizes):
        bench.fill(size)
        for _ in range(rounds):
            bench.carry(IN_PLACE, size)
    # Before the cold reboot: a new QEMU would have to translate all code anew.
    bench.floor()
    bench.fill(sizes[0])
    bench.reboot(KEXEC, sizes[0])
    bench.reboot(COLD, sizes[0])


@benchmark("blackout")
def blackout(request: Request) -> int:
    """Measure and tell; returns 0 if everything could be measured, whatever came out."""
    progress, options = request.progress, request.options
    deb = runner.package(progress, request.deb)
    packages = {"redis-server", *product.dependencies(deb)} - {"criu"}
    assembly = assemble.assemble(progress, options, [request.kernel], packages)
    sizes = sorted(request.sizes or SIZES_MIB)
    release = assembly.releases[0]
    found = Found(
        {
            "kernel": release,
            "criu": rootfs.criu_version(assembly.image),
            "accel": assembly.accelerator,
            "cpus": options.cpus,
            "memory_mib": _MEMORY_MIB,
            "region_mib": _REGION_MIB,
        }
    )
    output = runner.output_directory("bench-blackout")
    try:
        with opened(
            f"bench-{os.getpid()}",
            assembly,
            progress,
            output,
            Deadline(_LIMIT_S, "the benchmark"),
            memory_mib=_MEMORY_MIB,
            cpus=options.cpus,
        ) as session:
            bench = _Bench(session, release, found)
            bench.prepare(deb)
            if request.smoke:
                _everything_once(bench, sizes[0])
            else:
                _measure(bench, sizes, request.rounds)
    finally:
        # Also what was measured before something went wrong.
        if request.json:
            request.json.write_text(json.dumps(found.to_json(), indent=2) + "\n")
        print(table(found))
        progress.line(f"logs in {output}")
    return 0
