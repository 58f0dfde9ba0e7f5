"""Nothing may keep the machine from booting: what takes far too long is interrupted.

A system call of the main thread that can be interrupted is, and the error takes the agent's
ordinary way out: whatever was restored ends, and the machine boots. What stands still on that way
is interrupted as well.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

# Seconds from one interruption to the next.
_AGAIN_S = 20.0
# For a step that starts a program or two.
STEP_S = 60.0


class StuckError(Exception):
    """It took far too long; the message says where it stood."""

    of_watchdog = True


def allow(seconds: float) -> None:
    """Let the main thread get a :class:`StuckError` if it is not done by then."""
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)


def stop() -> None:
    """Done."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise StuckError(f"it stands still in {', '.join(_where())}")


def _where() -> list[str]:
    """The innermost function of ours, of each thread."""
    found = []
    for innermost in sys._current_frames().values():
        frame: FrameType | None = innermost
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module.startswith("rekernel.") and module != __name__:
                function = f"{module.removeprefix('rekernel.')}.{frame.f_code.co_name}"
                found.append(f"{function}:{frame.f_lineno}")
                break
            frame = frame.f_back
    return found
