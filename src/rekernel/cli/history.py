"""``rekernel history``: what was tried on this machine."""

from __future__ import annotations

import argparse

from rekernel.cli.common import VerbParsers, add_verb, paint_for_stdout, print_json
from rekernel.report.history import History
from rekernel.report.text import render_history

_SUMMARY = (
    "id", "outcome", "exit_code", "old_release", "new_release", "backend", "blackout_s",
    "brownout_s", "error",
)  # fmt: skip


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    add_verb(subparsers, "history", "list the upgrades of this machine, newest first")


def run(args: argparse.Namespace) -> int:
    """Returns 0; no upgrade yet is no error."""
    reports = list(History().reports())
    if args.json:
        upgrades = [{name: report.get(name) for name in _SUMMARY} for report in reports]
        print_json({"schema": 1, "upgrades": upgrades})
    elif reports:
        print(render_history(reports, paint_for_stdout()), end="")
    else:
        print("No upgrade was tried on this machine yet.")
    return 0
