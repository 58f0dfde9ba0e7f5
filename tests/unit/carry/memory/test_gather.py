"""Which ranges are moved, and that the processes do not mind."""

from __future__ import annotations

import ctypes
import json
import mmap
import os

import pytest

from rekernel.carry.memory import gather as module
from rekernel.carry.memory import recorder
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.recorder import RECORDER, _region_option

HUGE = 2 << 20


def test_how_the_region_is_told() -> None:
    assert _region_option([]) == "none"
    assert _region_option([Range(0x1000, 0x3000), Range(0x10000, 0x20000)]) == (
        "0x1000:0x3000,0x10000:0x20000"
    )


def test_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """On our own memory; what is no whole mapping, or a process that is gone, is passed over."""
    with mmap.mmap(-1, 3 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[:] = b"x" * len(area)
        anchor = ctypes.c_char.from_buffer(area)
        first = -(-ctypes.addressof(anchor) // HUGE) * HUGE
        chunks = [HUGE, first, first + HUGE]
        asked: list[list[str]] = []

        def stat(argv: list[str]) -> str:
            asked.append(argv)
            spaces = [
                {"pid": 2**22 + 1, "stray_chunks": [first]},
                {"pid": os.getpid(), "stray_chunks": chunks},
            ]
            return json.dumps({"spaces": spaces}) + "\n"

        monkeypatch.setattr(recorder, "run", stat)
        moved = module.gather([os.getpid(), 2**22 + 1], [Range(0x1000, 0x2000)])
        assert asked[0][:5] == [RECORDER, "stat", "--stray-chunks", "--region", "0x1000:0x2000"]
        # A kernel without huge pages moves none.
        assert moved in (0, HUGE, 2 * HUGE)
        assert area[:] == b"x" * len(area)
        del anchor
