"""When criu has stopped all that is in a frozen control group, so that it need not be frozen.

criu can thaw a control group by itself, but only if all that is in it is one tree: with several,
the first would let the others run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rekernel import smallfiles

_RUNNING = b"running\n"


class Seizing:
    """Frozen trees, by their root, and which of them are known to be criu's.

    criu stops every thread of a tree before it does anything to one of them, and then begins with
    the root: it sets its registers and lets it run. Frozen, it does not get far, but where it is
    has changed.
    """

    def __init__(self, roots: Iterable[int], proc: Path = Path("/proc")) -> None:
        """To be made while all of them are frozen, before any criu starts."""
        self._proc = proc
        self._left = {root: self._where(root) for root in roots}

    def is_done(self, root: int) -> bool:
        """Whether it is criu's by now, or gone. One that was once is for good: when criu has let
        it run, it may be where it was before.
        """
        before = self._left.get(root)
        if before is None:
            return True
        now = self._where(root)
        # From the freezer to where criu stops it, it counts as running for an instant.
        if before and now in (before, _RUNNING):
            return False
        del self._left[root]
        return True

    def _where(self, pid: int) -> bytes:
        """System call, stack pointer and program counter (proc_pid_syscall(5)); empty if gone."""
        try:
            return smallfiles.read(f"{self._proc}/{pid}/syscall")
        except (FileNotFoundError, ProcessLookupError):
            return b""
