"""What can go wrong in the lab; only `cli` prints these and exits."""


class LabError(Exception):
    """The lab cannot go on. `hint` names the next step for the reader."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(LabError):
    """The request itself makes no sense (bad scenario, unknown VM, unknown kernel)."""

    exit_code = 2


class DeadlineError(LabError):
    """Something did not happen in the time it was given."""


class LostVMError(LabError):
    """The virtual machine is gone: QEMU ended, or its kernel panicked."""
