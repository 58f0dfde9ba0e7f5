"""The agent speaks to the kernel log: here, to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rekernel.pid1 import console


class Said:
    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()


@pytest.fixture(autouse=True)
def said(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Said]:
    path = tmp_path_factory.mktemp("said") / "kmsg"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    monkeypatch.setattr(console, "_sinks", [(fd, "<5>")])
    console.missing.clear()
    yield Said(path)
    os.close(fd)
