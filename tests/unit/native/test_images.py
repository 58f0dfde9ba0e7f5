"""rekernel-images: what criu has left out is marked as lazy or written down, page by page."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rekernel.criu.images import entries, fields

from .conftest import PROGRAMS

IMAGES = PROGRAMS / "rekernel-images"
PAGE = 4096
COMMON, MM, PAGEMAP = 0x54564319, 0x57492820, 0x56084025
PARENT, LAZY, PRESENT = 1, 2, 4
PRIVATE, ANONYMOUS, LOCKED, HUGETLB = 0x02, 0x20, 0x2000, 0x40000
REGULAR, VDSO = 1, 8

Entry = tuple[int, int, int]


def varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def message(**numbers: int) -> bytes:
    """Fields by number: f1=..., f2=..."""
    return b"".join(varint(int(key[1:]) << 3) + varint(value) for key, value in numbers.items())


def image(magic: int, parts: Sequence[bytes]) -> bytes:
    return struct.pack("<II", COMMON, magic) + b"".join(
        struct.pack("<I", len(part)) + part for part in parts
    )


class World:
    """Our own memory as that of the process that was dumped."""

    def __init__(self, directory: Path, pages: int) -> None:
        self.directory = directory
        self.area = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for number in range(pages):
            self.area[number * PAGE : (number + 1) * PAGE] = self.content(number)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.area))

    @staticmethod
    def content(number: int) -> bytes:
        return random.Random(number).randbytes(PAGE)

    def write(self, mappings: Sequence[Entry], pagemap: Sequence[Entry], data: bytes = b"") -> None:
        """``mappings``: first page, pages, flags; ``pagemap`` likewise, with criu's flags."""
        parts = []
        for first, pages, flags in mappings:
            start = self.base + first * PAGE
            part = message(f1=start, f2=start + pages * PAGE, f3=0, f4=0, f5=3, f6=flags, f7=1)
            parts.append(varint(14 << 3 | 2) + varint(len(part)) + part)
        name = self.directory / f"mm-{os.getpid()}.img"
        name.write_bytes(image(MM, [message(f1=4096, f12=1) + b"".join(parts) + message(f15=1)]))
        rows = [
            message(f1=self.base + first * PAGE, f2=0, f4=flags, f5=pages)
            for first, pages, flags in pagemap
        ]
        self.pagemap.write_bytes(image(PAGEMAP, [message(f1=3), *rows]))
        (self.directory / "pages-3.img").write_bytes(data)

    @property
    def pagemap(self) -> Path:
        return self.directory / f"pagemap-{os.getpid()}.img"

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [IMAGES, *options, self.directory],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def read(self) -> list[Entry]:
        data = bytearray(self.pagemap.read_bytes())
        found = []
        for start, end in list(entries(data))[1:]:
            row = {number: value for number, value, _, _ in fields(data, start, end)}
            found.append(((row[1] - self.base) // PAGE, row[5], row[4]))
        return found

    @property
    def pages(self) -> bytes:
        return (self.directory / "pages-3.img").read_bytes()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield World(tmp_path, 64)


def test_each_kind(world: World) -> None:
    world.write(
        [
            (0, 8, PRIVATE | ANONYMOUS),
            (8, 8, PRIVATE | ANONYMOUS),
            (16, 8, PRIVATE),
            (24, 8, PRIVATE | ANONYMOUS | LOCKED),
            (32, 8, PRIVATE | ANONYMOUS),
        ],
        [(2, 9, PARENT), (14, 4, PARENT), (20, 1, PRESENT), (22, 20, PARENT)],
        b"w" * PAGE,
    )
    # Beyond the last mapping, as what the vdso is on some machines.
    done = world.run()
    assert done.returncode == 0, done.stderr
    assert world.read() == [
        (2, 9, LAZY),
        (14, 2, LAZY),
        (16, 2, PRESENT),
        (20, 1, PRESENT),
        (22, 10, PRESENT),
        (32, 8, LAZY),
        (40, 2, PRESENT),
    ]
    wanted = [16, 17, None, *range(22, 32), 40, 41]
    assert world.pages == b"".join(
        b"w" * PAGE if number is None else world.content(number) for number in wanted
    )


def test_what_criu_wrote_of_lazy_pages_is_dropped(world: World) -> None:
    """Mappings that cannot be read are never left to a dump before."""
    world.write(
        [(0, 8, PRIVATE | ANONYMOUS), (8, 8, PRIVATE)],
        [(0, 2, PRESENT | LAZY), (2, 2, LAZY), (4, 6, PRESENT)],
        b"a" * 2 * PAGE + b"b" * 4 * PAGE + b"c" * 2 * PAGE,
    )
    assert world.run().returncode == 0
    assert world.read() == [(0, 8, LAZY), (8, 2, PRESENT)]
    assert world.pages == b"c" * 2 * PAGE
    # Once more changes nothing.
    assert world.run().returncode == 0
    assert world.read() == [(0, 8, LAZY), (8, 2, PRESENT)]
    assert world.pages == b"c" * 2 * PAGE


@pytest.mark.parametrize("seed", range(20))
def test_at_random(world: World, seed: int) -> None:
    chance = random.Random(seed)
    kinds = [PRIVATE | ANONYMOUS, PRIVATE, PRIVATE | ANONYMOUS | HUGETLB]
    mappings, pagemap, at = [], [], 0
    while at < 60:
        pages = chance.randint(1, 9)
        mappings.append((at, min(pages, 64 - at), chance.choice(kinds)))
        at += pages + chance.choice([0, 0, 0, 2])
    mapped = {
        page: flags == kinds[0] for first, n, flags in mappings for page in range(first, first + n)
    }
    expected, data, pages_wanted = {}, b"", b""
    at = 0
    while at < 64:
        pages = min(chance.randint(1, 12), 64 - at)
        flags = chance.choice([PARENT, PARENT, PRESENT])
        if chance.random() < 0.8:
            pagemap.append((at, pages, flags))
            for page in range(at, at + pages):
                lazy = mapped.get(page, False)
                expected[page] = LAZY if lazy else PRESENT
                if flags == PRESENT:
                    data += bytes([page]) * PAGE
                if not lazy:
                    written = bytes([page]) * PAGE if flags == PRESENT else world.content(page)
                    pages_wanted += written
        at += pages
    world.write(mappings, pagemap, data)
    done = world.run()
    assert done.returncode == 0, done.stderr
    found = {page: flags for first, n, flags in world.read() for page in range(first, first + n)}
    assert found == expected
    assert world.pages == pages_wanted


@pytest.mark.parametrize("flags", [0x80, PARENT | 0x10])
def test_flags_that_nobody_knows(world: World, flags: int) -> None:
    world.write([(0, 8, PRIVATE | ANONYMOUS)], [(0, 1, flags)])
    done = world.run()
    assert done.returncode == 1
    assert "unknown entry at" in done.stderr


@pytest.mark.parametrize("cut", [1, 5, 17])
def test_damaged(world: World, cut: int) -> None:
    world.write([(0, 8, PRIVATE)], [(0, 1, PARENT), (3, 1, PARENT)])
    world.pagemap.write_bytes(world.pagemap.read_bytes()[:-cut])
    done = world.run()
    assert done.returncode == 1
    assert "is cut off" in done.stderr


def test_data_that_are_missing(world: World) -> None:
    world.write([(0, 8, PRIVATE)], [(0, 2, PRESENT)], b"x" * PAGE)
    done = world.run()
    assert done.returncode == 1
    assert "cut off" in done.stderr


def test_what_cannot_be_read(world: World) -> None:
    world.write([(0, 8, PRIVATE)], [(-(world.base // PAGE) + 1, 1, PARENT)])
    done = world.run()
    assert done.returncode == 1
    assert f"cannot read the pages at 0x1000 of process {os.getpid()}" in done.stderr


def test_not_an_image(world: World) -> None:
    world.write([], [])
    world.pagemap.write_bytes(b"something else altogether")
    done = world.run()
    assert done.returncode == 1
    assert "is not the image that it should be" in done.stderr


def test_usage() -> None:
    assert subprocess.run([IMAGES], capture_output=True, check=False).returncode == 2
    assert subprocess.run([IMAGES, "--help"], capture_output=True, check=False).returncode == 0
    done = subprocess.run([IMAGES, "/nowhere"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot read /nowhere" in done.stderr


def test_areas_that_criu_cannot_fill(world: World) -> None:
    """criu counts pages to the end of an area in an int; what touches is one again when mapped."""
    tib, kib = 1 << 40, 1 << 10
    start = 0x10000000000 + 64 * kib
    world.write([(0, 8, PRIVATE | ANONYMOUS)], [(0, 8, PRESENT)], b"w" * 8 * PAGE)
    memory = world.directory / f"mm-{os.getpid()}.img"
    areas = [
        (start, 9 * tib, 0, PRIVATE | ANONYMOUS),
        (start + 9 * tib, 8 * tib - PAGE, 0, PRIVATE | ANONYMOUS),
        (start + 18 * tib, 8 * tib, 5 * PAGE, PRIVATE),
        (start + 27 * tib, 9 * tib, 0, ANONYMOUS | 1),
    ]
    parts = [
        message(f1=at, f2=at + size, f3=offset, f4=7, f5=3, f6=flags, f7=513, f8=1, f9=4)
        for at, size, offset, flags in areas
    ]
    vmas = [varint(14 << 3 | 2) + varint(len(part)) + part for part in parts]
    memory.write_bytes(image(MM, [message(f1=4096) + b"".join(vmas) + message(f15=1)]))
    pagemap = world.pagemap.read_bytes()
    done = world.run("--whole")
    assert done.returncode == 0, done.stderr
    data = bytearray(memory.read_bytes())
    [(at, end)] = entries(data)
    mm = list(fields(data, at, end))
    assert [number for number, *_ in mm] == [1, *[14] * (3 + 1 + 3 + 1), 15]
    found = []
    for number, _, at, end in mm:
        if number == 14:
            row = {number: value for number, value, _, _ in fields(data, at, end)}
            assert (row[4], row[5], row[7], row[8], row[9]) == (7, 3, 513, 1, 4)
            found.append((row[1], row[2] - row[1], row[3], row[6]))
    cut = 4 * tib - (start + 18 * tib) % (4 * tib)
    assert found == [
        (start, 3 * tib - 64 * kib, 0, PRIVATE | ANONYMOUS),
        (4 * tib, 4 * tib, 0, PRIVATE | ANONYMOUS),
        (8 * tib, 2 * tib + 64 * kib, 0, PRIVATE | ANONYMOUS),
        areas[1],
        (start + 18 * tib, cut, 5 * PAGE, PRIVATE),
        (start + 18 * tib + cut, 4 * tib, 5 * PAGE + cut, PRIVATE),
        (start + 22 * tib + cut, 4 * tib - cut, 5 * PAGE + cut + 4 * tib, PRIVATE),
        areas[3],
    ]
    assert (world.pagemap.read_bytes(), world.pages) == (pagemap, b"w" * 8 * PAGE)
