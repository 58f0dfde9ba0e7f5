"""The phases of an upgrade on the screen, as they happen."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Protocol, TextIO

from rekernel.attempt.events import Event
from rekernel.records import asdict
from rekernel.report.layout import human_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PAUSE = "The screen pauses when services freeze; afterwards `rekernel report` shows the outcome."
# Whichever of these begins first is the last moment at which a word still gets through.
_LAST_WORDS = ("sync", "freeze")


class Display(Protocol):
    """Shows events."""

    def show(self, event: Event) -> None:
        """One more event."""

    def close(self) -> None:
        """No more events."""


class PlainDisplay:
    """One line per phase, when it has ended."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._paused = False

    def show(self, event: Event) -> None:
        """One more event."""
        if event.kind == "begin" and event.name in _LAST_WORDS and not self._paused:
            self._paused = True
            self._line(PAUSE)
        elif event.kind == "end":
            self._line(f"{event.name}: {human_seconds(event.detail.get('seconds', 0.0))}")
        elif event.kind == "failed":
            self._line(f"{event.name}: {event.detail.get('error') or 'stopped'}")
        elif event.kind == "note":
            self._line(f"note: {event.name}")

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """No more events."""


class JsonDisplay:
    """One JSON object per event, on stderr: stdout is for the result."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def show(self, event: Event) -> None:
        """One more event."""
        print(json.dumps({"schema": 1, **asdict(event)}), file=self._stream, flush=True)

    def close(self) -> None:
        """No more events."""


class LiveDisplay:
    """A spinner and the seconds of the phase under way, ticks for those that are done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
        from rich.text import Text

        class Seconds(ProgressColumn):
            """So far, or all in all."""

            def render(self, task: Task) -> Text:
                return Text(human_seconds(task.fields["took"] or task.elapsed or 0.0), style="dim")

        self._progress: Progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            Seconds(),
            console=Console(),
        )
        self._task: TaskID | None = None
        self._paused = False
        self._progress.start()

    def show(self, event: Event) -> None:
        """One more event."""
        if event.kind == "begin":
            if event.name in _LAST_WORDS and not self._paused:
                self._paused = True
                self._progress.console.print(PAUSE, style="yellow")
            self._task = self._progress.add_task(event.name, total=1, took=0.0)
        elif event.kind == "end" and self._task is not None:
            took = event.detail.get("seconds", 0.0)
            self._progress.update(self._task, completed=1, took=took)
        elif event.kind == "failed" and self._task is not None:
            # A finished task shows a tick: this one has to go.
            self._progress.remove_task(self._task)
            self._task = None
            text = f"✗ {event.name}: {event.detail.get('error') or 'stopped'}"
            self._progress.console.print(text, style="red", highlight=False, markup=False)
        elif event.kind == "note":
            text = f"note: {event.name}"
            self._progress.console.print(text, style="yellow", highlight=False, markup=False)

    def close(self) -> None:
        """No more events."""
        self._progress.stop()


def display_for(*, in_json: bool) -> Display:
    """What fits the terminal, or the lack of one."""
    if in_json:
        return JsonDisplay()
    if not sys.stdout.isatty():
        return PlainDisplay()
    try:
        return LiveDisplay()
    except ImportError:
        return PlainDisplay()
