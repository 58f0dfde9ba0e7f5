"""The upgrade itself, as the main process of its own unit: ``rekernel upgrade --in-unit``."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from rekernel import confirmed
from rekernel.census import attempt, snapshot
from rekernel.cli import plan as plan_verb
from rekernel.cli.common import print_error, require_root
from rekernel.errors import CancelledError, RekernelError, RolledBackError
from rekernel.lock import exclusive
from rekernel.report import builder
from rekernel.report.history import History
from rekernel.report.prediction import Prediction
from rekernel.transition.events import EventStream, JsonLines
from rekernel.transition.problem import Problem
from rekernel.transition.undo import UndoList
from rekernel.transition.upgrade import Upgrade


def new_id() -> str:
    """An ID for an attempt that starts now."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime())


class _StoppedEarly(BaseException):
    """SIGTERM while planning. No Exception, as planning gets over many of those."""


def _cancel(number: int, frame: FrameType | None) -> None:
    raise _StoppedEarly


def run_in_unit(args: argparse.Namespace) -> int:
    """Returns the exit code of an attempt that was undone; does not return from one that was not.

    Raises BusyError, NotPermittedError.
    """
    require_root()
    with exclusive():
        # Upgrade has a handler of its own; until then nothing is to be undone.
        signal.signal(signal.SIGTERM, _cancel)
        attempt.reserve_outcome()
        events = EventStream()
        events.subscribe(JsonLines())
        upgrade: Upgrade | None = None
        facts: dict[str, Any] = {"id": new_id(), "old_release": os.uname().release}
        history = History()
        try:
            with events.phase("plan"):
                told = confirmed.take(Path(args.in_unit))
                facts["new_release"] = told.release
                prediction = Prediction(told.blackout_s, told.basis, told.samples)
                plan, notes = plan_verb.renew(args, told)
                plan_verb.refuse_or_pass(args, plan, prediction)

            def remember(processes: snapshot.Snapshot) -> None:
                content = {"schema": 1, "processes": processes}
                history.keep(facts["id"], snapshot.BEFORE, content)

            upgrade = Upgrade(plan, events, remember)
            for note in notes:
                upgrade.notes.append(note)
                events.emit("note", note)
            facts = {
                "id": upgrade.id,
                "old_release": plan.running,
                "new_release": plan.kernel.release,
                "backend": plan.backend,
                "boot_id": attempt.boot_id(),
                "predicted_blackout_s": prediction.seconds,
            }
            history.begin(upgrade.id, facts)
            upgrade.run()
        except RekernelError as error:
            ended = error
        except _StoppedEarly:
            ended = CancelledError("stopped before anything was touched")
        except Exception as error:
            # Upgrade undoes whatever it meets, so this is a defect outside of it.
            ended = RekernelError(f"{type(error).__name__}: {error}", "please report this")
        else:
            ended = RekernelError("the jump into the new kernel returned")
        left = upgrade.left if upgrade is not None else ()
        report = builder.undone(facts, ended, events.phases, left)
        _tell(report, history)
    print_error(RekernelError(report["error"], report["hint"]), in_json=False)
    return int(report["exit_code"])


def _tell(report: dict[str, Any], history: History) -> None:
    """First who waits for it, then the history: neither may keep back the other."""
    for keep in (attempt.write_outcome, history.record):
        try:
            keep(report)
        except OSError as error:
            print_error(RekernelError(f"the report could not be kept: {error}"), in_json=False)


def undo_after_death() -> tuple[tuple[Problem, ...], dict[str, Any] | None]:
    """Undo what an attempt left that was killed, or could not undo, and put it into the history.

    Returns what is not undone, and the report if there was such an attempt. Raises BusyError if the
    attempt still runs.
    """
    with exclusive():
        undo = UndoList()
        tried = len(undo) > 0
        left = undo.run()
        history = History()
        killed = [item for item in history.unfinished() if item.get("boot_id") == attempt.boot_id()]
        told = attempt.read_outcome()
        if not killed and told is None:
            # Not even begun.
            killed = [{"id": new_id(), "old_release": os.uname().release}]
        report = None
        if tried:
            # The newest last: that is the one that was asked for.
            for before in reversed(_not_undone(history)):
                report = builder.tried_again(before, left)
                _tell(report, history)
        for item in killed:
            if told is not None and item["id"] == told.get("id"):
                # It ended by itself; only the history could not be written then.
                report = builder.tried_again(told, left) if tried else told
                _tell(report, history)
                continue
            # Set by systemd for ExecStopPost= (systemd.exec(5)).
            cause = os.environ.get("EXIT_STATUS") or "unknown cause"
            error = RolledBackError(
                f"the upgrade's process died ({cause})", f"journalctl -u {attempt.UNIT}"
            )
            report = builder.undone(item, error, (), left)
            _tell(report, history)
    return left, report


def _not_undone(history: History) -> list[dict[str, Any]]:
    """Reports of attempts under this kernel of which something is left."""
    return [
        report
        for report in history.reports()
        if report["outcome"] == builder.NOT_UNDONE
        and (history.attempt(report["id"]) or {}).get("boot_id") == attempt.boot_id()
    ]
