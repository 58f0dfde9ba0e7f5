"""The store is read back whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekernel.handover.store import (
    BLOCK,
    Area,
    StoreError,
    StoreFullError,
    StoreReader,
    StoreWriter,
    wipe,
)

SUPERBLOCK = 32


class Ram(bytearray):
    """An area as strict as a mapping: of a fixed size."""

    @property
    def raw(self) -> bytearray:
        """Itself, to be damaged."""
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        assert not isinstance(index, slice) or len(self[index]) == len(value)
        super().__setitem__(index, value)


blobs = st.dictionaries(st.text(), st.binary(max_size=2 * BLOCK), max_size=6)


def filled(contents: dict[str, bytes], size: int = 32 * BLOCK) -> Ram:
    area = Ram(b"\xa5" * size)
    writer = StoreWriter(area)
    for name, data in contents.items():
        writer.add(name, data)
    writer.commit()
    return area


def read_all(area: Area) -> dict[str, bytes]:
    reader = StoreReader(area)
    return {entry.name: reader.read(entry.name) for entry in reader}


@given(blobs)
def test_round_trip(contents: dict[str, bytes]) -> None:
    area = filled(contents)
    assert read_all(area) == contents
    entries = list(StoreReader(area))
    assert [entry.name for entry in entries] == list(contents)
    assert all(entry.offset % BLOCK == 0 for entry in entries)
    ends = [SUPERBLOCK, *(entry.offset + entry.length for entry in entries)]
    assert all(entry.offset >= end for entry, end in zip(entries, ends, strict=False))


def test_every_flipped_byte_is_noticed() -> None:
    contents = {"one": b"x" * 100, "two": bytes(range(256)), "empty": b""}
    area = filled(contents, 4 * BLOCK)
    entries = list(StoreReader(area))
    places = list(range(SUPERBLOCK))
    for entry in entries:
        places += range(entry.offset, entry.offset + entry.length)
    index = entries[-1].offset
    places += range(index, index + area.raw[index:].index(b"]]") + 2)
    assert len(places) > 450
    for place in places:
        for mask in (0x01, 0x80, 0xFF):
            area.raw[place] ^= mask
            with pytest.raises(StoreError):
                read_all(area)
            area.raw[place] ^= mask
    assert read_all(area) == contents


def test_a_truncated_area_is_noticed() -> None:
    contents = {"one": b"x" * 100, "two": b"y" * BLOCK}
    area = filled(contents, 4 * BLOCK)
    used = area.raw.rindex(b"]]") + 2
    for size in [*range(64), BLOCK, BLOCK + 99, *range(used - 70, used)]:
        with pytest.raises(StoreError):
            read_all(Ram(area[:size]))
    assert read_all(Ram(area[:used])) == contents


class Crashing(Ram):
    """An area under a writer that is stopped after so many writes."""

    def __init__(self, content: bytes, writes: int) -> None:
        super().__init__(content)
        self.writes = writes

    def __setitem__(self, index: Any, value: Any) -> None:
        if not self.writes:
            raise InterruptedError
        self.writes -= 1
        super().__setitem__(index, value)


def test_half_written_is_never_valid() -> None:
    before = bytes(filled({"manifest.json": b"of an earlier upgrade"}).raw)
    writes = 0
    while True:
        area = Crashing(before, writes)
        try:
            writer = StoreWriter(area)
            writer.add("pagemap", b"p" * 10000)
            writer.add("manifest.json", b"new")
            writer.commit()
        except InterruptedError:
            if writes:  # else nothing at all has happened
                with pytest.raises(StoreError, match="no handover was left"):
                    StoreReader(area)
            writes += 1
        else:
            break
    assert writes == 5
    assert read_all(area) == {"pagemap": b"p" * 10000, "manifest.json": b"new"}


def test_a_used_store_is_none() -> None:
    area = filled({"a": b"b"})
    wipe(area)
    with pytest.raises(StoreError, match=r"^no handover was left$"):
        StoreReader(area)


@given(blobs, st.integers(1, 12 * BLOCK))
def test_full_says_what_it_would_take(contents: dict[str, bytes], capacity: int) -> None:
    area = Ram(b"\xa5" * (16 * BLOCK))
    writer = StoreWriter(area, capacity)
    try:
        for name, data in contents.items():
            writer.add(name, data)
        writer.commit()
    except StoreFullError as error:
        assert error.capacity == capacity < error.needed
        assert "the handover store is full" in str(error)
        assert f"to hold {error.needed} bytes, it holds {capacity}" in str(error)
        with pytest.raises(StoreError):
            StoreReader(area)
    else:
        assert read_all(area) == contents
    # Not a byte behind the capacity, which may be somebody else's.
    assert area.raw[max(capacity, SUPERBLOCK) :].strip(b"\xa5") == b""


def test_a_store_may_be_filled_to_the_last_byte() -> None:
    size = 3 * BLOCK
    index = len('[["a", 4096, 4096, 4294967295]]')
    area = Ram(bytes(size))
    writer = StoreWriter(area)
    with pytest.raises(StoreFullError) as full:
        writer.add("a", bytes(2 * BLOCK + 1))
    assert full.value.needed == size + 1
    writer.add("a", bytes(BLOCK))
    with pytest.raises(StoreFullError, match="b needs"):
        writer.add("b", bytes(BLOCK + 1))
    # What did not fit has left nothing behind.
    assert writer.used == 2 * BLOCK
    writer.commit()
    assert [entry.name for entry in StoreReader(area)] == ["a"]
    assert StoreWriter(Ram(bytes(size)), 2 * BLOCK + index).capacity < size


def test_no_room_for_the_index() -> None:
    writer = StoreWriter(Ram(bytes(2 * BLOCK)))
    writer.add("a", bytes(BLOCK))
    with pytest.raises(StoreFullError, match="the handover store is full: its index needs"):
        writer.commit()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, b"ext4 fs!", "the handover store holds something else"),
        (8, b"\x07\0\0\0", "the handover store has version 7, this is 1"),
        (16, b"\xff\xff\0\0", "the index of the handover store lies outside of it"),
        (24, b"\xff\xff\xff\xff\xff\xff\xff\xff", "lies outside of it"),
        (12, b"\0\0\0\0", r"the index of the handover store is damaged \(checksum\)"),
        (BLOCK, b"!", r"blob in the handover store is damaged \(checksum\)"),
    ],
)
def test_messages(place: int, value: bytes, message: str) -> None:
    area = filled({"blob": b"some text"}, 3 * BLOCK)
    area[place : place + len(value)] = value
    with pytest.raises(StoreError, match=message):
        read_all(area)


def test_a_blob_that_is_not_there() -> None:
    with pytest.raises(StoreError, match="the handover store has no pagemap"):
        StoreReader(filled({"a": b"b"})).read("pagemap")


def test_too_small_for_any_store() -> None:
    with pytest.raises(StoreError, match="the handover store is cut off"):
        StoreReader(Ram(bytes(31)))


def test_a_file_is_read_right_into_it(tmp_path: Path) -> None:
    content = os.urandom(3 * BLOCK + 5)
    path = tmp_path / "pages-1.img"
    path.write_bytes(content)
    area = Ram(bytes(9 * BLOCK))
    writer = StoreWriter(area)
    with path.open("rb") as file:
        writer.add("first", b"x")
        writer.add_file("pages", file.fileno(), len(content))
        writer.add("last", b"y")
        with pytest.raises(StoreFullError):
            writer.add_file("again", file.fileno(), 4 * BLOCK)
        os.truncate(path, BLOCK)
        with pytest.raises(OSError, match="became shorter"):
            writer.add_file("short", file.fileno(), 2 * BLOCK)
    writer.commit()
    assert read_all(area) == {"first": b"x", "pages": content, "last": b"y"}
    with StoreReader(area).view("pages") as view:
        assert bytes(view) == content
    area.raw[2 * BLOCK] ^= 1
    with pytest.raises(StoreError, match="pages in the handover store is damaged"):
        StoreReader(area).view("pages")
