"""How long the blackout will be: from this machine's past ones, else from a model."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
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


def predict(
    *,
    backend: str,
    trees: int,
    resident_bytes: int,
    container_bytes: int = 0,
    past: Iterable[Mapping[str, Any]] = (),
    boot_seconds: float = 0.0,
) -> Prediction:
    """The blackout to expect.

    ``container_bytes``: memory of podman's containers, which is written to disk in it.
    ``past``: reports, newest first; those of the same back-end that were done count, ten at most.
    ``boot_seconds``: how long this kernel took from its start to the first user space, 0 if
    unknown.
    """
    samples = []
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
        samples.append(max(0.0, float(blackout) - written / _IMAGE_BYTES_PER_SECOND) * scale)
        if len(samples) == 10:
            break
    on_disk = container_bytes / _IMAGE_BYTES_PER_SECOND
    if samples:
        seconds = statistics.median(samples) + on_disk
        return Prediction(round(seconds, 2), "history", len(samples))
    seconds = _BOOT_FACTOR * (boot_seconds or _BOOT_DEFAULT) + _PER_TREE * trees + on_disk
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
