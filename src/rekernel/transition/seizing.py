"""When criu has stopped all that is in a frozen control group, so that it need not be frozen.

criu can thaw a control group by itself, but only if all that is in it is one tree: with several,
the first would let the others run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_RUNNING = "running\n"


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
        self._done: set[int] = set()

    def done(self) -> set[int]:
        """Those that are criu's by now, or gone. One that was once is for good: when criu has let
        it run, it may be where it was before.
        """
        for root, before in list(self._left.items()):
            now = self._where(root)
            # From the freezer to where criu stops it, it counts as running for an instant.
            if not before or now not in (before, _RUNNING):
                del self._left[root]
                self._done.add(root)
        return self._done

    def _where(self, pid: int) -> str:
        """System call, stack pointer and program counter (proc_pid_syscall(5)); "" if gone."""
        try:
            return (self._proc / str(pid) / "syscall").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""
