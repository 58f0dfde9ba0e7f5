"""``rekernel report``: one upgrade in detail, as text, JSON or a self-contained HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from rekernel.cli.common import VerbParsers, add_verb, paint_for_stdout, print_json
from rekernel.errors import RekernelError, UsageError
from rekernel.report import html
from rekernel.report.history import History
from rekernel.report.text import render


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "report",
        "show an upgrade in detail",
        "Show an upgrade in detail: what was carried over, the connections, the blackout by "
        "phase, the memory, what was restarted and why.",
    )
    parser.add_argument(
        "id", nargs="?", metavar="ID", help="from `rekernel history` (default: the last one)"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also tell what differs with processes that may have changed it by themselves",
    )
    parser.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a self-contained HTML page to FILE (default: rekernel-ID.html; - for stdout)",
    )


def run(args: argparse.Namespace) -> int:
    """Returns 0. Raises UsageError for an unknown ID, NothingToDoError if there is none."""
    if args.json and args.html is not None:
        raise UsageError("--json and --html exclude each other", "see rekernel report --help")
    report = History().get(args.id)
    if args.json:
        print_json(report)
    elif args.html is None:
        print(render(report, paint_for_stdout(), everything=args.all), end="")
    elif args.html == "-":
        print(html.render(report), end="")
    else:
        path = Path(args.html or f"rekernel-{report['id']}.html")
        try:
            path.write_text(html.render(report))
        except OSError as error:
            raise RekernelError(f"{path}: {error.strerror}", "name another file") from None
        print(path)
    return 0
