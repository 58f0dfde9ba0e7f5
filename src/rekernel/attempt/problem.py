"""What could not be undone: a fact of an attempt's record, not a sentence."""

from __future__ import annotations

from rekernel.records import record


@record
class Problem:
    """A step that is still to be undone. ``step``, ``value``: as they stand on the undo list.

    ``error``: why it could not be undone, in words. ``remedy``: what does the same by hand.
    """

    step: str
    value: str
    error: str
    remedy: str

    def __str__(self) -> str:
        """For people, on one line."""
        return f"{f'{self.step} {self.value}'.rstrip()}: {self.error} (by hand: {self.remedy})"
