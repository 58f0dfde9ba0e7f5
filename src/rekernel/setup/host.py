"""The machine that is set up: its file tree and its programs; in tests a directory and a fake."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rekernel.records import record
from rekernel.run import run


class Runner(Protocol):
    """Runs a program as :func:`rekernel.run.run` does."""

    def __call__(
        self, argv: Sequence[str], *, check: bool = True, timeout: float | None = 120
    ) -> str:
        """Standard output."""
        ...


@record
class Host:
    """Where files are and what runs programs."""

    root: Path = Path("/")
    run: Runner = run

    def path(self, absolute: str) -> Path:
        """Where this path of the machine is."""
        return self.root / absolute.lstrip("/")

    def text(self, absolute: str) -> str:
        """Content of a text file; "" if there is none."""
        try:
            return self.path(absolute).read_text()
        except FileNotFoundError:
            return ""

    def program(self, name: str) -> bool:
        """Whether it is installed."""
        places = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
        return any(os.access(self.path(f"{place}/{name}"), os.X_OK) for place in places)
