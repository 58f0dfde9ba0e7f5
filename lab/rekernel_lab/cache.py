"""Artefacts that are slow to make, each kept under a key made of its ingredients."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def root() -> Path:
    """Return the cache directory (REKERNEL_LAB_CACHE, else .cache/lab of the repository)."""
    override = os.environ.get("REKERNEL_LAB_CACHE")
    path = Path(override) if override else REPOSITORY / ".cache" / "lab"
    path.mkdir(parents=True, exist_ok=True)
    return path


def key(*ingredients: object) -> str:
    """Return a short stable name for something made of `ingredients` (JSON-serialisable)."""
    packed = json.dumps(ingredients, sort_keys=True, default=str)
    return hashlib.sha256(packed.encode()).hexdigest()[:16]


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock `name`, so that two labs do not build the same thing at once."""
    directory = root() / "locks"
    directory.mkdir(exist_ok=True)
    with (directory / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def building(kind: str, name: str) -> Iterator[Path | None]:
    """Build the artefact directory `kind/name` once.

    Yields an empty directory to fill, or None if the artefact exists. It appears under its
    final name only when the block ends without an exception.
    """
    final = root() / kind / name
    with lock(f"{kind}-{name}"):
        if final.exists():
            # The time of the last use: what was not used for long may be removed.
            os.utime(final)
            yield None
            return
        scratch = final.with_name(f"{name}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        scratch.rename(final)


def stale(kind: str, days: float) -> list[Path]:
    """Return the artefacts of a kind that were not used for so many days."""
    limit = time.time() - days * 24 * 3600
    return [path for path in (root() / kind).glob("*/") if path.stat().st_mtime < limit]
