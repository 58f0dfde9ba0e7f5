"""Whether there is room for what the blackout writes: told while nothing is frozen yet.

All figures are lower bounds: what could work is never refused, and what runs full all the same is
undone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rekernel.errors import BlockedError
from rekernel.host import mounts
from rekernel.plan import Plan
from rekernel.records import record

_MIB = 1 << 20
# For a store file: the manifest, criu's images without pages, and what tmpfs grow until the freeze.
_ALL_ELSE = 256 * _MIB


@record
class Needs:
    """Bytes that will be written. ``largest_tmpfs`` passes through the scratch directory."""

    images: int
    tmpfs: int
    largest_tmpfs: int

    @property
    def store(self) -> int:
        """What the store must hold if the images go there, too."""
        return self.images + self.tmpfs


def needs(plan: Plan, contents: Sequence[mounts.TmpfsPlan]) -> Needs:
    """What this upgrade writes in its blackout."""
    sizes = [mounts.tmpfs_bytes(item) for item in contents]
    # Mapped files of a tmpfs are in both figures; criu leaves them to the tmpfs.
    images = max(0, plan.shared_bytes - sum(sizes))
    if plan.where is None:
        images += plan.anonymous_bytes
    return Needs(images, sum(sizes), max(sizes, default=0))


def assert_on_disk(directory: Path, needed: int) -> None:
    """Raises BlockedError if a file system has less free."""
    status = os.statvfs(directory)
    free = status.f_bfree * status.f_frsize
    if free < needed:
        raise BlockedError(
            f"{directory} has {free // _MIB} MiB free, "
            f"the upgrade needs {needed // _MIB} MiB there",
            "make room on that file system",
        )


def assert_in_store(needed: Needs, capacity: int) -> None:
    """Raises BlockedError if the region's store cannot hold it."""
    if needed.store > capacity:
        raise BlockedError(
            f"the handover store has room for {capacity // _MIB} MiB, the upgrade needs "
            f"{needed.store // _MIB} MiB: {needed.images // _MIB} MiB of shared memory, "
            f"{needed.tmpfs // _MIB} MiB in tmpfs",
            "a larger region has a larger store: rekernel setup",
        )


def make_store_file(path: Path, needed: Needs) -> None:
    """The store of an upgrade without a region, with its room taken. Raises BlockedError."""
    size = (2 * needed.tmpfs + _ALL_ELSE) // _MIB * _MIB
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise BlockedError(
            f"no {size // _MIB} MiB could be taken for {path}: {error.strerror}",
            "make room on that file system",
        ) from error
