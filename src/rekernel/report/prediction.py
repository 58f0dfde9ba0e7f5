"""How long the blackout will be: from this machine's past ones, else from a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rekernel.records import record

_MIB = 1 << 20
# Every tree costs about a tenth of what an upgrade costs without any.
_TREES_OF_BASE = 10
# Images are written and read again: so much of them takes as long as the kernel switch itself.
_IMAGE_BASE = 512 * _MIB

# The model: a kernel starts a second time, and so do criu and the agent's Python.
_BOOT_FACTOR = 1.6
_BOOT_DEFAULT = 2.5
_PER_TREE = 0.1
_IMAGE_BYTES_PER_SECOND = 150 * _MIB
# What goes by way of the store is copied four times in memory.
_STORE_BYTES_PER_SECOND = 500 * _MIB
# The phases in which bytes are copied, and how many must have been for these to be a measure.
_COPYING = ("dump", "hand over", "freeze file systems", "unpack", "restore")
_TELLING = 64 * _MIB


def _middle(values: Sequence[float]) -> float:
    """As that of statistics, which takes long to import."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@record
class Prediction:
    """``seconds`` of blackout. ``basis``: "history" (of ``samples`` upgrades) or "model"."""

    seconds: float
    basis: str
    samples: int = 0

    @property
    def explanation(self) -> str:
        """Where the number comes from, in words."""
        if self.basis == "history":
            count = "the last upgrade" if self.samples == 1 else f"{self.samples} upgrades"
            return f"from {count} of this machine"
        return "a guess: this machine was not upgraded yet"


@record
class Copied:
    """Bytes that are copied in the blackout: by way of the store, and by way of the disk."""

    store: int = 0
    disk: int = 0

    def seconds(self, speed: Speed) -> float:
        """How long that takes."""
        return self.store / speed.store + self.disk / speed.disk


@record
class Speed:
    """Bytes in a second, there and back."""

    store: float = _STORE_BYTES_PER_SECOND
    disk: float = _IMAGE_BYTES_PER_SECOND


def _copied_before(report: Mapping[str, Any]) -> Copied:
    memory = report.get("memory") or {}
    disk = int(memory.get("disk_bytes", 0))
    return Copied(int(memory.get("bytes_copied", disk)) - disk, disk)


def _speed(report: Mapping[str, Any], trees: int) -> Speed | None:
    """How fast this upgrade was; None if it copied too little to tell.

    Both kinds of copying at once are not told apart: they are as in the guess to each other.
    """
    copied = _copied_before(report)
    phases = report.get("phases", [])
    spent = sum(float(phase["seconds"]) for phase in phases if phase["name"] in _COPYING)
    spent -= _PER_TREE * trees
    if copied.store + copied.disk < _TELLING or spent <= 0:
        return None
    factor = copied.seconds(Speed()) / spent
    return Speed(_STORE_BYTES_PER_SECOND * factor, _IMAGE_BYTES_PER_SECOND * factor)


def _median(past: Sequence[tuple[Copied, Speed]]) -> Speed:
    """Of each kind by those upgrades that copied mostly so, the other kind as in the guess."""
    store = [speed.store for copied, speed in past if copied.store >= copied.disk]
    disk = [speed.disk for copied, speed in past if copied.disk > copied.store]
    return Speed(
        _middle(store) if store else _STORE_BYTES_PER_SECOND,
        _middle(disk) if disk else _IMAGE_BYTES_PER_SECOND,
    )


def predict(
    *,
    backend: str,
    trees: int,
    resident_bytes: int,
    container_bytes: int = 0,
    copied: Copied | None = None,
    past: Iterable[Mapping[str, Any]] = (),
    boot_seconds: float = 0.0,
) -> Prediction:
    """The blackout to expect.

    ``container_bytes``: memory of podman's containers, which is written to disk in it.
    ``copied``: what else is.
    ``past``: reports, newest first; those of the same back-end that were done count, ten at most.
    ``boot_seconds``: how long this kernel took from its start to the first user space, 0 if
    unknown.
    """
    samples = []
    speeds: list[tuple[Copied, Speed]] = []
    for report in past:
        blackout = report.get("blackout_s")
        if report.get("outcome") not in ("done", "degraded") or not blackout:
            continue
        if report.get("backend") != backend:
            continue
        carried = [unit for unit in report.get("units", []) if unit.get("verdict") == "carried"]
        scale = (_TREES_OF_BASE + trees) / (_TREES_OF_BASE + len(carried))
        if backend == "image":
            before = int(report.get("memory", {}).get("resident_bytes", 0))
            scale *= (_IMAGE_BASE + resident_bytes) / (_IMAGE_BASE + before)
        written = int((report.get("memory") or {}).get("container_bytes", 0))
        spent = written / _IMAGE_BYTES_PER_SECOND
        if backend == "region":
            copied_then, speed = _copied_before(report), _speed(report, len(carried))
            speeds += [(copied_then, speed)] if speed else []
            spent += copied_then.seconds(speed or Speed())
        samples.append(max(0.0, float(blackout) - spent) * scale)
        if len(samples) == 10:
            break
    copying = container_bytes / _IMAGE_BYTES_PER_SECOND
    if backend == "region" and copied is not None:
        copying += copied.seconds(_median(speeds))
    if samples:
        seconds = _middle(samples) + copying
        return Prediction(round(seconds, 2), "history", len(samples))
    seconds = _BOOT_FACTOR * (boot_seconds or _BOOT_DEFAULT) + _PER_TREE * trees + copying
    if backend == "image":
        seconds += resident_bytes / _IMAGE_BYTES_PER_SECOND
    return Prediction(round(seconds, 2), "model")


def boot_seconds(stamps: Iterable[int]) -> float:
    """Seconds from the kernel's start to user space, 0 if unknown.

    ``stamps``: systemd's InitRDTimestampMonotonic and UserspaceTimestampMonotonic (µs; the first is
    0 where the initrd does not run systemd). More than 30 s is no kernel but somebody typing a
    passphrase.
    """
    for micros in stamps:
        if micros:
            return micros / 1e6 if micros < 30_000_000 else 0.0
    return 0.0
