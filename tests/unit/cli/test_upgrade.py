"""Before an upgrade, beside it, and its own process."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rekernel import cli
from rekernel.attempt import brownout
from rekernel.attempt import state as attempt
from rekernel.attempt.events import Event, EventStream
from rekernel.attempt.lock import exclusive
from rekernel.attempt.problem import Problem
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.region import Layout
from rekernel.census.pages import Survey
from rekernel.census.usage import Usage
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.cli import check, in_unit, upgrade
from rekernel.cli import plan as plan_verb
from rekernel.cli.progress import PAUSE, JsonDisplay, LiveDisplay, PlainDisplay
from rekernel.errors import BlockedError, BusyError, RekernelError, RolledBackError
from rekernel.kernel.installed import Kernel
from rekernel.plan import confirmed
from rekernel.plan.confirmed import Confirmed
from rekernel.plan.plan import Plan
from rekernel.plan.probes import Finding, Status
from rekernel.plan.room import Disk, Free, reckon
from rekernel.policy import Policy
from rekernel.records import asdict, replace
from rekernel.report import builder
from rekernel.report.history import History
from rekernel.report.layout import PLAIN
from rekernel.report.prediction import Prediction
from rekernel.systemd.units import Unit

FROZEN = Problem("thaw", "/a", "busy", "echo 0")
# 600 MiB of shared memory, and a little for each of two processes.
SHARED_IMAGE = (600 << 20) + 2 * (48 << 10)
WHERE = Layout(Range(4 << 30, 6 << 30), Range(4 << 30, 5 << 30), Range(5 << 30, 6 << 30))


def unit(name: str, verdict: Verdict, reason: str = "", remedy: str = "") -> UnitVerdict:
    facts = Unit(name, "active", "running", "simple", 5000, f"/system.slice/{name}", "", {})
    return UnitVerdict(facts, verdict, reason, remedy, {5000: facts.cgroup, 5001: facts.cgroup})


def make_plan(
    *units: UnitVerdict, anonymous: int = 291 << 20, shared: int = 0, disk: int = 1 << 40
) -> Plan:
    used = Usage("redis.service", False, 2, 300 << 20, anonymous, shared, 0)
    free = Free(128 << 20, 3 << 30, Disk("/var/lib/rekernel/images", 7, disk))
    return Plan(
        kernel=Kernel("7.3.4", Path("/boot/vmlinuz-7.3.4"), Path("/x")),
        running="6.12.1",
        backend="region",
        where=WHERE,
        units=units or (unit("redis.service", Verdict.CARRIED),),
        resident_bytes=300 << 20,
        warnings=("a login ends",),
        usages=(used,),
        room=reckon((used,), {"/run": 3 << 20}, 2 << 20, free, region=True),
        pages=Survey(290 << 20, 2 << 20),
    )


@pytest.fixture
def planned(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes planning give this plan; nothing drains, nothing runs."""

    def use(*units: UnitVerdict, seconds: float = 4.0) -> None:
        answer = (make_plan(*units), Prediction(seconds, "history", 3))
        monkeypatch.setattr(plan_verb, "decide", lambda args: answer)
        monkeypatch.setattr(plan_verb, "renew", lambda args, told: (answer[0], ()))

    monkeypatch.setattr(brownout, "observe", lambda: brownout.Brownout(False, "none", None))
    monkeypatch.setattr(plan_verb.policy, "load", lambda carry=(), restart=(): Policy())  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    use()
    return use


