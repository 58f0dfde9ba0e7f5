"""Unix sockets in criu's images."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from imagefiles import image, message

from rekernel.criu.images import ImageError, entries, fields
from rekernel.transition.amend import Wanted, amend, amend_images

OTHER = message(f1=1, f2=9, f3=message(f1=9, f2=0o100000, f3=0, f6=b"/var/log/x"))


def socket_entry(inode: int, peer: int, flags: int = 0) -> bytes:
    """A file_entry with a unix_sk_entry."""
    inner = message(
        f1=3, f2=inode, f3=2, f4=1, f5=2, f6=flags, f7=0, f8=peer, f9=b"", f11=b"/run/x"
    )
    return message(f1=9, f2=3, f16=inner)


def peers(data: bytearray) -> list[int]:
    found = []
    for start, end in entries(data):
        for number, _, inner, after in fields(data, start, end):
            if number == 16:
                found += [value for key, value, *_ in fields(data, inner, after) if key == 8]
    return found


def test_only_what_is_named_loses_its_peer() -> None:
    data = image(OTHER, socket_entry(5, 70000), socket_entry(6, 70001), socket_entry(7, 1))
    length = len(data)
    assert amend(data, Wanted({5, 7}), {})[0] == 2
    assert peers(data) == [0, 70001, 0]
    assert len(data) == length


def test_all_trees(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "files.img").write_bytes(image(socket_entry(5, 300)))
    (tmp_path / "b" / "files.img").write_bytes(image(socket_entry(6, 300)))
    assert amend_images(tmp_path.iterdir(), Wanted()).unconnected == set()
    # What there was before it was mended is what counts.
    assert amend_images(tmp_path.iterdir(), Wanted({6})).unconnected == set()
    # What stands for the far end has no peer, wherever that is.
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "files.img").write_bytes(image(socket_entry(5, 0, flags=1)))
    assert peers(bytearray((tmp_path / "a" / "files.img").read_bytes())) == [300]
    assert peers(bytearray((tmp_path / "b" / "files.img").read_bytes())) == [0]
    assert amend_images(tmp_path.iterdir(), Wanted()).unconnected == {6}


def test_what_is_no_image() -> None:
    with pytest.raises(ImageError):
        amend(bytearray(b"x" * 20), Wanted({1}), {})
    with pytest.raises(ImageError, match="a socket has no field"):
        amend(image(message(f16=message(f1=1))), Wanted({1}), {})


def test_descriptors_on_their_way(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    # As socket_entry() has it, each is number 3 for other images.
    (tmp_path / "a" / "files.img").write_bytes(image(OTHER, socket_entry(5, 300)))
    assert amend_images(tmp_path.iterdir(), Wanted()).with_descriptors == set()

    def packet(payload: bytes, **more: bytes) -> bytes:
        entry = message(f1=3, f2=len(payload), **more)
        return struct.pack("<I", len(entry)) + entry + payload

    queue = tmp_path / "a" / "sk-queues.img"
    queue.write_bytes(bytes(image()) + packet(b"plain") + packet(b"x" * 300))
    assert amend_images(tmp_path.iterdir(), Wanted()).with_descriptors == set()
    queue.write_bytes(bytes(image()) + packet(b"plain") + packet(b"x", f4=message(f1=1, f2=9)))
    assert amend_images(tmp_path.iterdir(), Wanted()).with_descriptors == {5}
