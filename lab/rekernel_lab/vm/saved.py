"""The saved state of a running guest: its memory and devices, and its disk as of that moment."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab import cache
from rekernel_lab.errors import DeadlineError, LabError
from rekernel_lab.run import run
from rekernel_lab.vm.qemu import Monitor

KIND = "states"

# Each takes some GB, and every change of the product makes another one.
_KEPT = 3
# Nobody takes longer to copy one that he was told of.
_IN_USE_S = 600.0

_SAVE_S = 120.0
_LOAD_S = 120.0
# QEMU's own limit is meant for networks. Bytes per second.
_BANDWIDTH = 10 << 30


@dataclass(frozen=True, slots=True)
class Saved:
    """A directory with a saved state."""

    directory: Path

    @property
    def disk(self) -> Path:
        """The first disk; never to be used, but copied."""
        return self.directory / "disk.raw"

    @property
    def memory(self) -> Path:
        """QEMU's migration stream: memory, processors and devices."""
        return self.directory / "memory"


def save(monitor: Monitor, disk: Path, directory: Path) -> None:
    """Stop a guest for good and save its state; the disk is its only one that was written to.

    Raises LabError if QEMU cannot do that.
    """
    saved = Saved(directory)
    monitor.execute("stop")
    monitor.execute("migrate-set-parameters", **{"max-bandwidth": _BANDWIDTH})
    monitor.execute("migrate", uri=f"file:{saved.memory}")
    _wait(monitor, _SAVE_S)
    # All that the guest ever wrote is in the file now.
    run(["cp", "--sparse=always", "--reflink=auto", disk, saved.disk])


def resume(monitor: Monitor, directory: Path) -> None:
    """Load a saved state into a QEMU that was started to wait for one, and let the guest go on.

    Raises LabError if that state does not fit.
    """
    monitor.execute("migrate-incoming", uri=f"file:{Saved(directory).memory}")
    _wait(monitor, _LOAD_S)
    monitor.execute("cont")


def _wait(monitor: Monitor, patience: float) -> None:
    deadline = time.monotonic() + patience
    while (state := monitor.execute("query-migrate")).get("status") != "completed":
        if state.get("status") == "failed":
            raise LabError(f"QEMU's migration failed: {state.get('error-desc', 'no reason given')}")
        if time.monotonic() > deadline:
            raise DeadlineError(f"QEMU's migration took longer than {patience:.0f} s")
        time.sleep(0.05)


def prune() -> None:
    """Remove all but the newest saved states, and those that are in use."""
    found = [path for path in (cache.root() / KIND).glob("*/") if path.suffix != ".part"]
    ages = dict[Path, float]()
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            ages[path] = time.time() - path.stat().st_mtime
    for path in sorted(ages, key=lambda path: ages[path])[_KEPT:]:
        if ages[path] > _IN_USE_S:
            shutil.rmtree(path, ignore_errors=True)
