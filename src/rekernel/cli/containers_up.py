"""``rekernel containers-up``: podman's containers run again; rekernel-containers.service."""

from __future__ import annotations

import argparse

from rekernel.attempt import state as attempt
from rekernel.cli.common import VerbParsers, add_verb, require_root
from rekernel.containers import restore


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    add_verb(
        subparsers,
        "containers-up",
        "let podman restore the containers that an upgrade has carried; "
        "rekernel-containers.service runs this",
        hidden=True,
    )


def run(args: argparse.Namespace) -> int:
    """Returns 0; what failed is in the report. Raises RekernelError."""
    require_root()
    # Started with its target, say: what is stopped and written then belongs to the attempt.
    if not attempt.unit_runs():
        restore.run_all()
    return 0
