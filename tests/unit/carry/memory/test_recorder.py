"""The recorder of page maps, as a program that answers what a test says."""

from __future__ import annotations

import json
import mmap
import signal
from pathlib import Path

import pytest

from rekernel.carry.memory import dax, migrations, recorder
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.entry import Extent, Memory
from rekernel.carry.memory.recorder import PageRecord, memory_entry
from rekernel.carry.memory.region import Layout
from rekernel.errors import RekernelError
from rekernel.records import asdict
from rekernel.run import answering

WHERE = Layout(Range(0, 1000), Range(0, 100), Range(100, 1000))


def test_memory_in_place() -> None:
    record = PageRecord(
        Path("map"), Path("strays"), (Extent(200, 300), Extent(900, 1000)), 17, 3, 5
    )
    found = memory_entry(WHERE, record, 4096)
    assert asdict(found) == asdict(
        Memory(
            "region",
            Extent(0, 1000),
            (Extent(200, 300), Extent(900, 1000)),
            (Extent(100, 200), Extent(300, 900)),
            Extent(0, 100),
            4096,
            3 * mmap.PAGESIZE,
        )
    )


def started(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> recorder.Recorder:
    program = tmp_path / "recorder"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(recorder, "RECORDER", str(program))
    monkeypatch.setattr(recorder, "ram_ranges", lambda where: [Range(100, 500), Range(600, 1000)])
    monkeypatch.setattr(dax, "block_size", lambda: 100)
    monkeypatch.setattr(migrations, "count", lambda: 5)
    return recorder.Recorder(tmp_path, WHERE, [7, 8], 4096, 1 << 20)


def test_the_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = {
        "pages": 9,
        "stray_pages": 2,
        "blocks": [
            {"start": 200, "used_pages": 1},
            {"start": 300, "used_pages": 0},
            {"start": 600, "used_pages": 4},
            {"start": 700, "used_pages": 4},
        ],
    }
    script = f"echo \"$@\" > {tmp_path}/said; echo '{json.dumps(summary)}'"
    record = started(script, tmp_path, monkeypatch).finish(0)
    assert record.occupied == (Extent(200, 300), Extent(600, 800))
    assert (record.pages, record.stray_pages) == (9, 2)
    assert record.is_true()
    monkeypatch.setattr(migrations, "count", lambda: record.moves + 1)
    assert not record.is_true()
    words = (tmp_path / "said").read_text().split()
    assert words[0] == "record"
    assert words[words.index("--region") + 1] == "0x64:0x1f4,0x258:0x3e8"
    assert words[words.index("--stray-base") + 1] == "0x1000"
    assert words[-2:] == ["7", "8"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo rekernel-pagemap: 7: gone; exit 1", "rekernel-pagemap: 7: gone"),
        ("exit 3", "the recorder ended with 3"),
    ],
)
def test_a_recorder_that_fails(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RekernelError, match=f"^the page map could not be recorded: {words}$"):
        started(script, tmp_path, monkeypatch).finish(0)


def test_a_recorder_that_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_RECORDER_S", 0.3)
    stuck = started("exec sleep 60", tmp_path, monkeypatch)
    with pytest.raises(RekernelError, match=r"^the recorder of the page map did not end within"):
        stuck.finish(0)
    assert stuck._process.returncode == -signal.SIGKILL


def test_a_recorder_that_nobody_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancelled() -> None:
        raise InterruptedError

    stuck = started("exec sleep 60", tmp_path, monkeypatch)
    with answering(cancelled), pytest.raises(InterruptedError):
        stuck.finish(0)
    assert stuck._process.returncode == -signal.SIGKILL
    stuck.stop()


def test_memory_in_images() -> None:
    assert memory_entry(None, None, 0) == Memory("image", None, (), (), None)
