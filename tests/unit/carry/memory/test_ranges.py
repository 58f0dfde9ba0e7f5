"""Arithmetic with ranges of physical memory, against sets of addresses."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekernel.carry.memory import region
from rekernel.carry.memory.dax import Range, merge, subtract

ranges = st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda r: Range(r[0], sum(r)))
lists = st.lists(ranges, max_size=8)


def addresses(items: list[Range]) -> set[int]:
    return {address for item in items for address in range(item.start, item.end)}


@given(lists)
def test_merge(items: list[Range]) -> None:
    merged = merge(items)
    assert addresses(merged) == addresses(items)
    # Sorted, and neither touching nor overlapping.
    assert all(one.end < other.start for one, other in pairwise(merged))


@given(ranges, lists)
def test_subtract(whole: Range, holes: list[Range]) -> None:
    rest = subtract(whole, holes)
    assert addresses(rest) == addresses([whole]) - addresses(holes)
    assert all(item.size > 0 for item in rest)
    assert all(one.end < other.start for one, other in pairwise(rest))
    cut = [item for item in holes if item.overlaps(whole)]
    assert addresses(merge([*rest, *cut])) >= addresses([whole])


@given(ranges, ranges)
def test_overlaps_and_contains(one: Range, other: Range) -> None:
    common = addresses([one]) & addresses([other])
    assert one.overlaps(other) == other.overlaps(one) == bool(common)
    assert all((address in one) == (address in addresses([one])) for address in range(85))


MIB = region.MIB
regions = st.tuples(st.integers(0, 1 << 22), st.integers(1, 1 << 20)).map(
    lambda r: Range(r[0] * MIB, sum(r) * MIB)
)
junk = st.sampled_from(
    [
        "quiet",
        "root=UUID=00-11",
        "memmap=1G!4G",
        "memmap=64K$0x10000",
        "memmap=%-12+0xefffffff",
        "memmap=_%_-12+0xefffffff",
        "memmap=2G%4X-12+0xefffffff",
        "xmemmap=2G%4G-12+0xefffffff",
    ]
)


@given(regions, st.lists(junk), st.lists(junk))
def test_a_region_is_found_again_on_the_command_line(
    wanted: Range, before: list[str], after: list[str]
) -> None:
    words = [*before, *region.parameters(wanted), *after]
    assert region.from_cmdline(" ".join(words) + "\n") == wanted
    assert region.from_cmdline(" ".join(before)) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("0x1000", 4096),
        ("4096", 4096),
        ("4K", 4096),
        ("4k", 4096),
        ("2G", 2 << 30),
        ("1T", 1 << 40),
        ("0x10M", 16 * MIB),
        ("010", 10),
    ],
)
def test_numbers_as_the_kernel_writes_them(text: str, value: int) -> None:
    assert region.parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "G", "x", "0x", "1KK", "2 G B", "2GB", "0xG", "-"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        region.parse_bytes(text)


@given(
    st.integers(1, 1 << 12), st.integers(0, 1 << 8), st.sampled_from([128 * MIB, 2 << 30, 2 * MIB])
)
def test_layout(blocks: int, start: int, block: int) -> None:
    whole = Range(start * block, (start + blocks + 64) * block)
    where = region.layout(whole, block)
    assert where.whole == whole
    assert merge([where.store, where.ram]) == [whole]
    assert not where.store.overlaps(where.ram)
    # What becomes RAM must be whole blocks: a part of one cannot go online.
    assert where.store.size % block == where.ram.size % block == 0
    assert where.store.size >= max(128 * MIB, whole.size // 16)
    assert where.store.size < max(128 * MIB, whole.size // 16) + block


def test_a_store_of_another_size() -> None:
    whole = Range(4 << 30, 6 << 30)
    words = " ".join(["ro", *region.parameters(whole, 640 * MIB)])
    assert region.from_cmdline(words) == whole
    assert region.store_from_cmdline(words) == 640 * MIB
    assert region.layout(whole, 128 * MIB, 640 * MIB).store.size == 640 * MIB
    # What is asked for by hand may be no whole block, less than there must be, or all.
    assert region.layout(whole, 128 * MIB, 600 * MIB).store.size == 640 * MIB
    assert region.layout(whole, 128 * MIB, MIB).store.size == 128 * MIB
    assert region.layout(whole, 128 * MIB, 9 << 30).ram.size == 128 * MIB
    assert region.store_from_cmdline("rekernel.store= xrekernel.store=1G rekernel.store=1GB") == 0
