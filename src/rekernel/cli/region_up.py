"""``rekernel region-up``: bring the carry region where it belongs; rekernel-region.service."""

from __future__ import annotations

import argparse

from rekernel.carry.memory import pager, region
from rekernel.cli.common import VerbParsers, add_verb, require_root
from rekernel.errors import RekernelError


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    add_verb(
        subparsers,
        "region-up",
        "make the carry region usable as memory; rekernel-region.service runs this at boot",
        hidden=True,
    )


def run(args: argparse.Namespace) -> int:
    """Returns 0. Raises RekernelError."""
    require_root()
    # While the pager runs, what is mapped still holds carried pages.
    carried = pager.SOCKET.exists()
    try:
        region.settle(drained=not carried)
    except OSError as error:
        raise RekernelError(
            f"the carry region cannot be set up: {error}", "see the kernel log"
        ) from error
    if carried:
        # Only now is there room to drain into.
        pager.ask("drain")
    return 0
