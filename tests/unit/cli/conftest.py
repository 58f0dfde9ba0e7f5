"""A machine that is not this one, for the verbs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rekernel.attempt import state as attempt
from rekernel.attempt.undo import UndoList
from rekernel.cli import check, finish
from rekernel.report import history
from rekernel.report.history import History
from rekernel.systemd import bus


@pytest.fixture(autouse=True)
def systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd is the init system and answers."""
    monkeypatch.setattr(bus, "assert_there", lambda: None)
    monkeypatch.setattr(check, "Background", lambda: SimpleNamespace(result=None))


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/run/rekernel and the history in a temporary directory; root; nothing under way."""
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    for module in (
        "finish",
        "history",
        "plan",
        "report",
        "status",
        "in_unit",
        "aftermath",
        "upgrade",
    ):
        monkeypatch.setattr(f"rekernel.cli.{module}.History", lambda: History(tmp_path / "history"))
    monkeypatch.setattr(history, "_RUN", run)
    monkeypatch.setattr(finish, "RUN", run)
    for module in ("abort", "aftermath", "status"):
        monkeypatch.setattr(f"rekernel.cli.{module}.UndoList", lambda: UndoList(run / "undo.json"))
    monkeypatch.setattr(attempt, "unit_active", lambda: False)
    monkeypatch.setattr(attempt, "OUTCOME", run / "outcome.json")
    monkeypatch.setattr(attempt, "boot_id", lambda: "this boot")
    monkeypatch.setattr(attempt, "IMAGES", run / "images")
    return run
