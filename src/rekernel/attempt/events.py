"""One stream of events: what happens, to whoever listens (console, journal, history)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rekernel.handover.manifest import Phase
from rekernel.records import asdict, field, record

EVENTS = Path("/run/rekernel/events.jsonl")


@record
class Event:
    """``kind``: "begin", "end", "note", "failed", "done". Times are real time in nanoseconds."""

    kind: str
    name: str
    at_ns: int
    detail: dict[str, Any] = field(default_factory=dict)


class EventStream:
    """Keeps the phases and tells the subscribers."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self._subscribers: list[Callable[[Event], None]] = []

    def subscribe(self, subscriber: Callable[[Event], None]) -> None:
        """From now on call this for every event."""
        self._subscribers.append(subscriber)

    def emit(self, kind: str, name: str, **detail: Any) -> None:
        """Tell everyone."""
        event = Event(kind, name, time.time_ns(), detail)
        for subscriber in self._subscribers:
            subscriber(event)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A timed phase; its end is told whether it failed or not."""
        start = time.time_ns()
        self.emit("begin", name)
        try:
            yield
        except BaseException as error:
            self.phases.append(Phase(name, start, time.time_ns()))
            self.emit("failed", name, error=str(error))
            raise
        end = time.time_ns()
        self.phases.append(Phase(name, start, end))
        self.emit("end", name, seconds=round((end - start) / 1e9, 4))


class JsonLines:
    """A subscriber that appends to a file on tmpfs, for the terminal that may go away."""

    def __init__(self, path: Path = EVENTS) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", buffering=1)

    def __call__(self, event: Event) -> None:
        # Nobody's work may fail because there is no room to tell of it.
        with suppress(OSError):
            self._file.write(json.dumps(asdict(event)) + "\n")
