"""Files that take long to make, kept on disk until anything that they are made of has changed.

Whatever an ingredient is like, its inode and the time of its last change (ctime, which nobody can
set) tell it from what it was: contents that were replaced by others of the same size and date, too.
A directory changes when something appears in it that would be found instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rekernel import smallfiles

# Removed when the package is purged.
DIRECTORY = Path("/var/cache/rekernel")
_MOST = 4
# Coarser than any clock by which file systems write down changes.
_CLOCK_NS = 100_000_000


def stamp(path: str) -> list[int] | None:
    """What tells a file or directory from what it was before; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def key(*parts: Any) -> str:
    """Names what is made of these parameters, which JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def get(name: str, directory: Path | None = None) -> Path | None:
    """The file that was kept under this name; None if it would be another one by now."""
    path = (directory or DIRECTORY) / name
    try:
        entry = json.loads(path.with_suffix(".json").read_text())
        content = path.read_bytes()
        if [len(content), zlib.crc32(content)] != entry["content"]:
            return None
        if any(stamp(item) != was for item, was in entry["made_of"].items()):
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return path


def keep(
    name: str,
    content: bytes,
    made_of: Iterable[str],
    since_ns: int,
    directory: Path | None = None,
) -> Path | None:
    """Keep what was made of these files and directories; returns where.

    None if there is no room, or if one of them has changed since ``since_ns`` (real time), when it
    was begun: nobody knows which of the two went in.
    """
    directory = directory or DIRECTORY
    path = directory / name
    stamps = {item: stamp(item) for item in sorted(set(made_of))}
    newest = max((found[4] for found in stamps.values() if found), default=0)
    if newest >= since_ns - _CLOCK_NS or since_ns > time.time_ns():
        return None
    entry = {"made_of": stamps, "content": [len(content), zlib.crc32(content)]}
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(directory)
        for target, data in (
            (path, content), (path.with_suffix(".json"), json.dumps(entry).encode()),
        ):  # fmt: skip
            # Nobody takes one for the other: the figures in the second are of the first.
            smallfiles.create(str(target), data)
    except OSError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return path


def _prune(directory: Path) -> None:
    """Make room for one more: the oldest go."""
    kept = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in kept[: max(0, len(kept) - _MOST + 1)]:
        path.unlink()
        path.with_suffix("").unlink(missing_ok=True)
