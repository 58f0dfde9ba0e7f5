"""When criu has stopped all that is in a frozen control group, so that it need not be frozen.

criu can thaw a control group by itself, but only if all that is in it is one tree: with several,
the first would let the others run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_RUNNING = "running\n"


class Seizing:
    """Trees of a frozen control group, by their root, that are not known to be criu's yet.

    criu stops every thread of a tree before it does anything to one of them, and then begins with
    the root: it sets its registers and lets it run. Frozen, it does not get far, but where it is
    has changed.
    """

    def __init__(self, roots: Iterable[int], proc: Path = Path("/proc")) -> None:
        """To be made while all of them are frozen, before any criu starts."""
        self._proc = proc
        self._left = {root: self._where(root) for root in roots}

    def done(self) -> bool:
        """Whether all are criu's, or gone."""
        now = {root: self._where(root) for root in self._left}
        # On its way from the freezer to where criu stops it, it counts as running for an instant.
        unmoved = {root for root, at in now.items() if at in (self._left[root], _RUNNING)}
        self._left = {root: at for root, at in self._left.items() if at and root in unmoved}
        return not self._left

    def _where(self, pid: int) -> str:
        """System call, stack pointer and program counter (proc_pid_syscall(5)); "" if gone."""
        try:
            return (self._proc / str(pid) / "syscall").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""
