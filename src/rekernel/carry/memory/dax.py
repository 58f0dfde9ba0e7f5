"""Device-dax through sysfs: carve the carry region, make parts of it RAM or a mapping.

Both sides of the kexec use this, so standard library only. Formats: drivers/dax/bus.c
(``dax_region`` attributes, ``mapping`` as "start-end" with an inclusive end) and
Documentation/ABI/testing/sysfs-bus-dax.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from rekernel.records import record

_BUS = Path("/sys/bus/dax")
_MEMORY = Path("/sys/devices/system/memory")
_PLATFORM = Path("/sys/devices/platform")


@record(order=True)
class Range:
    """Physical bytes [start, end)."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def overlaps(self, other: Range) -> bool:
        """Whether they share a byte."""
        return self.start < other.end and other.start < self.end


def merge(ranges: Sequence[Range]) -> list[Range]:
    """Sorted, with neighbours joined."""
    joined: list[Range] = []
    for item in sorted(ranges):
        if joined and joined[-1].end >= item.start:
            joined[-1] = Range(joined[-1].start, max(joined[-1].end, item.end))
        else:
            joined.append(item)
    return joined


def subtract(whole: Range, holes: Sequence[Range]) -> list[Range]:
    """What of ``whole`` is in none of ``holes``."""
    rest = []
    at = whole.start
    for hole in merge(holes):
        if hole.end <= at or hole.start >= whole.end:
            continue
        if hole.start > at:
            rest.append(Range(at, hole.start))
        at = max(at, hole.end)
    if at < whole.end:
        rest.append(Range(at, whole.end))
    return rest


@record
class DaxRegion:
    """A soft-reserved range of physical memory that the kernel made a dax region of."""

    sysfs: Path
    range: Range

    @property
    def attributes(self) -> Path:
        """The directory with ``create``, ``delete`` and ``seed``."""
        return self.sysfs / "dax_region"

    def devices(self) -> list[str]:
        """Names of its devices: daxX.Y."""
        return sorted(
            (path.name for path in self.sysfs.glob("dax*.*")),
            key=lambda name: int(name.rpartition(".")[2]),
        )


def _write(path: Path, text: str) -> None:
    # One write(2): sysfs attributes take their value whole.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (writing {text!r})", str(path)) from None
    finally:
        os.close(fd)


def find_region(whole: Range) -> DaxRegion | None:
    """The dax region over exactly this range, or None (module not loaded, …).

    A region tells its size but not its start. Where two have the same size, the one with a
    device in the range is meant; one without any device shows itself when a device is created.
    """
    # hmem.N moved below hmem_platform.0 in Linux 7.x.
    candidates = [*_PLATFORM.glob("hmem*/dax_region"), *_PLATFORM.glob("hmem*/hmem*/dax_region")]
    fitting = [
        DaxRegion(path.parent, whole)
        for path in candidates
        if int((path / "size").read_text()) == whole.size
    ]
    for region in fitting:
        for device in region.devices():
            for mapping in (region.sysfs / device).glob("mapping[0-9]*/start"):
                if int(mapping.read_text(), 16) in whole:
                    return region
    return fitting[0] if fitting else None


def create_device(region: DaxRegion, ranges: Sequence[Range]) -> str:
    """A new device over exactly these ranges (2 MiB aligned); bound to no driver.

    Raises OSError if a range is taken or not aligned.
    """
    before = set(region.devices())
    _write(region.attributes / "create", "1")
    name = next(iter(set(region.devices()) - before))
    device = region.sysfs / name
    try:
        for item in merge(ranges):
            _write(device / "mapping", f"{item.start:#x}-{item.end - 1:#x}")
    except OSError:
        _write(region.attributes / "delete", name)
        raise
    return name


def delete_device(region: DaxRegion, name: str) -> None:
    """Unbind and remove a device. Raises OSError (EBUSY) if it is the seed or in use."""
    unbind(name)
    _write(region.sysfs / name / "size", "0")
    _write(region.attributes / "delete", name)


def unbind(name: str) -> None:
    """Take the device from its driver, if it has one."""
    driver = _BUS / "devices" / name / "driver"
    if driver.exists():
        _write(driver / "unbind", name)


def bind_mapping(name: str) -> None:
    """Make the device a character device that can be mapped: /dev/NAME."""
    _bind("device_dax", name)


def _bind(driver: str, name: str) -> None:
    # Which driver a device matches by its type depends on the kernel; by name either takes it.
    # Writing new_id may or may not bind at once.
    directory = _BUS / "drivers" / driver
    _write(directory / "new_id", name)
    try:
        if not (_BUS / "devices" / name / "driver").exists():
            _write(directory / "bind", name)
    finally:
        _write(directory / "remove_id", name)


def bind_ram(name: str) -> None:
    """Hot-add the device as system RAM, onlined movable block by block."""
    policy = _MEMORY / "auto_online_blocks"
    before = policy.read_text().strip()
    _write(policy, "online_movable")
    try:
        _bind("kmem", name)
    finally:
        _write(policy, before)


def map_device(name: str, size: int, *, writable: bool = False) -> mmap.mmap:
    """Map a bound device from its first byte; ``size`` in bytes, 2 MiB aligned."""
    fd = os.open(f"/dev/{name}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(fd, size, mmap.MAP_SHARED, protection)
    finally:
        os.close(fd)


def block_size() -> int:
    """Bytes of one memory block: the unit that goes on- and offline."""
    return int((_MEMORY / "block_size_bytes").read_text(), 16)