def test_plan_for_people(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan"]) == 0
    shown = capsys.readouterr().out
    assert "6.12.1 → 7.3.4" in shown
    assert "290 MiB in the carry region stay where they are, 2.0 MiB outside" in shown
    assert "about 4.00 s (from 3 upgrades of this machine)" in shown
    assert "warning: a login ends" in shown


def test_forked_processes_grow() -> None:
    assert make_plan().growth_bytes == 0
    forked = make_plan(anonymous=100 << 20)
    assert forked.growth_bytes == 192 << 20
    text = plan_verb.render(forked, Prediction(4.0, "history", 3), PLAIN)
    assert "warning: forked processes take 192 MiB more afterwards" in text
    assert replace(forked, pages=None).growth_bytes == 0


def test_plan_tells_what_is_copied() -> None:
    text = plan_verb.render(make_plan(), Prediction(4.0, "history", 3), PLAIN)
    assert "copied" not in text.partition("memory")[2].partition("\n")[2]
    text = plan_verb.render(make_plan(shared=60 << 20), Prediction(4.0, "history", 3), PLAIN)
    assert "copied    63.1 MiB by way of the handover store: redis.service (60.1 MiB)" in text
    text = plan_verb.render(make_plan(shared=600 << 20), Prediction(4.0, "history", 3), PLAIN)
    assert "copied    by way of the disk: redis.service (600 MiB)" in text
    assert "→ to keep it in memory: `rekernel setup --store 704M` and a reboot" in text
    room = plan_verb.document(make_plan(shared=600 << 20), Prediction(4.0, "history", 3))["room"]
    assert room["units"] == [
        {
            "unit": "redis.service",
            "processes": 2,
            "resident_bytes": 300 << 20,
            "shared_bytes": 600 << 20,
            "private_bytes": 0,
            "queued_bytes": 0,
            "image_bytes": SHARED_IMAGE,
            "place": "disk",
        }
    ]
    assert room["tmpfs"] == [{"target": "/run", "bytes": 3 << 20, "place": "store"}]
    assert room["disk"]["needed"] == SHARED_IMAGE
    assert room["lack"] is None


def test_no_room_is_told_beforehand(
    planned: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was planned, and refused only by the upgrade itself."""
    full = make_plan(shared=600 << 20, disk=100 << 20)
    monkeypatch.setattr(plan_verb, "decide", lambda args: (full, Prediction(4.0, "model")))
    assert cli.main(["plan"]) == 3
    assert "blocked: /var/lib/rekernel/images has 100 MiB free" in capsys.readouterr().out
    code, text = refused(["--yes"], capsys)
    assert code == 3
    assert "the upgrade needs 600 MiB there for redis.service" in text
    assert "hint: make room on that file system, or `rekernel setup --store 704M`" in text


def test_dry_run_is_the_plan(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--json"]) == 0
    document = capsys.readouterr().out
    assert cli.main(["upgrade", "--dry-run", "--json"]) == 0
    assert capsys.readouterr().out == document
    found = json.loads(document)
    assert found["schema"] == 1
    assert found["memory"]["stray_bytes"] == 2 << 20
    assert found["prediction"] == {"blackout_s": 4.0, "basis": "history", "samples": 3}
    assert found["units"][0]["processes"] == [5000, 5001]


BLOCKING = ("db.service", Verdict.BLOCKS, "it has an io_uring instance open", "do x")


def test_plan_with_a_unit_that_blocks(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    planned(unit(*BLOCKING))
    assert cli.main(["plan"]) == 3
    assert "blocked by db.service: it has an io_uring" in capsys.readouterr().out


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli.main(["upgrade", *argv])
    return code, capsys.readouterr().err


def test_refusals(
    planned: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = refused([], capsys)
    assert (code, "there is no terminal to ask on" in text) == (2, True)
    assert "--yes" in text
    code, text = refused(["--yes", "--max-blackout", "3"], capsys)
    assert code == 3
    assert "the predicted blackout is 4.00 s (from 3 upgrades of this machine)" in text
    planned(unit(*BLOCKING))
    code, text = refused(["--yes"], capsys)
    assert code == 3
    assert "these units block the upgrade: db.service (it has an io_uring" in text
    assert "hint: do x" in text
    monkeypatch.setattr(brownout, "observe", lambda: brownout.Brownout(True, "used", None))
    code, text = refused(["--yes"], capsys)
    assert (code, "still on their way home" in text) == (7, True)
    stuck = brownout.Brownout(True, "used", {"state": "stopped"})
    monkeypatch.setattr(brownout, "observe", lambda: stuck)
    code, text = refused(["--yes"], capsys)
    assert (code, "wait for pages that nobody can bring" in text) == (7, True)
    monkeypatch.setattr(attempt, "unit_active", lambda: True)
    code, text = refused(["--yes"], capsys)
    assert (code, "another upgrade is under way" in text) == (7, True)


class Terminal(io.StringIO):
    """Somebody who types this."""

    def isatty(self) -> bool:
        return True


def test_a_no_is_a_no(
    planned: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in ("\n", "n\n", "perhaps\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        code, text = refused([], capsys)
        assert (code, text) == (1, "rekernel: not confirmed: nothing was touched\n")


def test_unit_command() -> None:
    args = argparse.Namespace(max_blackout=5.0, carry=["a"], restart=["b", "c"])
    argv = upgrade.unit_argv(args, "7.3.4", Path("/run/rekernel/confirmed-7.json"))
    split = argv.index("--")
    for word in (
        "--collect", "--unit=rekernel-upgrade", "--property=KillMode=process",
        "--property=TimeoutStopSec=120", "--property=OOMScoreAdjust=-1000",
    ):  # fmt: skip
        assert word in argv[:split]
    stop = next(word for word in argv if word.startswith("--property=ExecStopPost=/"))
    assert stop.endswith(" abort --after-death")
    own = argv[split + 1 :]
    assert own[-1] == "7.3.4"
    parsed = cli.build_parser(("upgrade",)).parse_args(own[own.index("upgrade") :])
    assert (parsed.in_unit, parsed.yes) == ("/run/rekernel/confirmed-7.json", True)
    assert (parsed.carry, parsed.restart, parsed.max_blackout) == (["a"], ["b", "c"], 5.0)


def run_unit(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Instead of systemd-run."""
    monkeypatch.setattr(upgrade, "unit_argv", lambda *told: [sys.executable, "-c", script])


@pytest.fixture
def unit_directory(planned: Any, run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(upgrade, "_RUN", run_directory)
    monkeypatch.setattr(confirmed, "RUN", run_directory)
    events, outcome = run_directory / "events.jsonl", run_directory / "outcome.json"
    original = attempt.Follower
    monkeypatch.setattr(attempt, "Follower", lambda since_ns: original(events, since_ns))
    monkeypatch.setattr(attempt, "read_outcome", lambda: brownout.read_json(outcome))
    return run_directory


def script_for(directory: Path, report: dict[str, Any]) -> str:
    return (
        "import json, time\n"
        f"with open({str(directory / 'events.jsonl')!r}, 'w') as file:\n"
        "    for kind, name, detail in [('begin', 'sync', {}), ('end', 'sync', {'seconds': 0.5}),\n"
        "            ('begin', 'dump', {}), ('failed', 'dump', {'error': 'no dump'})]:\n"
        "        event = dict(kind=kind, name=name, at_ns=time.time_ns(), detail=detail)\n"
        "        print(json.dumps(event), file=file, flush=True)\n"
        f"open({str(directory / 'outcome.json')!r}, 'w').write({json.dumps(report)!r})\n"
    )


UNDONE = builder.undone(
    {"id": "20261122-220201"}, RekernelError("redis could not be dumped: x", "see the log")
)


def test_following_an_attempt_that_is_undone(
    unit_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_unit(monkeypatch, script_for(unit_directory, UNDONE))
    assert cli.main(["upgrade", "--yes"]) == 5
    captured = capsys.readouterr()
    assert captured.err == "rekernel: redis could not be dumped: x\nhint: see the log\n"
    shown = captured.out
    assert shown.index("6.12.1 → 7.3.4") < shown.index(PAUSE) < shown.index("sync: 500 ms")
    assert "dump: no dump" in shown


def test_following_in_json(
    unit_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_unit(monkeypatch, script_for(unit_directory, UNDONE))
    assert cli.main(["upgrade", "--yes", "--json"]) == 5
    captured = capsys.readouterr()
    assert json.loads(captured.out) == UNDONE
    events = [json.loads(line) for line in captured.err.splitlines()]
    assert [event["kind"] for event in events] == ["begin", "end", "begin", "failed"]
    assert {event["schema"] for event in events} == {1}


def test_units_that_never_began(
    unit_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_unit(monkeypatch, "import sys; sys.exit('Unit rekernel-upgrade.service already loaded')")
    assert cli.main(["upgrade", "--yes"]) == 7
    assert "another upgrade is under way" in capsys.readouterr().err
    run_unit(monkeypatch, "import sys; sys.exit('Failed to connect to bus')")
    assert cli.main(["upgrade", "--yes"]) == 1
    captured = capsys.readouterr()
    assert "failed (1): Failed to connect to bus" in captured.err
    run_unit(monkeypatch, "")
    assert cli.main(["upgrade", "--yes"]) == 1
    captured = capsys.readouterr()
    assert "the upgrade's unit ended and left no report" in captured.err
    assert "journalctl -u rekernel-upgrade.service" in captured.err


def test_following_until_the_unit_is_gone(
    unit_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cgroup = unit_directory / "cgroup"
    cgroup.mkdir()
    monkeypatch.setattr(attempt, "_CGROUP", cgroup)
    ending = "time.sleep(0.3)\n" + script_for(unit_directory, UNDONE)
    ending = f"import os, time\n{ending}time.sleep(0.3); os.rmdir({str(cgroup)!r})\n"
    run_unit(
        monkeypatch, f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {ending!r}])"
    )
    assert cli.main(["upgrade", "--yes"]) == 5
    assert "sync: 500 ms" in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, 4])
def test_a_login_that_was_carried_along(
    unit_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
) -> None:
    boots = iter(["old"])
    monkeypatch.setattr(attempt, "boot_id", lambda: next(boots, "new"))
    History(tmp_path / "history").record({"schema": 1, "id": "20261122-000000"}, tmp_path)
    made = tmp_path / "history/20261123-000000"
    report = json.dumps({"schema": 1, "id": made.name, "exit_code": code})
    run_unit(
        monkeypatch,
        f"import pathlib; made = pathlib.Path({str(made)!r}); made.mkdir();"
        f"(made / 'report.json').write_text({report!r})",
    )
    assert cli.main(["upgrade", "--yes", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["id"] == made.name


def test_no_report_on_the_new_kernel(
    unit_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    boots = iter(["old"])
    monkeypatch.setattr(attempt, "boot_id", lambda: next(boots, "new"))
    monkeypatch.setattr(upgrade, "_REPORT_S", 0.3)
    run_unit(monkeypatch, "")
    assert cli.main(["upgrade", "--yes"]) == 1
    assert "there is no report after 0 s" in capsys.readouterr().err


def test_what_could_not_be_undone_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    report = builder.undone({"id": "x"}, RolledBackError("stopped"), (), [FROZEN])
    with pytest.raises(upgrade.AttemptError, match=r"^stopped$") as caught:
        upgrade.conclude(report, in_json=False)
    assert caught.value.exit_code == 1
    assert "`rekernel abort` tries again" in caught.value.hint
    assert capsys.readouterr().err == "rekernel: not undone: thaw /a: busy (by hand: echo 0)\n"
    assert upgrade.conclude(report, in_json=True) == 1
    assert json.loads(capsys.readouterr().out)["not_undone"][0]["step"] == "thaw"


class FakeUpgrade:
    """Ends like this."""

    id = "20261122-220201"
    error: BaseException | None = None
    notes: ClassVar[list[str]] = []
    left: tuple[Problem, ...] = ()

    def __init__(self, plan: Plan, events: EventStream, remember: object) -> None:
        self._events = events

    def run(self) -> None:
        with self._events.phase("undo"):
            pass
        if self.error is not None:
            raise self.error


def in_unit_argv(tmp_path: Path) -> list[str]:
    """What the unit runs, with a plan that was confirmed."""
    path = tmp_path / "confirmed.json"
    confirmed.leave(plan_verb.to_confirm(*plan_verb.decide(argparse.Namespace())), path)
    return ["upgrade", "--in-unit", str(path), "--yes", "7.3.4"]


@pytest.fixture
def own_process(
    planned: Any, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[FakeUpgrade]]:
    fake = type("Fake", (FakeUpgrade,), {"notes": []})
    monkeypatch.setattr(in_unit, "Upgrade", fake)

    @contextmanager
    def unlocked() -> Iterator[None]:
        yield

    monkeypatch.setattr(in_unit, "exclusive", unlocked)
    monkeypatch.setattr(in_unit, "JsonLines", lambda: lambda event: None)
    monkeypatch.setattr(attempt, "write_outcome", lambda report: None)
    before = signal.getsignal(signal.SIGTERM)
    yield fake
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("error", "left", "outcome", "code"),
    [
        (RekernelError("no dump"), (), "rolled-back", 5),
        (RekernelError("no dump"), (FROZEN,), "not-undone", 1),
        (BlockedError("no room"), (), "refused", 3),
        (BlockedError("no room"), (FROZEN,), "not-undone", 1),
        (RolledBackError("stopped"), (FROZEN,), "not-undone", 1),
        (ValueError("a defect"), (), "rolled-back", 5),
        (ValueError("a defect"), (FROZEN,), "not-undone", 1),
        (None, (), "rolled-back", 5),
    ],
)
def test_every_end_is_in_the_history(
    own_process: type[FakeUpgrade],
    tmp_path: Path,
    error: BaseException | None,
    left: tuple[Problem, ...],
    outcome: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own_process.error, own_process.left = error, left
    assert cli.main(in_unit_argv(tmp_path)) == code
    report = History(tmp_path / "history").get()
    assert (report["outcome"], report["exit_code"]) == (outcome, code)
    assert [item["name"] for item in report["phases"]] == ["plan", "undo"]
    assert (report["old_release"], report["new_release"]) == ("6.12.1", "7.3.4")
    assert report["not_undone"] == [asdict(problem) for problem in left]
    # In the journal of the unit.
    assert ("`rekernel abort` tries again" in capsys.readouterr().err) == bool(left)
    assert History(tmp_path / "history").unfinished() == []


def test_a_plan_that_is_refused_in_the_unit(
    own_process: type[FakeUpgrade], planned: Any, tmp_path: Path
) -> None:
    planned(unit(*BLOCKING))
    assert cli.main(in_unit_argv(tmp_path)) == 3
    assert History(tmp_path / "history").get()["outcome"] == "refused"


def test_what_was_confirmed_is_what_runs(
    own_process: type[FakeUpgrade], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Confirmed] = []

    def renew(args: argparse.Namespace, given: Confirmed) -> tuple[Plan, tuple[str, ...]]:
        told.append(given)
        return make_plan(), ("x.service has ended",)

    monkeypatch.setattr(plan_verb, "renew", renew)
    monkeypatch.setattr(confirmed, "RUN", tmp_path)
    argv = in_unit_argv(tmp_path)
    # Nobody plans again.
    monkeypatch.setattr(plan_verb, "decide", lambda args: pytest.fail("planned twice"))
    assert cli.main(argv) == 5
    (given,) = told
    assert (given.release, given.backend, given.blackout_s) == ("7.3.4", "region", 4.0)
    assert [(item.unit, item.verdict) for item in given.units] == [("redis.service", "carried")]
    assert own_process.notes == ["x.service has ended"]
    # It holds once.
    assert cli.main(argv) == 5
    report = History(tmp_path / "history").get()
    assert report["error"].startswith("the plan that was confirmed cannot be read: [Errno 2]")


def test_a_unit_that_has_become_worse(
    own_process: type[FakeUpgrade],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = in_unit_argv(tmp_path)
    worse = unit("redis.service", Verdict.RESTARTED, "process 7 has a perf event open")

    def renew(args: argparse.Namespace, given: Confirmed) -> None:
        confirmed.compare(given.units, [worse]).refuse()

    monkeypatch.setattr(plan_verb, "renew", renew)
    assert cli.main(argv) == 3
    report = History(tmp_path / "history").get()
    assert (report["outcome"], report["new_release"]) == ("refused", "7.3.4")
    assert report["error"] == (
        "not what was confirmed: redis.service was to be carried and would now be restarted "
        "(process 7 has a perf event open)"
    )
    assert "look at `rekernel plan`" in capsys.readouterr().err


def test_sigterm_while_planning(
    own_process: type[FakeUpgrade], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renew(args: argparse.Namespace, told: Confirmed) -> None:
        # Planning gets over errors; a wish to stop must not be one.
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("swallowed")

    monkeypatch.setattr(plan_verb, "renew", renew)
    assert cli.main(in_unit_argv(tmp_path)) == 5
    assert "before anything was touched" in History(tmp_path / "history").get()["error"]


def test_one_at_a_time(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rekernel.attempt.lock.LOCK", run_directory / "lock")
    with exclusive():
        assert cli.main(["upgrade", "--in-unit", "x", "--yes"]) == BusyError.exit_code
    assert "another upgrade is under way" in capsys.readouterr().err


EVENTS = [
    Event("begin", "freeze", 1),
    Event("end", "freeze", 2, {"seconds": 0.012}),
    Event("begin", "dump", 3),
    Event("note", "not undone: [x]", 3),
    Event("failed", "dump", 4, {"error": ""}),
]


def test_plain_display() -> None:
    stream = io.StringIO()
    display = PlainDisplay(stream)
    for event in EVENTS:
        display.show(event)
    assert stream.getvalue().splitlines() == [
        PAUSE, "freeze: 12 ms", "note: not undone: [x]", "dump: stopped",
    ]  # fmt: skip


def test_json_display() -> None:
    stream = io.StringIO()
    display = JsonDisplay(stream)
    for event in EVENTS:
        display.show(event)
    assert len(stream.getvalue().splitlines()) == len(EVENTS)


def test_live_display(capsys: pytest.CaptureFixture[str]) -> None:
    display = LiveDisplay()
    for event in EVENTS:
        display.show(event)
    display.close()
    shown = capsys.readouterr().out
    for words in ("✓ freeze", "12 ms", "✗ dump: stopped", "not undone: [x]"):
        assert words in shown


def test_check_document_and_text() -> None:
    findings = [
        Finding("swap", Status.FAIL, "in use: /dev/vda2", "swapoff -a"),
        Finding("kexec", Status.OK, "allowed"),
    ]
    units = [unit("db.service", Verdict.RESTARTED, "why", "what to do")]
    assert not check.is_ready(findings, units)
    assert check.is_ready(findings[1:], units)
    assert not check.is_ready(findings[1:], [unit(*BLOCKING)])
    found = check.document(findings, units, False)
    assert found["ready"] is False
    assert found["probes"][0] == {
        "name": "swap", "status": "fail", "reason": "in use: /dev/vda2", "remedy": "swapoff -a",
    }  # fmt: skip
    text = check.render(findings, units, False, PLAIN)
    assert "fail  swap" in text
    assert "in use: /dev/vda2 → swapoff -a" in text
    assert text.endswith("This host is not ready: swap")
    assert "This host is ready" in check.render(findings[1:], [], True, PLAIN)


@pytest.mark.parametrize(("probe", "code"), [(Status.WARN, 0), (Status.FAIL, 3)])
def test_check_exit_code(
    run_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    probe: Status,
    code: int,
) -> None:
    monkeypatch.setattr(check, "running_units", list)
    monkeypatch.setattr(check, "probe_all", lambda *args: [Finding("x", probe, "y")])
    assert cli.main(["check", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ready"] is (code == 0)


def test_check_of_all_processes(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = unit("own.service", Verdict.CARRIED, "why")
    own = replace(own, processes={os.getpid(): "/system.slice/own.service"})
    monkeypatch.setattr(check, "running_units", list)
    monkeypatch.setattr(check, "judge", lambda *args: [own])
    monkeypatch.setattr(check, "probe_all", lambda *args: [])
    assert cli.main(["check", "--all"]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"^ *{os.getpid()}  \S.* carried +own.service +why$", text, re.MULTILINE)
    assert re.search(r"^[0-9]+ processes: 1 carried, ", text, re.MULTILINE)
    assert cli.main(["check", "--all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["totals"].values()) == len(found["processes"])
    assert found["totals"]["carried"] == 1
    assert cli.main(["check", "--json"]) == 0
    assert "processes" not in json.loads(capsys.readouterr().out)
