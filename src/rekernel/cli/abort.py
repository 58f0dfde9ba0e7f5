"""``rekernel abort``: stop a running attempt and see to it that everything is undone."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from rekernel.attempt import state as attempt
from rekernel.attempt.undo import UndoList
from rekernel.cli.aftermath import undo_after_death
from rekernel.cli.common import VerbParsers, add_verb, print_json, require_root
from rekernel.errors import NothingToDoError, RekernelError
from rekernel.records import asdict
from rekernel.report.text import not_undone

_DEADLINE = 180.0


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "abort",
        "stop an upgrade that is under way and undo everything",
        "Stop an upgrade that is under way, and wait until everything is undone and runs on under "
        "the old kernel. Possible until the jump into the new kernel.",
    )
    parser.add_argument("--after-death", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Returns 0 when everything is undone. Raises NothingToDoError, RekernelError."""
    require_root()
    if args.after_death:
        return _after_death()
    if not attempt.unit_active():
        return _leftovers(in_json=args.json)
    attempt.stop_unit()
    deadline = time.monotonic() + _DEADLINE
    while attempt.unit_active():
        if time.monotonic() > deadline:
            raise RekernelError(
                f"the upgrade did not stop within {_DEADLINE:.0f} s",
                f"journalctl -u {attempt.UNIT}",
            )
        time.sleep(0.2)
    return _tell(attempt.read_outcome(), in_json=args.json)


def _tell(report: dict[str, Any] | None, *, in_json: bool) -> int:
    if report is None:
        raise RekernelError("the upgrade ended and left no report", f"journalctl -u {attempt.UNIT}")
    left = not_undone(report)
    if in_json:
        print_json({"schema": 1, "undone": not left, "report": report})
    else:
        print(report["error"])
        _complain([*report["notes"], *left])
    return 1 if left else 0


def _complain(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"rekernel: {line}", file=sys.stderr)


def _leftovers(*, in_json: bool) -> int:
    """Of an attempt that was killed together with its unit, or could not undo itself."""
    if not len(UndoList()):
        raise NothingToDoError("no upgrade is under way", "`rekernel history` has the past ones")
    left, report = undo_after_death()
    if in_json:
        document = {"schema": 1, "undone": not left, "report": report}
        print_json({**document, "not_undone": [asdict(problem) for problem in left]})
    elif not left:
        print("what was left of an attempt is undone; everything runs on as before")
    _complain([f"not undone: {problem}" for problem in left])
    return 1 if left else 0


def _after_death() -> int:
    """ExecStopPost= of the upgrade's unit: nothing to do if the attempt undid itself."""
    left, _ = undo_after_death()
    _complain([f"not undone: {problem}" for problem in left])
    return 1 if left else 0
