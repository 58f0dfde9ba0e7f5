"""The carry region between upgrades: which part is the store, which is RAM, what is drained.

The region is a soft-reserved range named on the kernel command line, which may say how large the
store shall be. Its first part is the handover store and stays a mapping; everything else is movable
RAM, except for what still holds carried pages after an upgrade. :func:`settle` brings it there from
wherever it stands.
"""

from __future__ import annotations

import re
from pathlib import Path

from rekernel.carry.memory import dax
from rekernel.carry.memory.dax import Range
from rekernel.errors import BlockedError
from rekernel.records import record
from rekernel.run import run

MIB = 1 << 20
# E820_TYPE_PRAM is what `!` makes of RAM; the kernel's decompressor keeps out of it. Then this
# type becomes soft reserved (0xefffffff, arch/x86/include/asm/e820/types.h).
_NUMBER = r"((?:0x[0-9a-f]+|\d+)[kmgt]?)"
_MARK = re.compile(rf"^memmap={_NUMBER}%{_NUMBER}-12\+0xefffffff$", re.IGNORECASE)
_PARAMETER = "dax_hmem.region_idle=1"
# Read by us alone: the kernel takes it for one of a module that it does not know.
_STORE = re.compile(rf"^rekernel\.store={_NUMBER}$", re.IGNORECASE)


@record
class Layout:
    """The region's parts."""

    whole: Range
    store: Range
    ram: Range


def parameters(region: Range, store: int = 0) -> list[str]:
    """Kernel command line words that reserve a region.

    ``store``: bytes of the handover store, 0 for the usual.
    """
    size = f"{region.size // MIB}M"
    start = f"{region.start:#x}"
    return [
        f"memmap={size}!{start}",
        f"memmap={size}%{start}-12+0xefffffff",
        _PARAMETER,
        *([f"rekernel.store={store // MIB}M"] if store else []),
    ]


def parse_bytes(text: str) -> int:
    """A number as the kernel writes it: 0x…, or with K, M, G, T. Raises ValueError."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(text[-1:].upper())
    number = text if factor is None else text[:-1]
    return int(number, 16 if number[:2] in ("0x", "0X") else 10) * (factor or 1)


def from_cmdline(cmdline: str) -> Range | None:
    """The region that a kernel command line reserves, or None."""
    for word in cmdline.split():
        match = _MARK.match(word)
        if match:
            start = parse_bytes(match[2])
            return Range(start, start + parse_bytes(match[1]))
    return None


def is_store_word(word: str) -> bool:
    """Whether a word of the kernel command line sets the size of the store."""
    return _STORE.match(word) is not None


def store_from_cmdline(cmdline: str) -> int:
    """Bytes of the store that a kernel command line asks for, 0 for the usual."""
    matches = [_STORE.match(word) for word in cmdline.split()]
    return next((parse_bytes(match[1]) for match in matches if match), 0)


def store_size(region: Range, block: int, asked: int = 0) -> int:
    """Bytes set aside for the handover: as asked for, or a sixteenth, at least 128 MiB.

    In whole memory blocks, and never all of the region.
    """
    wanted = max(region.size // 16, 128 * MIB, asked)
    if asked:
        wanted = min(wanted, region.size - block)
    return -(-wanted // block) * block


def layout(region: Range, block: int, store: int = 0) -> Layout:
    """How the region is divided. ``store``: bytes that are asked for, 0 for the usual."""
    split = region.start + store_size(region, block, store)
    return Layout(region, Range(region.start, split), Range(split, region.end))


def current() -> Layout | None:
    """The layout of this machine's region, None if the running kernel was booted without one."""
    words = Path("/proc/cmdline").read_text()
    region = from_cmdline(words)
    if region is None:
        return None
    return layout(region, dax.block_size(), store_from_cmdline(words))


@record
class Device:
    """A dax device and the physical ranges it has."""

    name: str
    ranges: tuple[Range, ...]
    driver: str


def devices(region: dax.DaxRegion) -> list[Device]:
    """All devices of a region; the empty seed too."""
    found = []
    for name in region.devices():
        path = region.sysfs / name
        ranges = []
        for mapping in sorted(path.glob("mapping*[0-9]")):
            start = int((mapping / "start").read_text(), 16)
            ranges.append(Range(start, int((mapping / "end").read_text(), 16) + 1))
        driver = path / "driver"
        bound = driver.resolve().name if driver.exists() else ""
        found.append(Device(name, tuple(ranges), bound))
    return found


def _open(where: Layout) -> dax.DaxRegion:
    for module in ("dax_hmem", "device_dax", "kmem"):
        run(["modprobe", "--", module])
    region = dax.find_region(where.whole)
    if region is None:
        raise BlockedError(
            f"the kernel made no dax region at {where.whole.start:#x}",
            "see /proc/iomem and the kernel log",
        )
    return region


def store_device(where: Layout) -> Device | None:
    """The device that maps the store, if it is set up."""
    region = dax.find_region(where.whole)
    if region is None:
        return None
    for device in devices(region):
        if device.ranges == (where.store,) and device.driver == "device_dax":
            return device
    return None


def settle(*, drained: bool) -> list[Range]:
    """Bring the region where it belongs; returns what became RAM now.

    ``drained``: no carried page is left in mapped parts, so that they may become RAM as well.
    Raises BlockedError or OSError.
    """
    where = current()
    if where is None:
        return []
    region = _open(where)
    present = devices(region)
    if not any(device.ranges == (where.store,) for device in present):
        dax.bind_mapping(dax.create_device(region, [where.store]))
    taken = [where.store]
    for device in present:
        carried = device.driver == "device_dax" and device.ranges != (where.store,)
        # One without a driver is left over from an attempt that was interrupted.
        if (carried and drained) or (device.ranges and not device.driver):
            dax.delete_device(region, device.name)
        elif device.ranges:
            taken += device.ranges
    free = dax.subtract(where.whole, taken)
    if free:
        dax.bind_ram(dax.create_device(region, free))
    return free


def ram_ranges(where: Layout) -> list[Range]:
    """The parts that are RAM now."""
    region = dax.find_region(where.whole)
    if region is None:
        return []
    return dax.merge(
        [item for device in devices(region) if device.driver == "kmem" for item in device.ranges]
    )
