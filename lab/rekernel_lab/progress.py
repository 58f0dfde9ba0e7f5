"""What the lab shows while it works: timed steps on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

_GREEN, _RED, _DIM, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


class Progress:
    """Prints steps. rich is used if it is there: setup-host has to run before it is."""

    def __init__(self, *, terminal: bool | None = None) -> None:
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._console: Any = None
        if self._terminal:
            try:
                from rich.console import Console
            except ImportError:
                return
            self._console = Console(stderr=True, highlight=False)

    def line(self, text: str, *, colour: str = "") -> None:
        """Print one line."""
        plain = not (self._terminal and colour)
        print(text if plain else f"{colour}{text}{_PLAIN}", file=sys.stderr, flush=True)

    def guest(self, text: str) -> None:
        """Print a line that came from the guest or from a script of a scenario."""
        self.line(f"    {text}", colour=_DIM)

    def error(self, text: str) -> None:
        """Print an error."""
        self.line(text, colour=_RED)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show `text` while the block runs, and how long it took."""
        began = time.monotonic()
        spinner: AbstractContextManager[Any] = nullcontext()
        if self._console:
            spinner = self._console.status(text)
        else:
            self.line(f"{text} ...")
        try:
            with spinner:
                yield
        except BaseException:
            self.error(f"✗ {text} ({time.monotonic() - began:.1f} s)")
            raise
        self.line(f"✓ {text} ({time.monotonic() - began:.1f} s)", colour=_GREEN)
