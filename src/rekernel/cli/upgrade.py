"""``rekernel upgrade``: show the plan, ask, run as a unit of its own, show the phases."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rekernel.attempt import state as attempt
from rekernel.attempt.events import Event
from rekernel.cli import plan as plan_verb
from rekernel.cli.common import (
    Parser,
    VerbParsers,
    add_policy_options,
    add_verb,
    paint_for_stdout,
    print_json,
    require_root,
)
from rekernel.cli.progress import display_for
from rekernel.errors import (
    BusyError,
    RekernelError,
    UsageError,
)
from rekernel.plan import confirmed
from rekernel.plan.confirmed import Confirmed
from rekernel.plan.plan import Plan
from rekernel.report.history import History
from rekernel.report.text import not_undone, render
from rekernel.run import CommandFailedError
from rekernel.run import run as run_command

_RUN = Path("/run/rekernel")
# Until a new kernel that has taken over has a report.
_REPORT_S = 600.0
_PROPERTIES = (
    "KillMode=process",
    "TimeoutStopSec=120",
    # It must not be the victim of the memory shortage that it may cause, nor must criu, whose end
    # in the wrong instant would take a process along.
    "OOMScoreAdjust=-1000",
    # One for each file that somebody watches, among others.
    "LimitNOFILE=524288",
)


class AttemptError(RekernelError):
    """An attempt that ran as a unit ended like this."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value <= 0:
        raise ValueError
    return value


_seconds.__name__ = "number of seconds"


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    parser: Parser = add_verb(
        subparsers,
        "upgrade",
        "change to another kernel now",
        "Change to another kernel now, carrying services with their memory in place and their "
        "connections open. Shows the plan and asks first. Runs as a unit of its own, so that "
        "losing the terminal does not matter; `rekernel abort` (or Ctrl-C) stops it and undoes "
        "everything.",
    )
    add_policy_options(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what `plan` prints and do nothing"
    )
    parser.add_argument(
        "--max-blackout",
        type=_seconds,
        metavar="SECONDS",
        help="refuse if a longer blackout is predicted",
    )
    parser.add_argument("--in-unit", metavar="FILE", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Returns the attempt's exit code, unless the kernel changes. Raises RekernelError."""
    if args.in_unit:
        from rekernel.cli.in_unit import run_in_unit

        return run_in_unit(args)
    require_root()
    if args.dry_run:
        return plan_verb.run(args)
    if not args.yes and (args.json or not sys.stdin.isatty()):
        raise UsageError("there is no terminal to ask on", "give --yes to upgrade without asking")
    if attempt.unit_active():
        raise BusyError(
            "another upgrade is under way", "see `rekernel status`, stop it: `rekernel abort`"
        )
    plan, prediction = plan_verb.decide(args)
    plan_verb.refuse_or_pass(args, plan, prediction)
    if not args.json:
        plan_verb.show(plan, prediction, in_json=False)
        print(flush=True)
    if not args.yes:
        ask(plan)
    return _follow(args, plan_verb.to_confirm(plan, prediction))


def ask(plan: Plan) -> None:
    """Raises RekernelError for a no."""
    answer = input(f"Change to {plan.kernel.release} now? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise RekernelError("not confirmed: nothing was touched")


def self_argv() -> list[str]:
    """How a unit starts this very program."""
    return [sys.executable, "-I", "-m", "rekernel"]


def unit_argv(args: argparse.Namespace, release: str, told: Path) -> list[str]:
    """systemd-run with everything that the unit needs; ``told``: where the plan lies for it."""
    argv = [
        "systemd-run", "--quiet", "--collect",
        f"--unit={attempt.UNIT.removesuffix('.service')}",
        f"--description=Change to kernel {release}",
    ]  # fmt: skip
    stop = " ".join([*self_argv(), "abort", "--after-death"])
    argv += [f"--property={item}" for item in (*_PROPERTIES, f"ExecStopPost={stop}")]
    argv += ["--", *self_argv(), "upgrade", "--in-unit", str(told), "--yes"]
    if args.max_blackout is not None:
        argv.append(f"--max-blackout={args.max_blackout}")
    argv += [f"--carry={unit}" for unit in args.carry]
    argv += [f"--restart={unit}" for unit in args.restart]
    return [*argv, release]


@contextmanager
def _stopping_the_unit() -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the attempt instead of us; we then show how it is undone."""

    def stop(number: int, frame: FrameType | None) -> None:
        attempt.stop_unit()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(args: argparse.Namespace, told: Confirmed) -> int:
    _RUN.mkdir(parents=True, exist_ok=True)
    attempt.OUTCOME.unlink(missing_ok=True)
    boot = attempt.boot_id()
    known = History().ids()
    follower = attempt.Follower(since_ns=time.time_ns())
    display = display_for(in_json=args.json)
    path = confirmed.own_path()
    try:
        with _stopping_the_unit():
            confirmed.leave(told, path)
            _start(unit_argv(args, told.release, path))
            _watch(follower, display.show)
    finally:
        path.unlink(missing_ok=True)
        display.close()
    if attempt.boot_id() != boot:
        return _arrived(known, in_json=args.json)
    report = attempt.read_outcome()
    if report is None:
        raise RekernelError(
            "the upgrade's unit ended and left no report", f"journalctl -u {attempt.UNIT}"
        )
    return conclude(report, in_json=args.json)


def _start(argv: Sequence[str]) -> None:
    try:
        run_command(argv)
    except CommandFailedError as error:
        if "already" in error.output:
            raise BusyError(
                "another upgrade is under way", "see `rekernel status`, stop it: `rekernel abort`"
            ) from None
        raise


def _watch(follower: attempt.Follower, show: Callable[[Event], object]) -> None:
    """Until the unit is gone, or this login is on the new kernel.

    The login may be carried along, so nothing here has anything open for longer than it reads it.
    """
    while True:
        runs = attempt.unit_runs()
        for event in follower.poll():
            show(event)
        if not runs:
            return
        time.sleep(0.05)


def _arrived(known: Sequence[str], *, in_json: bool) -> int:
    """On the new kernel, as this login was carried along: show the report once there is one."""
    deadline = time.monotonic() + _REPORT_S
    while True:
        for report in History().reports():
            if report["id"] not in known:
                if in_json:
                    print_json(report)
                else:
                    print()
                    print(render(report, paint_for_stdout()), end="")
                return int(report["exit_code"])
        if time.monotonic() > deadline:
            raise RekernelError(
                f"this is the new kernel, but there is no report after {_REPORT_S:.0f} s",
                "journalctl -u rekernel-finish",
            )
        time.sleep(0.2)


def conclude(report: dict[str, Any], *, in_json: bool) -> int:
    """Say how an attempt ended that did not change the kernel. Raises AttemptError."""
    code = int(report["exit_code"])
    if in_json:
        print_json(report)
        return code
    for line in (*report["notes"], *not_undone(report)):
        print(f"rekernel: {line}", file=sys.stderr)
    raise AttemptError(report["error"], report["hint"], code)
