"""The attempt that is under way, as its unit, its events and its outcome file tell it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rekernel import preallocated
from rekernel.attempt.brownout import read_json
from rekernel.attempt.events import EVENTS, Event
from rekernel.records import record
from rekernel.run import run
from rekernel.systemd.units import state_of

UNIT = "rekernel-upgrade.service"
_CGROUP = Path("/sys/fs/cgroup/system.slice", UNIT)
OUTCOME = Path("/run/rekernel/outcome.json")
# Without a region: of each attempt, by its ID, everything that it hands over.
IMAGES = Path("/var/lib/rekernel/images")
# More than a report of some hundred units has.
_OUTCOME_BYTES = 128 << 10
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Names this boot of this kernel."""
    return _BOOT_ID.read_text().strip()


def unit_active() -> bool:
    """Whether the upgrade's unit runs, or is being undone."""
    return state_of(UNIT) in ("active", "activating", "deactivating", "reloading")


def stop_unit() -> None:
    """Ask the attempt to stop. Only its main process: criu must end by itself."""
    argv = ["systemctl", "kill", "--kill-whom=main", "--signal=SIGTERM", "--", UNIT]
    run(argv, check=False)


def unit_runs() -> bool:
    """Whether the upgrade's unit runs: cheap, and without a program that could be carried along."""
    return _CGROUP.is_dir()


def reserve_outcome(path: Path = OUTCOME) -> None:
    """Take the room for a report now: what ends the attempt may be that there is none left."""
    preallocated.reserve(path, _OUTCOME_BYTES)


def write_outcome(report: Mapping[str, Any], path: Path = OUTCOME) -> None:
    """Leave a report for whoever waits for the attempt to end."""
    preallocated.write(path, json.dumps(report))


def read_outcome(path: Path = OUTCOME) -> dict[str, Any] | None:
    """The report of the attempt that ended last under this kernel; None if there is none."""
    return read_json(path)


class Follower:
    """Reads events while they are written, whoever else reads them."""

    def __init__(self, path: Path = EVENTS, since_ns: int = 0) -> None:
        """``since_ns``: older events are of an earlier attempt."""
        self._path = path
        self._since = since_ns
        self._offset = 0
        self._inode = 0

    def poll(self) -> list[Event]:
        """What was written since the last call."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    # Begun anew by the next attempt.
                    self._inode, self._offset = status.st_ino, 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = []
        for line in whole.splitlines():
            raw = json.loads(line)
            event = Event(raw["kind"], raw["name"], raw["at_ns"], raw["detail"])
            if event.at_ns >= self._since:
                events.append(event)
        return events


@record
class Progress:
    """``phase``: the one that is under way, "" between two. ``done``: (name, seconds)."""

    phase: str
    since_ns: int
    done: tuple[tuple[str, float], ...]


def progress(path: Path = EVENTS) -> Progress:
    """How far the attempt is that writes these events."""
    phase, since = "", 0
    done = []
    for event in Follower(path).poll():
        if event.kind == "begin":
            phase, since = event.name, event.at_ns
        elif event.kind in ("end", "failed"):
            seconds = event.detail.get("seconds", (event.at_ns - since) / 1e9)
            done.append((event.name, float(seconds)))
            phase = ""
    return Progress(phase, since, tuple(done))
