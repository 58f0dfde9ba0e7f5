"""The errors a user can meet: each class carries its exit code, each instance a next step."""

from __future__ import annotations

(
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_USAGE,
    EXIT_BLOCKED,
    EXIT_DEGRADED,
    EXIT_ROLLED_BACK,
    EXIT_NOTHING_TO_DO,
    EXIT_BUSY,
    EXIT_NOT_PERMITTED,
) = range(9)

# Part of the product's contract. The help is made of it, the man page is checked against it.
EXIT_CODES = {
    EXIT_DONE: "done",
    EXIT_FAILED: "failed",
    EXIT_USAGE: "usage",
    EXIT_BLOCKED: "blocked or not set up",
    EXIT_DEGRADED: "degraded",
    EXIT_ROLLED_BACK: "rolled back",
    EXIT_NOTHING_TO_DO: "nothing to do",
    EXIT_BUSY: "busy",
    EXIT_NOT_PERMITTED: "not permitted",
}


class RekernelError(Exception):
    """Something failed; nothing was lost. ``hint`` names the next step."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(RekernelError):
    """The command line or the configuration cannot be meant."""

    exit_code = EXIT_USAGE


class BlockedError(RekernelError):
    """This host or one of its units cannot be upgraded as it stands."""

    exit_code = EXIT_BLOCKED


class NotUndoneError(RekernelError):
    """Something of an attempt before is still as that had made it."""


class CancelledError(RekernelError):
    """Asked to stop by SIGTERM or SIGINT."""

    exit_code = EXIT_ROLLED_BACK


class RolledBackError(RekernelError):
    """The attempt ended early; all undone, everything runs on under the old kernel."""

    exit_code = EXIT_ROLLED_BACK


class NothingToDoError(RekernelError):
    """The machine already runs what was asked for."""

    exit_code = EXIT_NOTHING_TO_DO


class BusyError(RekernelError):
    """Another upgrade is under way."""

    exit_code = EXIT_BUSY


class NotPermittedError(RekernelError):
    """Root is needed, or the kernel is locked down."""

    exit_code = EXIT_NOT_PERMITTED
