"""What the verbs share: the parser, output, errors."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from rekernel.errors import NotPermittedError, RekernelError, UsageError
from rekernel.report.layout import Paint

if TYPE_CHECKING:
    from typing import TypeAlias

    VerbParsers: TypeAlias = argparse._SubParsersAction["Parser"]
else:
    VerbParsers = Any


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Told like every other error."""
        raise UsageError(message, f"see {self.prog} --help")


def add_verb(
    subparsers: VerbParsers, name: str, summary: str, description: str = "", *, hidden: bool = False
) -> Parser:
    """A parser for a verb, with --json unless it is hidden."""
    text = description or f"{summary[0].upper()}{summary[1:]}."
    if hidden:
        # Without help= it does not show up in the list of verbs.
        return subparsers.add_parser(name, description=text)
    parser = subparsers.add_parser(name, help=summary, description=text)
    parser.add_argument("--json", action="store_true", help="JSON on stdout: see docs/json.md")
    return parser


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """KERNEL and what overrides policy."""
    parser.add_argument(
        "kernel",
        nargs="?",
        metavar="KERNEL",
        help="release or the beginning of one, as 6.12 (default: the newest that is installed)",
    )
    for option, words in (
        ("--carry", "carry UNIT, or do not upgrade"),
        ("--restart", "restart UNIT instead of carrying it"),
    ):
        parser.add_argument(
            option, action="append", default=[], metavar="UNIT", help=f"{words} (repeatable)"
        )
    add_memory_option(parser)


def add_memory_option(parser: argparse.ArgumentParser) -> None:
    """--memory."""
    parser.add_argument(
        "--memory",
        choices=("auto", "region", "image"),
        default="auto",
        help="where carried memory stays: in its place in the carry region, or in images on disk "
        "(default: auto, the region if there is one)",
    )


def require_root() -> None:
    """Raises NotPermittedError."""
    if os.geteuid() != 0:
        raise NotPermittedError("this needs root", "try again with sudo")


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=1), flush=True)


def paint_for_stdout() -> Paint:
    """Colours if stdout is a terminal that wants them."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return Paint(wanted and os.environ.get("TERM") != "dumb")


def print_error(error: RekernelError, *, in_json: bool) -> None:
    """The error on stderr: for people, or one line of JSON."""
    if in_json:
        document = {
            "schema": 1,
            "error": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        print(json.dumps(document), file=sys.stderr, flush=True)
        return
    print(f"rekernel: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    sys.stderr.flush()
