"""The upgrade itself, as the main process of its own unit: ``rekernel upgrade --in-unit``."""

from __future__ import annotations

import argparse
import os
import signal
import time
from types import FrameType
from typing import Any

from rekernel.census import attempt, snapshot
from rekernel.cli import plan as plan_verb
from rekernel.cli.common import print_error, require_root
from rekernel.errors import RekernelError, RolledBackError
from rekernel.lock import exclusive
from rekernel.report import builder
from rekernel.report.history import History
from rekernel.transition.events import Event, EventStream, JsonLines
from rekernel.transition.undo import UndoList
from rekernel.transition.upgrade import CancelledError, Upgrade

NOT_UNDONE = "could not be undone"


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
        problems: list[str] = []

        def collect(event: Event) -> None:
            if event.kind == "note" and event.name.startswith(NOT_UNDONE):
                problems.append(event.name)

        events.subscribe(collect)
        facts: dict[str, Any] = {"id": new_id(), "old_release": os.uname().release}
        history = History()
        try:
            with events.phase("plan"):
                plan, prediction = plan_verb.decide(args)
                plan_verb.refuse_or_pass(args, plan, prediction)

            def remember(processes: snapshot.Snapshot) -> None:
                content = {"schema": 1, "processes": processes}
                history.keep(upgrade.id, snapshot.BEFORE, content)

            upgrade = Upgrade(plan, events, remember)
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
        report = builder.undone(facts, ended, events.phases, problems)
        _tell(report, history)
    print_error(ended, in_json=False)
    return int(report["exit_code"])


def _tell(report: dict[str, Any], history: History) -> None:
    """First who waits for it, then the history: neither may keep back the other."""
    for keep in (attempt.write_outcome, history.record):
        try:
            keep(report)
        except OSError as error:
            print_error(RekernelError(f"the report could not be kept: {error}"), in_json=False)


def undo_after_death() -> tuple[list[str], dict[str, Any] | None]:
    """Undo what an attempt left that was killed, and put it into the history.

    Returns what could not be undone, and the report if there was such an attempt. Raises BusyError
    if the attempt still runs.
    """
    with exclusive():
        undo = UndoList()
        problems = [f"{NOT_UNDONE}: {problem}" for problem in undo.run()] if len(undo) else []
        history = History()
        killed = [item for item in history.unfinished() if item.get("boot_id") == attempt.boot_id()]
        if not killed and attempt.read_outcome() is None:
            # Not even begun.
            killed = [{"id": new_id(), "old_release": os.uname().release}]
        report = None
        told = attempt.read_outcome() or {}
        for item in killed:
            if item["id"] == told.get("id"):
                # It ended by itself; only the history could not be written then.
                report = told
                _tell(report, history)
                continue
            # Set by systemd for ExecStopPost= (systemd.exec(5)).
            cause = os.environ.get("EXIT_STATUS") or "unknown cause"
            error = RolledBackError(
                f"the upgrade's process died ({cause}); everything was undone",
                f"journalctl -u {attempt.UNIT}",
            )
            report = builder.undone(item, error, (), problems)
            _tell(report, history)
    return problems, report
