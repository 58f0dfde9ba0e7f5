from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rekernel.attempt.undo import UndoList
from rekernel.carry.swap import observe as swap
from rekernel.carry.swap.observe import SwapArea
from rekernel.errors import BlockedError, RekernelError
from rekernel.transition import staging

SWAPS = """\
Filename				Type		Size		Used		Priority
/dev/vda2                               partition	524284		1024		-2
/srv/a\\040file                          file		524284		0		5
"""


def test_observe(tmp_path: Path) -> None:
    assert swap.observe(tmp_path) == []
    (tmp_path / "swaps").write_text(SWAPS)
    assert swap.observe(tmp_path) == [
        SwapArea("/dev/vda2", 1 << 20, -2),
        SwapArea("/srv/a file", 0, 5),
    ]


def test_turn_on_what_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "observe", lambda: [SwapArea("/dev/vda2", 0, -2)])
    calls: list[list[str]] = []
    monkeypatch.setattr(swap, "run", calls.append)
    swap.turn_on("/dev/vda2", -2)
    swap.turn_on("/swap file", 5)
    swap.turn_on("/dev/vdb", -3)
    assert calls == [
        ["swapon", "--priority", "5", "--", "/swap file"],
        ["swapon", "--", "/dev/vdb"],
    ]


@pytest.fixture
def undo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UndoList:
    monkeypatch.setattr(staging, "SCRATCH", tmp_path)
    monkeypatch.setattr(staging, "shortage", lambda areas: "")
    return UndoList(tmp_path / "undo.json")


def starting(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    def start(argv: list[str], *, output: str) -> subprocess.Popen[bytes]:
        assert argv == ["swapoff", "--", "/dev/vda2"]
        return subprocess.Popen(["sh", "-c", f"exec > {output} 2>&1; {words}"])

    monkeypatch.setattr(staging, "start", start)


AREAS = [SwapArea("/dev/vda2", 0, -2)]


def test_off_is_undone(undo: UndoList, monkeypatch: pytest.MonkeyPatch) -> None:
    starting(monkeypatch, "true")
    staging.swap_off(AREAS, undo, lambda: None)
    on: list[tuple[str, int]] = []
    monkeypatch.setattr(swap, "turn_on", lambda *area: on.append(area))
    assert undo.run() == ()
    assert on == [("/dev/vda2", -2)]


def test_what_keeps_it_on(undo: UndoList, monkeypatch: pytest.MonkeyPatch) -> None:
    starting(monkeypatch, "echo no memory; exit 1")
    with pytest.raises(RekernelError, match="/dev/vda2 cannot be turned off: no memory"):
        staging.swap_off(AREAS, undo, lambda: None)
    monkeypatch.setattr(staging, "shortage", lambda areas: "9 MiB are swapped out")
    with pytest.raises(BlockedError, match="9 MiB are swapped out"):
        staging.swap_off(AREAS, undo, lambda: None)


def test_somebody_wants_to_stop(undo: UndoList, monkeypatch: pytest.MonkeyPatch) -> None:
    starting(monkeypatch, "exec sleep 100")

    def cancelled() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        staging.swap_off(AREAS, undo, cancelled)
    assert len(undo) == 1
