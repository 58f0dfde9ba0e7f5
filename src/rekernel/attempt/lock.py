"""The one lock of everything that changes this machine: upgrades and setup."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rekernel.errors import BusyError

LOCK = Path("/run/rekernel/lock")


@contextmanager
def exclusive(path: Path | None = None) -> Iterator[None]:
    """Hold the lock (LOCK, or another for tests). Raises BusyError if somebody else does."""
    path = path or LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                "another upgrade is under way, or a setup",
                "see `rekernel status`; stop an upgrade: `rekernel abort`",
            ) from None
        yield
