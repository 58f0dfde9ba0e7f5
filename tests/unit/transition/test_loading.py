"""The kernel is loaded beside all else; whoever waits for it can be stopped."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rekernel import syscalls
from rekernel.attempt.undo import UndoList
from rekernel.errors import CancelledError, NotPermittedError, RekernelError
from rekernel.transition.loading import Loading


@pytest.fixture
def undo(tmp_path: Path) -> UndoList:
    return UndoList(tmp_path / "undo.json")


@pytest.fixture
def initrd(tmp_path: Path) -> Path:
    path = tmp_path / "initrd"
    path.write_bytes(b"archive")
    return path


def load(initrd: Path, undo: UndoList, *, only_once: bool = True) -> Loading:
    return Loading(Path("/boot/vmlinuz-7"), initrd, "quiet", undo, only_once=only_once)


def never() -> None:
    """Nobody stops the attempt."""


@pytest.mark.parametrize("only_once", [True, False])
def test_loaded(
    only_once: bool, initrd: Path, undo: UndoList, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(syscalls, "kexec_file_load", lambda *words: asked.append(words))
    load(initrd, undo, only_once=only_once).finish(never)
    assert asked == [("/boot/vmlinuz-7", str(initrd), "quiet")]
    assert initrd.exists() is not only_once


@pytest.mark.parametrize(
    ("cause", "kind", "words"),
    [
        (PermissionError(1, "Operation not permitted"), NotPermittedError, "refuses kexec_file"),
        (OSError(8, "Exec format error"), RekernelError, "cannot load /boot/vmlinuz-7: Exec form"),
    ],
)
def test_refused(
    cause: OSError,
    kind: type[RekernelError],
    words: str,
    initrd: Path,
    undo: UndoList,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: str) -> None:
        raise cause

    monkeypatch.setattr(syscalls, "kexec_file_load", refuse)
    with pytest.raises(kind, match=words):
        load(initrd, undo).finish(never)


def test_stopped_while_it_loads(
    initrd: Path, undo: UndoList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is unloaded before the kernel is done with it."""
    may_go_on, order = threading.Event(), []

    def slow(*_: str) -> None:
        may_go_on.wait(10)
        order.append("loaded")

    def stop() -> None:
        raise CancelledError("stopped by SIGTERM")

    monkeypatch.setattr(syscalls, "kexec_file_load", slow)
    loading = load(initrd, undo)
    with pytest.raises(CancelledError):
        loading.finish(stop)
    threading.Timer(0.2, may_go_on.set).start()
    loading.end()
    order.append("ended")
    assert order == ["loaded", "ended"]
