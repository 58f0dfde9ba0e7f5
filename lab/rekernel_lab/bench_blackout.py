"""`rekernel-lab bench blackout`: how long services stand still, and how long they would otherwise.

One VM, one run: in place and with images at several sizes of Redis data, a plain kexec reboot and
a cold one with the service restarted, and the floor, a bare kexec to /init with the same initrd.
Every change is to the kernel that runs already, so that all of them boot the same thing.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rekernel_lab import assemble, cache, product, rootfs, runner, vm
from rekernel_lab.bench import Request, benchmark
from rekernel_lab.bench_redis import MIB, GapClient, Redis
from rekernel_lab.bench_result import (
    COLD,
    IMAGE,
    IN_PLACE,
    KEXEC,
    Found,
    Measurement,
    phases_of_blackout,
    table,
)
from rekernel_lab.errors import DeadlineError, LabError
from rekernel_lab.run import run
from rekernel_lab.session import Deadline, Session, opened

SIZES_MIB = (64, 512, 2048)

_MEMORY_MIB = 12288
_REGION_MIB = 6144
_LIMIT_S = 5400.0
_SOURCES = cache.REPOSITORY / "lab" / "bench"
_IN_GUEST = "/root/bench"

# Nothing is saved in between, and clients are on the other end of the cable.
_CONFIGURE = r"""
sed -i -e 's/^bind .*/bind 0.0.0.0/' -e 's/^protected-mode .*/protected-mode no/' \
    -e '/^save /d' /etc/redis/redis.conf
printf 'save ""\nenable-debug-command yes\n' >> /etc/redis/redis.conf
"""

# A restart of any kind is a longer silence than any answer takes.
_REBOOT_GAP_S = 3.0

_JUMP = re.compile(rb"rekernel-lab: jump ([0-9a-f]+) ([0-9]+)")
_FLOOR = re.compile(rb"rekernel-lab: floor ([0-9a-f]{16})")


class _Bench:
    """The guest of the benchmark."""

    def __init__(self, session: Session, release: str, found: Found) -> None:
        self._session = session
        self._release = release
        self._found = found
        self._machine = session.machine
        self._namespace = session.machine.state.namespace

    def prepare(self, deb: Path) -> None:
        """Redis as packaged but for its drop-in, the region, and our own tools."""
        session = self._session
        session.install(deb)
        self._machine.guest.run(_CONFIGURE)
        session.set_up(_REGION_MIB)
        with tempfile.TemporaryDirectory(prefix="rekernel-lab-") as scratch:
            floor = Path(scratch) / "floor"
            run(["gcc", "-O2", "-static", "-nostdlib", "-fno-stack-protector", "-o", floor,
                 _SOURCES / "floor.c"])  # fmt: skip
            self._machine.guest.push(floor, f"{_IN_GUEST}/floor")
        self._machine.guest.push(_SOURCES / "jump.py", f"{_IN_GUEST}/jump.py")

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
            else:
                guest = self._machine.guest
                guest.run(f"python3 {_IN_GUEST}/jump.py plain {self._release}")
                guest.run("systemd-run --quiet --no-block systemctl kexec")
            gap = client.wait_for_gap(_REBOOT_GAP_S, limit)
        self._add(Measurement(method, size_mib, round(gap, 3)))
        self._machine.wait_ready(limit)
        self._machine.wait_started(limit)

    def floor(self) -> None:
        """reboot(2) to the first instruction of /init, by the TSC."""
        offset = self._machine.serial_size()
        with self._session.progress.step("Floor: bare kexec to /init"):
            words = ["python3", f"{_IN_GUEST}/jump.py", "floor", self._release]
            process = self._machine.guest.popen(words)
            try:
                seconds = self._wait_for_markers(offset)
            finally:
                process.kill()
                process.wait()
        self._found.floor_s.append(round(seconds, 3))
        self._session.progress.line(f"floor: {seconds:.2f} s")
        limit = self._session.deadline.left(vm.BOOT_TIMEOUT_S)
        self._machine.wait_ready(limit, offset)
        self._machine.wait_started(limit)

    def _wait_for_markers(self, offset: int) -> float:
        deadline = time.monotonic() + self._session.deadline.left(180)
        while True:
            self._machine.check_alive(offset)
            content = self._machine.state.serial_log.read_bytes()[offset:]
            jump, floor = _JUMP.search(content), _FLOOR.search(content)
            if jump and floor:
                return (int(floor[1], 16) - int(jump[1], 16)) / int(jump[2])
            if time.monotonic() > deadline:
                tail = content[-400:].decode(errors="replace")
                raise DeadlineError(f"/init was not reached by a bare kexec: {tail}")
            time.sleep(0.1)

    def _add(self, one: Measurement) -> None:
        self._found.measurements.append(one)
        blackout = "" if one.blackout_s is None else f"blackout {one.blackout_s:.2f} s, "
        self._session.progress.line(
            f"{one.method}, {one.size_mib} MiB: {blackout}client gap {one.client_gap_s:.2f} s"
        )


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
            _measure(bench, sizes, request.rounds)
    finally:
        # Also what was measured before something went wrong.
        if request.json:
            request.json.write_text(json.dumps(found.to_json(), indent=2) + "\n")
        print(table(found))
        progress.line(f"logs in {output}")
    return 0
