"""After an upgrade: what must be done whatever else goes wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rekernel.carry.runtime_units import observe as runtime_units
from rekernel.carry.sysctls import observe as sysctls
from rekernel.cli import finish
from rekernel.errors import RekernelError
from rekernel.report import after
from rekernel.report.builder import After
from rekernel.report.history import History

_follow_drain = finish._follow_drain


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine on which everything goes well but for the history; what is done on it."""
    steps: list[Any] = []
    for name in ("_turn_swap_on", "_add_containers"):
        monkeypatch.setattr(finish, name, lambda agent: [])
    monkeypatch.setattr(finish, "_wait_for_units", lambda agent: None)
    monkeypatch.setattr(finish, "_follow_drain", lambda tell: 1)
    monkeypatch.setattr(finish, "_settle", lambda: steps.append("settled"))
    monkeypatch.setattr(after, "observe", lambda agent, history: After({}, []))
    monkeypatch.setattr(sysctls, "set_again", lambda wanted: [])
    monkeypatch.setattr(runtime_units, "start_again", lambda names: [])
    monkeypatch.setattr(finish, "run_command", lambda argv, check: steps.append(argv[-1]))

    def full(history: History, report: dict[str, Any], run: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(History, "record", full)
    return steps


def agent(*failed: str, **more: Any) -> dict[str, Any]:
    """What the agent left."""
    trees = [{"unit": name, "failure": "x", "name": name, "root_pid": 5} for name in failed]
    report: dict[str, Any] = {"units": [], "connections": [], "notes": []}
    known = {"id": "20260101-000000", "old_release": "1", "new_release": "2", "phases": []}
    return {**known, "trees": trees, "report": report, "memory": {}, **more}


def test_memory_comes_back_if_the_history_is_full(done: list[Any], tmp_path: Path) -> None:
    with pytest.raises(RekernelError, match=r"the report could not be kept: .*No space left"):
        finish._finish_used(agent(), History(tmp_path))
    assert done == ["settled"]


def test_what_is_left_of_a_unit_gets_no_second_one(done: list[Any]) -> None:
    left = agent("a.service", "b.service", not_ended={"a.service": [7]})
    finish._start_what_restarts(left)
    assert done == ["b.service"]


def test_what_is_left_of_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = [
        {"name": name, "unit": unit, "failure": "x", "not_ended": left}
        for name, unit, left in (("web", "libpod-1.scope", [7]), ("db", "libpod-2.scope", []))
    ]
    monkeypatch.setattr(finish, "_containers", lambda: (trees, ["c1 was not started again"]))
    told = agent(not_ended={"a.service": [9]}, missing=["a table"])
    assert finish._add_containers(told) == []
    # With that the upgrade is degraded.
    assert told["missing"] == ["a table", "c1 was not started again"]
    assert told["not_ended"] == {"a.service": [9], "libpod-1.scope": [7]}


def test_no_transient_command_is_run_twice(
    done: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_units, "has_transient_file", lambda name: name == "job.service")
    finish._start_what_restarts(agent("job.service", "app.service"))
    assert done == ["app.service"]


def test_a_pager_that_is_gone_does_not_keep_the_region(
    done: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(History, "record", lambda self, report, run: reports.append(report))
    monkeypatch.setattr(finish, "RUN", tmp_path)
    (tmp_path / "agent.json").write_text('{"memory": {"backend": "region"}}')
    drain = {"state": "serving", "bytes_left": 8192, "missing": [{"pid": 7, "pages": 2}]}
    (tmp_path / "drain.json").write_text(json.dumps(drain | {"pid": 0}))
    monkeypatch.setattr(finish, "_follow_drain", _follow_drain)
    finish._finish_used(agent(resumed_ns=5, frozen_ns=1), History(tmp_path))
    assert done == ["settled"]
    last = reports[-1]
    assert (last["outcome"], last["brownout_s"]) == ("degraded", None)
    assert last["error"] == "memory was lost: process 7"


def test_processes_that_wait_for_ever_are_told_at_once(
    done: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(finish, "RUN", tmp_path)
    monkeypatch.setattr(finish, "_follow_drain", _follow_drain)
    monkeypatch.setattr(finish, "_DRAIN_POLL", 0)
    (tmp_path / "agent.json").write_text('{"memory": {"backend": "region"}}')
    stopped = [{"pid": 7, "pages": 2}]

    def says(state: str) -> None:
        found = {"state": state, "stopped": stopped, "pid": 0, "witness": os.getpid()}
        (tmp_path / "drain.json").write_text(json.dumps(found))

    def record(history: History, report: dict[str, Any], run: Path) -> None:
        reports.append(report)
        if len(reports) == 2:
            # The process is ended, and nobody holds anything any more.
            says("drained")

    monkeypatch.setattr(History, "record", record)
    monkeypatch.setattr(finish, "_wait_for_exit", lambda drain: done.append(drain["state"]))
    says("stopped")
    finish._finish_used(agent(resumed_ns=5, frozen_ns=1), History(tmp_path))
    assert done == ["drained", "settled"]
    assert [report["outcome"] for report in reports] == ["degraded"] * 3
    assert reports[1]["error"] == "memory was lost: process 7"
    assert reports[2]["brownout_s"] is not None
