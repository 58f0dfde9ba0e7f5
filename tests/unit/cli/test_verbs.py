"""The verbs that look back, and those that run in units of their own."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rekernel import cli
from rekernel.attempt import brownout
from rekernel.attempt import state as attempt
from rekernel.attempt.problem import Problem
from rekernel.carry.memory import pager, region
from rekernel.cli import abort, aftermath, containers_up, finish, region_up
from rekernel.containers import restore
from rekernel.errors import RolledBackError
from rekernel.records import asdict
from rekernel.report import after, builder
from rekernel.report.builder import After, UnitAfter
from rekernel.report.history import History
from rekernel.systemd.units import Unit

AGENT = Path(__file__).parents[1] / "report" / "data" / "agent-6.12-to-7.3.json"
ID = "20261122-220201"
NO_ARGUMENTS = argparse.Namespace()


@pytest.fixture
def history(run_directory: Path, tmp_path: Path) -> History:
    return History(tmp_path / "history")


@pytest.fixture
def recorded(history: History, tmp_path: Path) -> dict[str, Any]:
    """One report in the history."""
    agent = json.loads(AGENT.read_text())
    units = {
        item["unit"]: UnitAfter(True, item["main_pid"], item["cgroup"], tuple(item["processes"]))
        for item in agent["report"]["units"]
    }
    report = builder.carried_over(agent, After(units), brownout_s=3.5)
    history.record(report, tmp_path / "none")
    return report


def in_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_history(recorded: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history"]) == 0
    assert ID in capsys.readouterr().out
    assert cli.main(["history", "--json"]) == 0
    found = in_json(capsys)
    assert found["schema"] == 1
    assert found["upgrades"][0]["outcome"] == "done"


def test_history_of_nothing(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history"]) == 0
    assert capsys.readouterr().out == "No upgrade was tried on this machine yet.\n"
    assert cli.main(["report"]) == 6
    assert "no upgrade was tried on this machine yet" in capsys.readouterr().err


def test_report(recorded: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "--json"]) == 0
    assert in_json(capsys) == recorded
    assert cli.main(["report", ID]) == 0
    assert "2 of 2 units carried over" in capsys.readouterr().out
    assert cli.main(["report", "--all", ID]) == 0
    assert "2 of 2 units carried over" in capsys.readouterr().out
    assert cli.main(["report", "20200101-000000"]) == 2
    assert "no report 20200101-000000" in capsys.readouterr().err


def test_report_as_html(
    recorded: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.html"
    assert cli.main(["report", "--html", str(target)]) == 0
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert cli.main(["report", "--html", "-"]) == 0
    assert "<svg" in capsys.readouterr().out
    assert cli.main(["report", "--html", str(tmp_path / "no" / "x.html")]) == 1
    assert "No such file" in capsys.readouterr().err


def status(capsys: pytest.CaptureFixture[str]) -> Any:
    assert cli.main(["status", "--json"]) == 0
    return in_json(capsys)


def test_status(
    recorded: dict[str, Any],
    run_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = brownout.Brownout(False, "none", None)
    monkeypatch.setattr(brownout, "observe", lambda: state)
    monkeypatch.setattr(region, "current", lambda: None)
    found = status(capsys)
    assert (found["brownout"], found["drained"], found["drain"]) == (False, True, None)
    assert found["upgrade"] is None
    assert found["last"]["id"] == ID
    state = brownout.Brownout(
        True, "used", {"state": "draining", "pages_total": 200, "pages_home": 50, "bytes_left": 9}
    )
    found = status(capsys)
    assert (found["brownout"], found["drained"]) == (True, False)
    assert found["drain"]["finished"] is False
    assert cli.main(["status"]) == 0
    assert "draining, 25% of 200 pages home, 9 B left" in capsys.readouterr().out
    state = brownout.Brownout(True, "used", None)
    assert status(capsys)["drain"] == {"state": "waiting", "finished": False}
    monkeypatch.setattr(attempt, "unit_active", lambda: True)
    monkeypatch.setattr(
        attempt, "progress", lambda: attempt.Progress("dump", 1, (("freeze", 0.1),))
    )
    assert status(capsys)["upgrade"]["phase"] == "dump"
    assert cli.main(["status"]) == 0
    assert "upgrade  dump for" in capsys.readouterr().out


@pytest.fixture
def new_kernel(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """systemd and the region after a jump; what the region was told."""
    settled: list[bool] = []
    agent = json.loads(AGENT.read_text())
    units = {
        item["unit"]: UnitAfter(True, item["main_pid"], item["cgroup"], tuple(item["processes"]))
        for item in agent["report"]["units"]
    }
    monkeypatch.setattr(after, "observe", lambda agent, history: After(units))
    monkeypatch.setattr(finish, "show", lambda names: [])
    monkeypatch.setattr(finish, "run_command", lambda argv, check=True: "")
    monkeypatch.setattr(region, "settle", lambda *, drained: settled.append(drained))
    monkeypatch.setattr(pager, "ask", lambda command: None)
    monkeypatch.setattr(finish, "_DRAIN_POLL", 0.0)
    return settled


def agent_says(run: Path, **changes: Any) -> None:
    (run / "agent.json").write_text(json.dumps(json.loads(AGENT.read_text()) | changes))


def drain_says(run: Path, state: str, pid: int = 4194999) -> None:
    text = json.dumps({"state": state, "pid": pid, "bytes_left": 8192})
    (run / "drain.json").write_text(text)


def test_finish(run_directory: Path, history: History, new_kernel: list[bool]) -> None:
    agent_says(run_directory)
    drain_says(run_directory, "drained")
    (run_directory / "restore" / "nginx").mkdir(parents=True)
    (run_directory / "restore" / "nginx" / "restore.log").write_text("log")
    assert finish.run(NO_ARGUMENTS) == 0
    report = history.get(ID)
    assert report["outcome"] == "done"
    assert report["brownout_s"] is not None
    assert new_kernel == [True]
    assert (run_directory / "finished").exists()
    assert not (run_directory / "restore").exists()
    logs = history.directory / ID / "logs" / "restore-nginx-restore.log"
    assert logs.read_text() == "log"
    # Once more: nothing happens.
    assert finish.run(NO_ARGUMENTS) == 0
    assert new_kernel == [True]


def test_finish_waits_for_the_drain_with_a_report_already_there(
    run_directory: Path,
    history: History,
    new_kernel: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent_says(run_directory)
    drain_says(run_directory, "serving", os.getpid())

    def drained(command: str) -> dict[str, Any]:
        assert command == "drain"
        assert history.get(ID)["brownout_s"] is None
        assert new_kernel == []
        drain_says(run_directory, "drained")
        return {}

    monkeypatch.setattr(pager, "ask", drained)
    assert finish.run(NO_ARGUMENTS) == 0
    assert new_kernel == [True]


def test_finish_when_the_pager_died(
    run_directory: Path, history: History, new_kernel: list[bool]
) -> None:
    agent_says(run_directory)
    drain_says(run_directory, "draining")
    assert finish.run(NO_ARGUMENTS) == 0
    report = history.get(ID)
    assert (report["outcome"], report["exit_code"]) == ("degraded", 4)
    assert [item["why"] for item in report["memory"]["losses"]] == ["unserved"]
    assert report["brownout_s"] is None
    # Nothing can bring these pages any more, and nothing keeps the next upgrade from running.
    assert new_kernel == [True]
    assert (run_directory / "finished").exists()


def test_finish_with_images(run_directory: Path, history: History, new_kernel: list[bool]) -> None:
    agent_says(run_directory, memory={"backend": "image", "occupied": [], "free": []})
    assert finish.run(NO_ARGUMENTS) == 0
    assert history.get(ID)["backend"] == "image"


@pytest.mark.parametrize("state", ["active", "failed", "inactive"])
def test_finish_with_containers(
    state: str,
    run_directory: Path,
    history: History,
    new_kernel: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted, result = run_directory / "containers.json", run_directory / "containers-up.json"
    wanted.touch()
    monkeypatch.setattr(finish, "WANTED", str(wanted))
    monkeypatch.setattr(finish, "RESULT", result)
    monkeypatch.setattr(finish, "_UNITS_POLL", 0)
    monkeypatch.setattr(finish, "_BOOT_S", 0)
    states = ["inactive", "activating", "activating", state]

    def show(names: list[str]) -> list[Unit]:
        if names != ["rekernel-containers.service"]:
            return []
        now = states.pop(0) if len(states) > 1 else states[0]
        if now == "active":
            wanted.unlink()
            tree = {
                "name": "web",
                "unit": "libpod-x.scope",
                "root_pid": 7,
                "failure": "",
                "log": "",
            }
            trees = [tree | {"resumed_ns": json.loads(AGENT.read_text())["frozen_ns"] + 2 * 10**9}]
            result.write_text(json.dumps({"schema": 1, "trees": trees}))
        return [Unit(names[0], now, "", "", 0, "", "", {})]

    # It has begun, or never does.
    if state == "inactive":
        states[:] = [state]
    else:
        monkeypatch.setattr(finish, "_BOOT_S", 60)
    monkeypatch.setattr(finish, "show", show)
    agent_says(run_directory)
    drain_says(run_directory, "drained")
    assert finish.run(NO_ARGUMENTS) == 0
    notes = history.get(ID)["notes"]
    expected = "container web ran again 2.0 s after the freeze"
    assert (expected in notes) == (state == "active")


@pytest.mark.parametrize("wanted", [True, False])
def test_finish_leaves_what_containers_are_restored_from(
    wanted: bool,
    run_directory: Path,
    history: History,
    new_kernel: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forgotten: list[bool] = []
    path = run_directory / "containers.json"
    if wanted:
        path.touch()
    monkeypatch.setattr(finish, "WANTED", str(path))
    monkeypatch.setattr(finish, "forget", lambda: forgotten.append(True))
    trees = [{"name": "web", "failure": ""}, {"name": "db", "failure": "podman could not"}]
    monkeypatch.setattr(finish, "_containers", lambda: (trees if wanted else [], []))
    text = json.dumps({"schema": 1, "id": ID, "handover": "failed", "reason": "it stood still"})
    (run_directory / "agent.json").write_text(text)
    assert finish.run(NO_ARGUMENTS) == 0
    assert bool(forgotten) != wanted
    notes = ["container web: it was carried over all the same", "container db: podman could not"]
    assert history.get(ID)["notes"] == (notes if wanted else [])


@pytest.mark.parametrize("handover", ["refused", "failed"])
def test_finish_when_nothing_came_over(
    handover: str, run_directory: Path, history: History, new_kernel: list[bool]
) -> None:
    history.begin(ID, {"boot_id": "another", "old_release": "6.12.1", "new_release": "7.3.4"})
    told = {"handover": handover, "reason": "damaged (checksum)", "missing": ["md0 lacks sdb"]}
    text = json.dumps({"schema": 1, **told})
    (run_directory / "agent.json").write_text(text)
    assert finish.run(NO_ARGUMENTS) == 0
    report = history.get(ID)
    assert (report["outcome"], report["old_release"]) == ("failed", "6.12.1")
    assert "damaged (checksum)" in report["error"]
    assert report["notes"] == ["md0 lacks sdb"]


def test_finish_after_a_crash(
    run_directory: Path,
    history: History,
    new_kernel: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forgotten: list[bool] = []
    monkeypatch.setattr(finish, "WANTED", str(run_directory / "containers.json"))
    monkeypatch.setattr(finish, "forget", lambda: forgotten.append(True))
    images, reported, this_boot = (
        run_directory / "images" / name for name in (ID, "20261121-220000", "20261122-230000")
    )
    for directory in (images, reported, this_boot):
        directory.mkdir(parents=True)
        (directory / "store").touch()
    history.begin(ID, {"boot_id": "another", "new_release": "7.3.4"})
    history.begin("20261122-230000", {"boot_id": "this boot"})
    assert finish.run(NO_ARGUMENTS) == 0
    assert "started anew during the upgrade" in history.get(ID)["error"]
    assert [item["id"] for item in history.unfinished()] == ["20261122-230000"]
    # They have what processes had in memory.
    assert not images.exists()
    assert not reported.exists()
    assert this_boot.exists()
    assert forgotten == [True]


def test_finish_during_an_attempt(
    run_directory: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by hand, or with its target: what is under way has no report yet."""
    monkeypatch.setattr(attempt, "unit_runs", lambda: True)
    assert finish.run(NO_ARGUMENTS) == 0
    assert not (run_directory / "finished").exists()
    # Nor do those come back that it has stopped, or is about to carry.
    restored: list[bool] = []
    monkeypatch.setattr(restore, "run_all", lambda: restored.append(True))
    assert containers_up.run(NO_ARGUMENTS) == 0
    assert restored == []
    monkeypatch.setattr(attempt, "unit_runs", lambda: False)
    assert containers_up.run(NO_ARGUMENTS) == 0
    assert restored == [True]


