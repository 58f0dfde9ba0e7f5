"""What criu is told of a dump before."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from rekernel.criu import parent_images
from rekernel.criu.images import entries, fields

PAGE = 4096


def test_all_of_user_space_is_there(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    # Of one for which there was no room.
    (parent / "inventory.img").touch()
    parent_images.pretend(parent, [7, 8])
    assert (parent / "inventory.img").stat().st_size
    parent_images.pretend(parent, [8, 9], again=True)
    assert sorted(path.name for path in parent.iterdir()) == [
        "inventory.img",
        "pagemap-7.img",
        "pagemap-8.img",
        "pagemap-9.img",
        "pages-1.img",
    ]
    data = bytearray((parent / "pagemap-9.img").read_bytes())
    head, everything = (
        {number: value for number, value, _, _ in fields(data, start, end)}
        for start, end in entries(data)
    )
    assert head == {1: 1}
    # From 0, 2**47 bytes; present.
    assert everything == {1: 0, 2: 0, 4: 4, 5: 2**47 // PAGE}


def test_inventory(tmp_path: Path) -> None:
    parent_images.pretend(tmp_path, [])
    data = bytearray((tmp_path / "inventory.img").read_bytes())
    magic, length = struct.unpack_from("<II", data)
    assert (magic, length) == (0x58313116, len(data) - 8)
    found = {number: value for number, value, _, _ in fields(data, 8, len(data))}
    # criu has 64 bits for it, and divides it by microseconds a tick.
    assert found[1] == 2
    assert 2**61 < found[8] < 2**64


def test_a_process_without_memory() -> None:
    process = subprocess.Popen(["true"])
    # A zombie now.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    parent_images.nothing_written([process.pid, os.getpid()])
    process.wait()
