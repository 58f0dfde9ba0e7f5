"""The command line: one file per verb. Only code in this package prints and exits."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from rekernel import __version__, run
from rekernel.cli.common import Parser, VerbParsers, print_error
from rekernel.errors import EXIT_CODES, NotPermittedError, RekernelError, UsageError
from rekernel.systemd import bus

# In the order of the help text; every module has add_parser(subparsers) and run(args) -> int.
VERBS = {
    "setup": "setup",
    "check": "check",
    "plan": "plan",
    "upgrade": "upgrade",
    "abort": "abort",
    "status": "status",
    "history": "history",
    "report": "report",
}
# For the units that the package installs: not in the help text.
HIDDEN_VERBS = {
    "region-up": "region_up",
    "containers-up": "containers_up",
    "finish": "finish",
}


def _module(verb: str) -> ModuleType:
    name = (VERBS | HIDDEN_VERBS)[verb]
    return importlib.import_module(f"rekernel.cli.{name}")


def build_parser(verbs: Sequence[str] = (*VERBS, *HIDDEN_VERBS)) -> Parser:
    """The parser with these verbs."""
    codes = ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = Parser(
        prog="rekernel",
        description="Live kernel upgrades: change the kernel under a running machine.",
        epilog=f"Exit codes: {codes}. See rekernel(8).",
    )
    parser.add_argument("--version", action="version", version=f"rekernel {__version__}")
    parser.add_argument(
        "--verbose", action="store_true", help="show on stderr which commands are run"
    )
    subparsers: VerbParsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in verbs:
        _module(verb).add_parser(subparsers)
    return parser


def _wanted(argv: Sequence[str]) -> Sequence[str]:
    """Import only what is needed: the units in early boot should not wait for the rest."""
    first = next((word for word in argv if not word.startswith("-")), "")
    known = {**VERBS, **HIDDEN_VERBS}
    if first and first not in known:
        raise UsageError(f"unknown verb {first}", f"one of {', '.join(VERBS)}")
    return (first,) if first in known and argv[0] == first else tuple(known)


def _show_command(words: str) -> None:
    print(words, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    in_json = "--json" in words
    try:
        args = build_parser(_wanted(words)).parse_args(words)
        run.listener = _show_command if args.verbose else None
        if args.verb in VERBS:
            bus.assert_there()
        return int(_module(args.verb).run(args))
    except RekernelError as error:
        print_error(error, in_json=in_json)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us has seen enough; keep Python from complaining at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if "--verbose" in words:
            raise
        if isinstance(error, PermissionError) and os.geteuid() != 0:
            refusal = NotPermittedError(f"{error.filename}: this needs root", "try again with sudo")
            print_error(refusal, in_json=in_json)
            return refusal.exit_code
        defect = RekernelError(
            f"internal error: {type(error).__name__}: {error}",
            "please report this, with what --verbose prints",
        )
        print_error(defect, in_json=in_json)
        return defect.exit_code


__all__ = ["HIDDEN_VERBS", "VERBS", "build_parser", "main"]