@pytest.mark.parametrize("carried", [True, False])
def test_region_up(
    carried: bool, run_directory: Path, new_kernel: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pager, "SOCKET", run_directory / "pager.sock")
    monkeypatch.setattr(pager, "ask", asked.append)
    if carried:
        pager.SOCKET.touch()
    assert region_up.run(NO_ARGUMENTS) == 0
    assert new_kernel == [not carried]
    assert asked == (["drain"] if carried else [])


def test_region_up_that_fails(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*, drained: bool) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(region, "settle", fail)
    assert cli.main(["region-up"]) == 1
    assert "the carry region cannot be set up: [Errno 16]" in capsys.readouterr().err


FROZEN = Problem("thaw", "/x", "busy", "echo 0")


class FakeUndo:
    """An undo list with these steps, of which some cannot be undone."""

    steps = 0
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return self.steps

    def run(self) -> tuple[Problem, ...]:
        return self.problems

    left = run


@pytest.fixture
def undo(monkeypatch: pytest.MonkeyPatch, run_directory: Path) -> type[FakeUndo]:
    fake = type("Fake", (FakeUndo,), {})
    monkeypatch.setattr(aftermath, "UndoList", fake)
    monkeypatch.setattr(abort, "UndoList", fake)
    monkeypatch.setattr("rekernel.cli.status.UndoList", fake)
    monkeypatch.setattr("rekernel.attempt.lock.LOCK", run_directory / "lock")
    return fake


