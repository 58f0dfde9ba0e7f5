"""Many small files, within the blackout: each costs three or four system calls.

Path.read_bytes() and open() take four to twenty times as long for a file of a page or less. With
large ones these are as fast.
"""

from __future__ import annotations

import os

_CHUNK = 1 << 16


def read(path: str, at: int | None = None) -> bytes:
    """Read a whole file; ``at`` is the directory that a relative path begins in. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        parts = [os.read(fd, max(os.fstat(fd).st_size, _CHUNK))]
        # Those of /proc come in pieces of any length.
        while parts[-1]:
            parts.append(os.read(fd, _CHUNK))
        # Mostly all came at once, and need not be copied.
        return b"".join(parts) if len(parts) > 2 else parts[0]
    finally:
        os.close(fd)


def write(path: str, data: bytes) -> None:
    """Write to a file that is there already, as those of /proc and /sys are. Raises OSError."""
    _write(os.open(path, os.O_WRONLY | os.O_CLOEXEC), data)


def create(path: str, data: bytes | memoryview) -> None:
    """Make a file that only we may read, or fill the one that is there. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    _write(os.open(path, flags, 0o600), data)


def _write(fd: int, data: bytes | memoryview) -> None:
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)
