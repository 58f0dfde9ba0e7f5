"""Files whose room is taken beforehand, for what must be told when there may be none left."""

from __future__ import annotations

import os
from pathlib import Path


def reserve(path: Path, size: int) -> None:
    """Take the room for a later :func:`write` of up to ``size`` bytes. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial(path).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def write(path: Path, text: str) -> None:
    """Replace a file as one step, on disk when this returns; uses the room if it was reserved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    partial.touch()
    with partial.open("r+") as file:
        file.write(text)
        file.truncate()
        file.flush()
        # The machine may well change its kernel a second later.
        os.fsync(file.fileno())
    partial.replace(path)


def release(path: Path) -> None:
    """Give up the room for a :func:`write` that does not come. Raises OSError."""
    _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
