"""The page map format: round trips and every way to be refused."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .pagemap import PAGE_SIZE, PageMap, PageMapError, Run, RunFlag, Space


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    vaddr = draw(st.integers(0, 1 << 40)) * PAGE_SIZE
    runs = []
    for _ in range(draw(st.integers(0, 8))):
        vaddr += draw(st.integers(0, 1000)) * PAGE_SIZE
        run = Run(
            vaddr,
            draw(st.integers(0, (1 << 52) - 1)),
            draw(st.integers(1, 5000)),
            draw(st.sampled_from([RunFlag.NONE, RunFlag.STRAY])),
        )
        runs.append(run)
        vaddr = run.end
    pid = draw(st.integers(1, 1 << 22))
    nspid = draw(st.integers(1, 1 << 22))
    return Space.of(pid, runs, nspid=nspid, tree=draw(st.integers(0, (1 << 32) - 1)))


page_maps = st.lists(spaces(), max_size=5).map(lambda found: PageMap(tuple(found)))

SAMPLE = PageMap(
    (
        Space.of(10, [Run(0x1000, 7, 2), Run(0x3000, 5, 1, RunFlag.STRAY)], tree=1),
        Space.of(11, []),
        Space.of(12, [Run(0x7F0000000000, 1 << 20, 4)], nspid=1, tree=2),
    )
)


@given(page_maps)
def test_round_trip(page_map: PageMap) -> None:
    assert PageMap.parse(page_map.build()) == page_map


@given(page_maps)
def test_bytes_behind_the_end_do_not_matter(page_map: PageMap) -> None:
    assert PageMap.parse(page_map.build() + b"x" * 100) == page_map


def test_layout_is_that_of_the_header_file() -> None:
    data = SAMPLE.build()
    assert data[:8] == b"RKPGMAP1"
    assert len(data) == 40 + 3 * 40 + 3 * 24
    assert struct.unpack_from("<III", data, 8) == (1, 4096, 3)
    assert struct.unpack_from("<I", data, 20) == (zlib.crc32(data[24:]),)
    assert struct.unpack_from("<IIIIQQQ", data, 40) == (10, 10, 0, 1, 0, 2, 3)
    assert struct.unpack_from("<QQII", data, 40 + 120 + 24) == (0x3000, 5, 1, 1)


def test_without_runs_the_spaces_are_still_counted() -> None:
    page_map = PageMap.parse(SAMPLE.build(), runs=False)
    assert [space.pages for space in page_map.spaces] == [3, 0, 4]
    assert all(space.runs == () for space in page_map.spaces)
    assert page_map.pages == SAMPLE.pages == 7


@given(page_maps, st.data())
def test_every_flipped_bit_is_noticed(page_map: PageMap, data: st.DataObject) -> None:
    raw = bytearray(page_map.build())
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PageMapError):
        PageMap.parse(raw)


@given(page_maps, st.data())
def test_every_cut_is_noticed(page_map: PageMap, data: st.DataObject) -> None:
    raw = page_map.build()
    with pytest.raises(PageMapError, match="cut off"):
        PageMap.parse(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(PageMapError):
        PageMap.parse(noise)


def _edited(offset: int, fmt: str, value: int) -> bytes:
    """The sample with one field changed and the checksum put right."""
    raw = bytearray(SAMPLE.build())
    struct.pack_into(fmt, raw, offset, value)
    struct.pack_into("<I", raw, 20, zlib.crc32(raw[24:]))
    return bytes(raw)


RUNS = 40 + 3 * 40


@pytest.mark.parametrize(
    ("offset", "fmt", "value", "message"),
    [
        (0, "<B", 0, "no RKPGMAP1"),
        (8, "<I", 2, "version 2, this program reads 1"),
        (12, "<I", 65536, "pages of 65536 bytes"),
        (32, "<Q", 4, "unknown flags 0x4"),
        (16, "<I", 100, "cut off"),
        (24, "<Q", 1 << 60, "cut off"),
        (40 + 16, "<Q", 4, "process 10 runs it does not have"),
        (40 + 24, "<Q", (1 << 64) - 1, "process 10 runs it does not have"),
        (40 + 32, "<Q", 4, "counts 4 pages of process 10, but has 3"),
        (RUNS, "<Q", 0x1001, "malformed run at 0x1001"),
        (RUNS, "<Q", 1 << 60, "malformed run"),
        (RUNS + 16, "<I", 0, "malformed run"),
        (RUNS + 20, "<I", 8, "malformed run"),
        (RUNS + 24, "<Q", 0x2000, "malformed run at 0x2000"),
    ],
)
def test_message(offset: int, fmt: str, value: int, message: str) -> None:
    with pytest.raises(PageMapError, match=message):
        PageMap.parse(_edited(offset, fmt, value))


def test_build_refuses_contradictions() -> None:
    with pytest.raises(PageMapError, match="counts 2 pages of process 5, but has 1"):
        PageMap((Space(5, 5, 0, 2, (Run(0, 0, 1),)),)).build()
    with pytest.raises(PageMapError, match="malformed run"):
        PageMap((Space.of(5, [Run(0x1000, 0, 1), Run(0x1000, 1, 1)]),)).build()
