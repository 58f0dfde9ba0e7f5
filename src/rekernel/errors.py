"""The errors a user can meet: each class carries its exit code, each instance a next step.

Exit codes are part of the product's contract (see ``man rekernel``): 0 done, 1 failed, or not
undone, 2 usage, 3 blocked or not set up, 4 degraded, 5 rolled back, 6 nothing to do, 7 busy,
8 not permitted.
"""

from __future__ import annotations


class RekernelError(Exception):
    """Something failed; nothing was lost. ``hint`` names the next step."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(RekernelError):
    """The command line or the configuration cannot be meant."""

    exit_code = 2


class BlockedError(RekernelError):
    """This host or one of its units cannot be upgraded as it stands."""

    exit_code = 3


class NotUndoneError(RekernelError):
    """Something of an attempt before is still as that had made it."""


class CancelledError(RekernelError):
    """Asked to stop by SIGTERM or SIGINT."""

    exit_code = 5


class RolledBackError(RekernelError):
    """The attempt ended early; all undone, everything runs on under the old kernel."""

    exit_code = 5


class NothingToDoError(RekernelError):
    """The machine already runs what was asked for."""

    exit_code = 6


class BusyError(RekernelError):
    """Another upgrade is under way."""

    exit_code = 7


class NotPermittedError(RekernelError):
    """Root is needed, or the kernel is locked down."""

    exit_code = 8
