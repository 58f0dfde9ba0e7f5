"""How an attempt ended: what is told of it, and what undoes one whose process has died."""

from __future__ import annotations

import os
import time
from typing import Any

from rekernel.attempt import state as attempt
from rekernel.attempt.lock import exclusive
from rekernel.attempt.problem import Problem
from rekernel.attempt.undo import UndoList
from rekernel.cli.common import print_error
from rekernel.errors import RekernelError, RolledBackError
from rekernel.report import builder
from rekernel.report.history import History


def new_id() -> str:
    """An ID for an attempt that starts now."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime())


def tell(report: dict[str, Any], history: History) -> None:
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
                tell(report, history)
        for item in killed:
            if told is not None and item["id"] == told.get("id"):
                # It ended by itself; only the history could not be written then.
                report = builder.tried_again(told, left) if tried else told
                tell(report, history)
                continue
            # Set by systemd for ExecStopPost= (systemd.exec(5)).
            cause = os.environ.get("EXIT_STATUS") or "unknown cause"
            error = RolledBackError(
                f"the upgrade's process died ({cause})", f"journalctl -u {attempt.UNIT}"
            )
            report = builder.undone(item, error, (), left)
            tell(report, history)
    return left, report


def _not_undone(history: History) -> list[dict[str, Any]]:
    """Reports of attempts under this kernel of which something is left."""
    return [
        report
        for report in history.reports()
        if report["outcome"] == builder.NOT_UNDONE
        and (history.attempt(report["id"]) or {}).get("boot_id") == attempt.boot_id()
    ]
