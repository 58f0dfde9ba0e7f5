"""The carry region on the new kernel: find it, map parts of it, start the pager."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rekernel.carry.memory import dax
from rekernel.carry.memory.entry import Extent, Memory
from rekernel.carry.memory.paths import CONTROL, DRAIN_STATUS, LOG, PAGER
from rekernel.pid1 import processes

# For messages, and in tests another one.
_PAGER_LOG = Path(LOG)


class RegionError(Exception):
    """The carry region is not there or cannot be carved."""


def _range(extent: Extent) -> dax.Range:
    return dax.Range(extent.start, extent.end)


def open_region(extent: Extent, timeout: float = 10.0) -> dax.DaxRegion:
    """The dax region that lies there. Raises RegionError."""
    deadline = time.monotonic() + timeout
    while True:
        region = dax.find_region(_range(extent))
        if region is not None:
            return region
        if time.monotonic() > deadline:
            raise RegionError(f"no dax region at {extent.start:#x}")
        time.sleep(0.01)


def map_extents(region: dax.DaxRegion, extents: Sequence[Extent]) -> tuple[str, int]:
    """Map these parts as one device; returns its name and their bytes. Raises RegionError."""
    try:
        name = dax.create_device(region, [_range(extent) for extent in extents])
        dax.bind_mapping(name)
    except OSError as error:
        raise RegionError(f"cannot map the carry region: {error}") from error
    return name, sum(extent.end - extent.start for extent in extents)


def start_pager(
    memory: Memory, region: dax.DaxRegion, store: str, pagemap: str, sockets: Sequence[str]
) -> int:
    """Map the occupied parts and start the pager over them; returns its PID.

    ``pagemap``: where that lies in the store, as the pager takes it; it checks that.

    It brings single pages until :func:`tell_pager`: they come to lie outside of the region, and
    would have to be copied at the next upgrade.
    A device shows its extents one after the other, in the order of physical addresses.
    """
    frames: list[str] = []
    if memory.occupied:
        name, _ = map_extents(region, memory.occupied)
        offset = 0
        for extent in sorted(memory.occupied, key=lambda item: item.start):
            size = extent.end - extent.start
            frames += ["--frames", f"/dev/{name}:{offset}:{extent.start:#x}:{size}"]
            offset += size
    if memory.stray_bytes and memory.store is not None:
        start = memory.store.start + memory.stray_offset
        frames += ["--frames", f"{store}:{memory.stray_offset}:{start:#x}:{memory.stray_bytes}"]
    listeners: list[str] = []
    for path in sockets:
        listeners += ["--listen", path]
    return processes.start(
        [
            PAGER,
            "--map", pagemap,
            *frames,
            *listeners,
            "--control", CONTROL,
            "--window", "1",
            "--status-file", DRAIN_STATUS,
            "--exit-when-drained",
        ],
        log=str(_PAGER_LOG),
    )  # fmt: skip


def tell_pager() -> None:
    """No restore begins any more, and bring neighbours along from now on.

    Else it would wait for trees that were given up before their criu asked for pages. Raises
    OSError if the pager cannot be told.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5.0)
        connection.connect(CONTROL)
        connection.sendall(b"complete\nwindow 16\n")
        connection.recv(1)


def free_parts_to_ram(memory: Memory, region: dax.DaxRegion) -> None:
    """Make RAM of what holds nothing carried, so that pages drain into the region again.

    kmem is loaded only now: before, it would have taken the mapped parts as well.
    """
    if not memory.free:
        return
    processes.wait(processes.start(["modprobe", "kmem"]), "modprobe kmem")
    dax.bind_ram(dax.create_device(region, [_range(extent) for extent in memory.free]))


@contextmanager
def without_huge_pages() -> Iterator[None]:
    """criu fills memory before it gives a mapping its advice: a sparse one must not grow."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    # "always [madvise] never"
    before = path.read_text().partition("[")[2].partition("]")[0]
    with _setting(path, before, "never"):
        yield


@contextmanager
def without_limit_of_reservations() -> Iterator[None]:
    """criu maps everything writable at first, also what was reserved and never counted."""
    path = Path("/proc/sys/vm/overcommit_memory")
    with _setting(path, path.read_text().strip(), "1"):
        yield


@contextmanager
def _setting(path: Path, before: str, value: str) -> Iterator[None]:
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(before)


def wait_for_pager(pid: int, sockets: Sequence[str], timeout: float = 10.0) -> None:
    """Wait until the pager listens on all sockets. Raises RegionError, with what it said last."""
    deadline = time.monotonic() + timeout
    for path in sockets:
        while not Path(path).exists():
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if ended or time.monotonic() > deadline:
                raise RegionError(f"the pager did not start: {_last_line(_PAGER_LOG)}")
            time.sleep(0.002)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError as error:
        return str(error)
    return next((line for line in reversed(lines) if line.strip()), f"nothing in {log}")
