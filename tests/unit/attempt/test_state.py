"""Attempts as their files tell them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rekernel.attempt import brownout
from rekernel.attempt import state as attempt
from rekernel.attempt.events import EventStream, JsonLines


def test_follower_reads_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower = attempt.Follower(path)
    assert follower.poll() == []
    stream = EventStream()
    stream.subscribe(JsonLines(path))
    with stream.phase("dump"):
        assert [event.kind for event in follower.poll()] == ["begin"]
        assert follower.poll() == []
    assert [(event.kind, event.name) for event in follower.poll()] == [("end", "dump")]


def test_follower_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = json.dumps({"kind": "note", "name": "x", "at_ns": 5, "detail": {}}) + "\n"
    path.write_text(line + line[:10])
    follower = attempt.Follower(path)
    assert len(follower.poll()) == 1
    with path.open("a") as file:
        file.write(line[10:])
    assert len(follower.poll()) == 1


def test_follower_leaves_out_an_earlier_attempt(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    rows: list[dict[str, Any]] = [
        {"kind": "note", "name": "x", "at_ns": at, "detail": {}} for at in (5, 15)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [event.at_ns for event in attempt.Follower(path, since_ns=10).poll()] == [15]


def test_progress(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert attempt.progress(path).phase == ""
    stream = EventStream()
    stream.subscribe(JsonLines(path))
    with stream.phase("load kernel"):
        pass
    with pytest.raises(RuntimeError), stream.phase("dump"):
        assert attempt.progress(path).phase == "dump"
        raise RuntimeError
    state = attempt.progress(path)
    assert [name for name, _ in state.done] == ["load kernel", "dump"]
    assert state.phase == ""


@pytest.mark.parametrize(
    ("state", "active"),
    [("active", True), ("deactivating", True), ("inactive", False), ("failed", False)],
)
def test_unit_active(state: str, active: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "state_of", {attempt.UNIT: state}.__getitem__)
    assert attempt.unit_active() == active


def test_outcome_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    assert attempt.read_outcome(path) is None
    attempt.write_outcome({"schema": 1, "id": "x"}, path)
    assert attempt.read_outcome(path) == {"schema": 1, "id": "x"}


def test_brownout(tmp_path: Path) -> None:
    assert not brownout.observe(tmp_path).under_way
    agent = {"schema": 1, "handover": "used", "memory": {"backend": "region"}}
    (tmp_path / "agent.json").write_text(json.dumps(agent))
    (tmp_path / "drain.json").write_text('{"state": "serving", "pid": 4194999}')
    state = brownout.observe(tmp_path)
    assert state.under_way
    assert state.pager_died
    # Any of its processes can go on alone.
    for name in ("worker", "witness"):
        drain = {"state": "serving", "pid": 4194999, name: os.getpid()}
        (tmp_path / "drain.json").write_text(json.dumps(drain))
        assert not brownout.observe(tmp_path).pager_died
    (tmp_path / "drain.json").write_text('{"state": "drained", "pid": 4194999}')
    assert not brownout.observe(tmp_path).pager_died
    (tmp_path / "finished").touch()
    assert not brownout.observe(tmp_path).under_way


def test_half_written_json_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"state": ')
    assert brownout.read_json(tmp_path / "x.json") is None
    (tmp_path / "x.json").write_text("[1]")
    assert brownout.read_json(tmp_path / "x.json") is None
