from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekernel.carry.memory import region
from rekernel.carry.memory.dax import Range
from rekernel.errors import BlockedError, NotPermittedError
from rekernel.setup.proposal import (
    GIB,
    LEFT_FOR_KERNEL,
    SMALLEST,
    Memory,
    default_size,
    parse_iomem,
    propose,
    smallest,
)

FIXTURES = Path(__file__).parent / "fixtures"
MIB = 1 << 20
BLOCK = 128 * MIB


def recorded(name: str, present: Range | None = None) -> Memory:
    return parse_iomem((FIXTURES / name).read_text(), BLOCK, present)


def machine(*ranges: tuple[int, int], block: int = BLOCK) -> Memory:
    usable = tuple(Range(start, end) for start, end in ranges)
    return Memory(usable, sum(item.size for item in usable), block)


def test_recorded_ram() -> None:
    memory = recorded("iomem-6.12-4g")
    assert memory.usable[-1] == Range(4 * GIB, 6 * GIB)
    assert 4 * GIB - 2 * MIB < memory.total < 4 * GIB


def test_recorded_proposal() -> None:
    assert propose(recorded("iomem-6.12-4g")) == Range(4 * GIB, 5 * GIB)


def test_running_region_is_ram_again() -> None:
    """The same machine proposes the same, whether or not the region is reserved already."""
    present = Range(4 * GIB, 5 * GIB)
    before = recorded("iomem-6.12-4g")
    after = recorded("iomem-6.12-4g-region", present)
    assert (after.total, after.usable) == (before.total, before.usable)
    assert propose(after) == present


def test_soft_reserved_memory_of_others_is_not_ram() -> None:
    assert recorded("iomem-6.12-4g-region").usable[-1] == Range(5 * GIB, 6 * GIB)


def test_hidden_addresses() -> None:
    with pytest.raises(NotPermittedError, match="hides"):
        parse_iomem("00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n", BLOCK)


def test_crash_kernel_stays_out() -> None:
    text = (
        "00100000-7fffffff : System RAM\n"
        "100000000-4ffffffff : System RAM\n"
        "  140000000-14fffffff : Crash kernel\n"
    )
    memory = parse_iomem(text, BLOCK)
    where = propose(memory, 4 * GIB)
    assert where == Range(0x150000000, 0x250000000)
    assert memory.total == 0x7FF00000 + 16 * GIB


def test_default_is_half_of_the_high_memory() -> None:
    assert default_size(machine((1 << 20, 2 * GIB), (4 * GIB, 34 * GIB))) == 15 * GIB


def test_default_is_at_least_one_gib() -> None:
    memory = machine((1 << 20, 3 * GIB), (4 * GIB, 5 * GIB + MIB))
    assert propose(memory) == Range(4 * GIB, 5 * GIB)


def test_low_memory_if_there_is_no_other() -> None:
    where = propose(machine((1 << 20, 3 * GIB)))
    assert where.size == GIB
    assert where.start % BLOCK == 0


def test_some_memory_is_left_above() -> None:
    """Seen on a guest of 5 GiB: the kernel had no NUMA node for a region at the end of RAM."""
    memory = machine((1 << 20, 2 * GIB), (4 * GIB, 7 * GIB))
    with pytest.raises(BlockedError, match="no contiguous 3072 MiB") as caught:
        propose(memory, 3 * GIB)
    assert "--region 2944M" in str(caught.value.hint)
    assert propose(memory, 2944 * MIB) == Range(4 * GIB, 4 * GIB + 2944 * MIB)
    # Less than a block is enough.
    memory = machine((1 << 20, 2 * GIB), (4 * GIB, 7 * GIB + MIB))
    assert propose(memory, 3 * GIB) == Range(4 * GIB, 7 * GIB)


def test_size_is_rounded_up_to_blocks() -> None:
    assert propose(recorded("iomem-6.12-4g"), 1000 * MIB).size == 1024 * MIB


@pytest.mark.parametrize("size", [1, 100 * MIB, SMALLEST - BLOCK])
def test_kaslr_needs_room_below_the_size(size: int) -> None:
    with pytest.raises(BlockedError, match="too small") as error:
        propose(recorded("iomem-6.12-4g"), size)
    assert "--region 512M" in error.value.hint


def test_small_machine() -> None:
    with pytest.raises(BlockedError, match="this machine has 1023 MiB") as error:
        propose(machine((1 << 20, GIB)))
    assert "--memory=image" in error.value.hint


def test_too_large_a_wish() -> None:
    with pytest.raises(BlockedError, match="no contiguous") as error:
        propose(recorded("iomem-6.12-4g"), 3 * GIB)
    assert "--region 1920M" in error.value.hint


def test_large_machines_may_change_their_block_size() -> None:
    where = propose(machine((1 << 20, 2 * GIB), (4 * GIB, 131 * GIB)), 3 * GIB)
    assert where == Range(4 * GIB, 8 * GIB)


def test_blocks_of_two_gib() -> None:
    memory = machine((1 << 20, 2 * GIB), (4 * GIB, 512 * GIB), block=2 * GIB)
    assert smallest(memory) == 4 * GIB
    with pytest.raises(BlockedError, match="too small"):
        propose(memory, GIB)


@st.composite
def memories(draw: st.DrawFn) -> Memory:
    page = 4096
    at = 0
    ranges = []
    for _ in range(draw(st.integers(1, 5))):
        start = at + draw(st.integers(1, 3 * GIB // page)) * page
        at = start + draw(st.integers(1, 80 * GIB // page)) * page
        ranges.append(Range(start, at))
    block = draw(st.sampled_from([128 * MIB, 256 * MIB, GIB, 2 * GIB]))
    return Memory(tuple(ranges), sum(item.size for item in ranges), block)


@given(memories(), st.none() | st.integers(1, 100 * GIB))
def test_a_proposal_is_aligned_ram(memory: Memory, size: int | None) -> None:
    try:
        where = propose(memory, size)
    except BlockedError as error:
        assert error.hint
        return
    assert any(item.start <= where.start and where.end <= item.end for item in memory.usable)
    assert where.start % memory.block == 0
    assert where.size % memory.block == 0
    assert where.size >= max(SMALLEST, size or 0)
    assert memory.total - where.size >= LEFT_FOR_KERNEL
    # Both parts of it are whole blocks, and there is some memory besides the store.
    parts = region.layout(where, memory.block)
    assert parts.ram.size >= memory.block
    assert region.from_cmdline(" ".join(region.parameters(where))) == where
    # Once reserved, it is found again.
    again = tuple(Range(item.start, item.end) for item in memory.usable)
    assert propose(Memory(again, memory.total, memory.block), where.size) == where


@given(memories())
def test_hints_are_right(memory: Memory) -> None:
    try:
        propose(memory, 500 * GIB)
    except BlockedError as error:
        words = error.hint.split("--region ")
        if len(words) == 2:
            assert propose(memory, region.parse_bytes(words[1])).size >= SMALLEST
