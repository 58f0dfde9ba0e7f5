"""Containers on the new kernel: one that does not come back does not run twice."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rekernel.containers import restore
from rekernel.errors import RekernelError

ID = "ab" * 32
UNIT = f"libpod-{ID}.scope"
ITEM = {
    "id": ID,
    "name": "web",
    "unit": UNIT,
    "engine": "podman",
    "log": "/no/such/log",
    "leftovers": ["/checkpoint"],
}


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What podman's criu has let go of, where crun puts it; these are plain files."""
    found = tmp_path / "machine.slice" / UNIT
    (found / "container").mkdir(parents=True)
    (found / "container/cgroup.procs").write_text("7\n8\n")
    monkeypatch.setattr(restore, "_CGROUPS", tmp_path)
    monkeypatch.setattr(restore, "_LOGS", tmp_path / "logs")
    monkeypatch.setattr(restore, "_LOOK_S", 0.01)
    return found


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is run; podman cannot restore."""
    found: list[str] = []

    def run(argv: Sequence[str], **_: Any) -> str:
        found.append(" ".join(argv))
        if argv[:3] == ["podman", "container", "restore"]:
            raise RekernelError("podman failed (125): criu died")
        return ""

    monkeypatch.setattr(restore, "run", run)
    monkeypatch.setattr(restore, "run_json", lambda argv: [{"State": {"Running": False}}])
    return found


def test_it_ends_before_it_starts_afresh(group: Path, ran: list[str]) -> None:
    def ends() -> None:
        (group / "container/cgroup.procs").write_text("")
        ran.append("ended")

    timer = threading.Timer(0.2, ends)
    timer.start()
    tree = restore._restore(ITEM)
    timer.join()
    assert tree["failure"] == "podman could not restore it: podman failed (125): criu died"
    assert tree["not_ended"] == []
    assert (group / "cgroup.kill").read_text() == "1"
    assert ran[1:] == ["ended", "rm -rf -- /checkpoint", f"podman start {ID}"]


def test_one_that_does_not_end(
    group: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "_END_S", 0.05)
    tree = restore._restore(ITEM)
    assert tree["not_ended"] == [7, 8]
    # There would be two of it.
    assert ran[1:] == []


def test_nothing_is_left(group: Path, ran: list[str]) -> None:
    (group / "container/cgroup.procs").unlink()
    (group / "container").rmdir()
    group.rmdir()
    assert restore._restore(ITEM)["not_ended"] == []
    assert ran[-1] == f"podman start {ID}"
