"""The upgrade itself, as the main process of its own unit: ``rekernel upgrade --in-unit``."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from rekernel.attempt import state as attempt
from rekernel.attempt.events import EventStream, JsonLines
from rekernel.attempt.lock import exclusive
from rekernel.census import snapshot
from rekernel.cli import plan as plan_verb
from rekernel.cli.aftermath import new_id, tell
from rekernel.cli.common import print_error, require_root
from rekernel.errors import CancelledError, RekernelError
from rekernel.plan import confirmed
from rekernel.report import builder
from rekernel.report.history import History
from rekernel.report.prediction import Prediction
from rekernel.transition.upgrade import Upgrade


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
        tell(report, history)
    print_error(RekernelError(report["error"], report["hint"]), in_json=False)
    return int(report["exit_code"])