def test_abort_without_an_upgrade(undo: type[FakeUndo], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["abort"]) == 6
    assert capsys.readouterr().err.startswith("rekernel: no upgrade is under way\n")


def test_abort_of_leftovers(undo: type[FakeUndo], capsys: pytest.CaptureFixture[str]) -> None:
    undo.steps = 2
    assert cli.main(["abort"]) == 0
    assert "is undone; everything runs on" in capsys.readouterr().out
    undo.problems = (FROZEN,)
    assert cli.main(["abort", "--json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["undone"] is False
    assert document["not_undone"] == [asdict(FROZEN)]
    assert captured.err == "rekernel: not undone: thaw /x: busy (by hand: echo 0)\n"


def test_abort_of_a_running_upgrade(
    undo: type[FakeUndo], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [True, True, False] * 2
    monkeypatch.setattr(attempt, "unit_active", lambda: states.pop(0))
    stopped: list[bool] = []
    monkeypatch.setattr(attempt, "stop_unit", lambda: stopped.append(True))
    attempt.write_outcome(
        builder.undone({"id": ID}, RolledBackError("stopped by SIGTERM")), attempt.OUTCOME
    )
    monkeypatch.setattr(attempt, "read_outcome", lambda: json.loads(attempt.OUTCOME.read_text()))
    assert cli.main(["abort"]) == 0
    assert capsys.readouterr().out == "stopped by SIGTERM\n"
    assert stopped == [True]
    left = builder.undone({"id": ID}, RolledBackError("stopped by SIGTERM"), (), [FROZEN])
    monkeypatch.setattr(attempt, "read_outcome", lambda: left)
    states = [True, False]
    assert cli.main(["abort"]) == 1
    assert "not undone: thaw /x: busy (by hand: echo 0)" in capsys.readouterr().err
    monkeypatch.setattr(attempt, "read_outcome", lambda: None)
    states = [True, False]
    assert cli.main(["abort"]) == 1
    assert "left no report" in capsys.readouterr().err


def test_after_death_puts_a_killed_attempt_into_the_history(
    undo: type[FakeUndo], history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Any] = []
    monkeypatch.setattr(attempt, "write_outcome", outcomes.append)
    monkeypatch.setenv("EXIT_STATUS", "KILL")
    history.begin(ID, {"boot_id": "this boot", "old_release": "6.12.1"})
    assert cli.main(["abort", "--after-death"]) == 0
    report = history.get(ID)
    assert (report["outcome"], report["exit_code"]) == ("rolled-back", 5)
    assert "died (KILL)" in report["error"]
    assert outcomes == [report]


def test_after_death_of_an_attempt_that_told_its_end(
    undo: type[FakeUndo], history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "read_outcome", lambda: {"schema": 1})
    assert cli.main(["abort", "--after-death"]) == 0
    assert history.ids() == []


def test_after_death_of_an_attempt_that_could_not_be_kept(
    undo: type[FakeUndo], history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = builder.undone({"id": ID}, RolledBackError("stopped by SIGTERM"))
    monkeypatch.setattr(attempt, "read_outcome", lambda: told)
    monkeypatch.setattr(attempt, "write_outcome", lambda report: None)
    history.begin(ID, {"boot_id": "this boot"})
    assert cli.main(["abort", "--after-death"]) == 0
    assert history.get(ID)["error"] == "stopped by SIGTERM"


def test_after_death_that_cannot_undo(
    undo: type[FakeUndo], history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    undo.steps, undo.problems = 1, (FROZEN,)
    outcomes: list[Any] = []
    monkeypatch.setattr(attempt, "write_outcome", outcomes.append)
    history.begin(ID, {"boot_id": "this boot"})
    assert cli.main(["abort", "--after-death"]) == 1
    report = history.get(ID)
    assert (report["outcome"], report["exit_code"]) == ("not-undone", 1)
    assert report["not_undone"] == [asdict(FROZEN)]
    assert outcomes == [report]
    # By hand, and then once more: the history knows of that, too.
    undo.problems = ()
    assert cli.main(["abort"]) == 0
    report = history.get(ID)
    assert (report["outcome"], report["exit_code"]) == ("rolled-back", 5)
    assert report["not_undone"] == []
    assert report["notes"] == ["undone only later: thaw /x: busy (by hand: echo 0)"]


def test_what_is_undone_of_an_earlier_boot_is_not_ours(
    undo: type[FakeUndo], history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "write_outcome", lambda report: None)
    earlier = "20261122-000000"
    history.begin(earlier, {"boot_id": "another boot"})
    history.record(builder.undone({"id": earlier}, RolledBackError("x"), (), [FROZEN]))
    undo.steps = 1
    history.begin(ID, {"boot_id": "this boot"})
    assert cli.main(["abort", "--after-death"]) == 0
    assert history.get(earlier)["outcome"] == "not-undone"
    assert history.get(ID)["outcome"] == "rolled-back"


def test_what_an_attempt_left_is_undone_when_its_unit_ends(
    undo: type[FakeUndo], history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has told that it could not; ExecStopPost= can, or can some of it."""
    history.begin(ID, {"boot_id": "this boot"})
    told = builder.undone({"id": ID}, RolledBackError("stopped"), (), [FROZEN])
    history.record(told)
    monkeypatch.setattr(attempt, "read_outcome", lambda: told)
    outcomes: list[Any] = []
    monkeypatch.setattr(attempt, "write_outcome", outcomes.append)
    undo.steps = 1
    assert cli.main(["abort", "--after-death"]) == 0
    assert outcomes == [history.get(ID)]
    assert outcomes[0]["outcome"] == "rolled-back"


def test_status_of_what_is_not_undone(
    undo: type[FakeUndo], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undo.problems = (FROZEN,)
    assert cli.main(["status"]) == 0
    text = capsys.readouterr().out
    assert "not undone: thaw /x: busy (by hand: echo 0)" in text
    assert "rekernel abort" in text
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_undone"] == [asdict(FROZEN)]
    # What is under way is not left.
    monkeypatch.setattr(attempt, "unit_active", lambda: True)
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_undone"] == []
