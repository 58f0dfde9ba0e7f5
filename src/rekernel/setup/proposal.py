"""Where the carry region goes: from /proc/iomem to a range of physical memory."""

from __future__ import annotations

import re

from rekernel.carry.memory.dax import Range, merge, subtract
from rekernel.carry.memory.region import MIB, store_size
from rekernel.errors import BlockedError, NotPermittedError
from rekernel.records import record

GIB = 1 << 30

# The decompressor places the next kernel below the size in `memmap=SIZE%START…`
# (arch/x86/boot/compressed/kaslr.c takes it for a memory limit): leave it room.
SMALLEST = 512 * MIB
DEFAULT_AT_LEAST = GIB
# The kernel and what it cannot move live outside of the region.
LEFT_FOR_KERNEL = 768 * MIB

# From this much memory on a kernel may choose memory blocks of 2 GiB
# (arch/x86/mm/init_64.c: probe_memory_block_size).
_BIG_MACHINE = 64 * GIB
_BIG_BLOCK = 2 * GIB

_LINE = re.compile(r"^( *)([0-9a-f]+)-([0-9a-f]+) : (.*)$")


@record
class Memory:
    """This machine's RAM as a region can use it."""

    # Ranges of RAM, with holes where a crash kernel is reserved.
    usable: tuple[Range, ...]
    total: int
    # Bytes of a memory block.
    block: int

    @property
    def alignment(self) -> int:
        """Bytes that start and size of a region are multiples of, whatever kernel boots."""
        end = max((item.end for item in self.usable), default=0)
        return max(self.block, _BIG_BLOCK if end >= _BIG_MACHINE else 0)


def parse_iomem(text: str, block: int, region: Range | None = None) -> Memory:
    """RAM in /proc/iomem. ``region``: what the running kernel has reserved already is RAM, too.

    Raises NotPermittedError if the addresses are hidden, as they are for everyone but root.
    """
    ram: list[Range] = []
    taken: list[Range] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        item = Range(int(match[2], 16), int(match[3], 16) + 1)
        if not match[1] and match[4] == "System RAM":
            ram.append(item)
        elif match[4] == "Crash kernel":
            taken.append(item)
    if not any(item.end > 1 for item in ram):
        raise NotPermittedError("/proc/iomem hides the addresses", "run this as root")
    # Nothing but soft-reserved memory may be taken for RAM again.
    if region is not None and not any(item.overlaps(region) for item in ram):
        ram.append(region)
    joined = merge(ram)
    usable = [rest for item in joined for rest in subtract(item, taken)]
    return Memory(tuple(usable), sum(item.size for item in joined), block)


def _candidates(memory: Memory) -> list[Range]:
    """Aligned ranges, the preferred one first: above 4 GiB, then the largest."""
    step = memory.alignment
    top = max((item.end for item in memory.usable), default=0)
    found = []
    for item in memory.usable:
        for floor in (4 * GIB, 0):
            # The first MiB is the firmware's, and the kernel itself likes to sit at 16 MiB.
            start = -(-max(item.start, floor, 64 * MIB) // step) * step
            # Without tables of its firmware the kernel knows no node for what lies above all RAM,
            # and would not make memory of it (arch/x86/mm/numa.c: dummy_numa_init).
            end = min(item.end, top - 1) // step * step
            if end > start:
                found.append(Range(start, end))
                break
    return sorted(found, key=lambda item: (item.start < 4 * GIB, -item.size, item.start))


def smallest(memory: Memory) -> int:
    """Bytes of the smallest region that makes sense: room for the store and for pages."""
    step = memory.alignment
    store = store_size(Range(0, SMALLEST), step)
    return max(-(-SMALLEST // step) * step, store + step)


def default_size(memory: Memory) -> int:
    """Half of the RAM above 4 GiB, at least 1 GiB; bytes, aligned."""
    high = sum(max(0, item.end - max(item.start, 4 * GIB)) for item in memory.usable)
    step = memory.alignment
    best = max((item.size for item in _candidates(memory)[:1]), default=0)
    wanted = max(high // 2, DEFAULT_AT_LEAST) // step * step
    return max(min(wanted, best) if best >= smallest(memory) else wanted, smallest(memory))


def propose(memory: Memory, size: int | None = None) -> Range:
    """The range for a region of ``size`` bytes (rounded up to whole blocks), or a default one.

    Raises BlockedError if that is too small, or if this machine is.
    """
    step = memory.alignment
    wanted = default_size(memory) if size is None else -(-size // step) * step
    least = smallest(memory)
    if wanted < least:
        raise BlockedError(
            f"a region of {wanted // MIB} MiB is too small",
            f"the smallest one for this machine is --region {least // MIB}M",
        )
    if memory.total - wanted < LEFT_FOR_KERNEL:
        raise BlockedError(
            f"this machine has {memory.total // MIB} MiB of memory: a region of {wanted // MIB} MiB"
            f" leaves less than {LEFT_FOR_KERNEL // MIB} MiB for the kernel",
            _too_small_hint(memory, least),
        )
    for item in _candidates(memory):
        if item.size >= wanted:
            # At the low end: the end of RAM decides the size of memory blocks, and must stay.
            return Range(item.start, item.start + wanted)
    raise BlockedError(
        f"no contiguous {wanted // MIB} MiB of memory for the region",
        _too_small_hint(memory, least),
    )


def _too_small_hint(memory: Memory, least: int) -> str:
    largest = max((item.size for item in _candidates(memory)), default=0)
    step = memory.alignment
    most = min(largest, (memory.total - LEFT_FOR_KERNEL) // step * step)
    if most >= least:
        return f"the largest one for this machine is --region {most // MIB}M"
    return "without a region, `rekernel upgrade --memory=image` carries memory by way of the disk"
