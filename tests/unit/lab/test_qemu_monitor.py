"""QMP, with a stand-in for QEMU that answers, refuses or says nothing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rekernel_lab.errors import DeadlineError, LabError
from rekernel_lab.vm import qemu, saved, vm
from rekernel_lab.vm.state import State

Answer = Callable[[dict[str, Any]], dict[str, Any] | None]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Answer], Path]]:
    """Start a server that greets, and answers each request with what a function makes of it."""
    with ExitStack() as stack:

        def start(answer: Answer) -> Path:
            path = tmp_path / "questions"
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen()

            def run() -> None:
                connection, _ = listener.accept()
                stack.enter_context(connection)
                connection.sendall(b'{"QMP": {}}\n')
                for line in connection.makefile("rb"):
                    reply = answer(json.loads(line))
                    if reply is None:
                        connection.shutdown(socket.SHUT_RDWR)
                        return
                    connection.sendall(json.dumps(reply).encode() + b"\n" if reply else b"")

            threading.Thread(target=run, daemon=True).start()
            return path

        yield start


def test_an_answer_among_events(serve: Callable[[Answer], Path]) -> None:
    path = serve(lambda request: {"return": request["arguments"]})
    monitor = qemu.Monitor(path)
    assert monitor.execute("x", **{"command-line": "info"}) == {"command-line": "info"}
    monitor.close()


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ({"error": {"desc": "no such thing"}}, "QEMU x: no such thing"),
        ({}, "QEMU x: timed out"),
        (None, "QEMU closed its monitor"),
    ],
)
def test_no_answer(reply: dict[str, Any] | None, why: str, serve: Callable[[Answer], Path]) -> None:
    path = serve(lambda request: reply if request["execute"] == "x" else {"return": {}})
    monitor = qemu.Monitor(path, timeout=0.2)
    with pytest.raises(LabError, match=why):
        monitor.execute("x")
    monitor.close()


def test_registers(
    serve: Callable[[Answer], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["arguments"])
        return {"return": f"RIP={len(asked)}"}

    serve(answer)
    monkeypatch.setattr(State, "directory", tmp_path)
    monkeypatch.setattr(vm.VM, "state", State("a", qemu.Machine("tcg"), Path(), "1"))
    assert vm.VM("a").registers() == "RIP=2\n\nA second later:\nRIP=3\n"
    assert asked[1:] == [{"command-line": "info registers -a"}] * 2
    monkeypatch.setattr(State, "directory", tmp_path / "gone")
    with pytest.raises(LabError, match="VM a is gone"):
        vm.VM("a").registers()


class Qemu:
    """Answers as QEMU does, with these states of a migration one after the other."""

    def __init__(self, *states: dict[str, str]) -> None:
        self.states = list(states)
        self.asked: list[str] = []

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        name, arguments = request["execute"], request.get("arguments") or {}
        self.asked.append(" ".join([name, *(f"{value}" for value in arguments.values())]))
        if name == "query-migrate":
            return {"return": self.states.pop(0) if len(self.states) > 1 else self.states[0]}
        return {"return": {}}


def test_the_disk_is_copied_when_the_guest_stands_still(
    serve: Callable[[Answer], Path], tmp_path: Path
) -> None:
    disk = tmp_path / "vm-disk"
    disk.write_text("as of then")
    answer = Qemu({}, {"status": "active"}, {"status": "completed"})
    saved.save(qemu.Monitor(serve(answer)), disk, tmp_path)
    assert answer.asked[1:4] == [
        "stop", f"migrate-set-parameters {10 << 30}", f"migrate file:{tmp_path}/memory",
    ]  # fmt: skip
    assert answer.asked[4:] == ["query-migrate"] * 3
    assert (tmp_path / "disk.raw").read_text() == "as of then"


def test_a_state_that_was_loaded_goes_on(serve: Callable[[Answer], Path], tmp_path: Path) -> None:
    answer = Qemu({"status": "active"}, {"status": "completed"})
    saved.resume(qemu.Monitor(serve(answer)), tmp_path)
    assert answer.asked[1:] == [
        f"migrate-incoming file:{tmp_path}/memory", "query-migrate", "query-migrate", "cont",
    ]  # fmt: skip


def test_a_state_that_does_not_fit(serve: Callable[[Answer], Path], tmp_path: Path) -> None:
    answer = Qemu({"status": "failed", "error-desc": "Size mismatch"})
    with pytest.raises(LabError, match="migration failed: Size mismatch"):
        saved.resume(qemu.Monitor(serve(answer)), tmp_path)
    assert "cont" not in answer.asked


def test_a_state_that_is_never_saved(
    serve: Callable[[Answer], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved, "_SAVE_S", 0.1)
    answer = Qemu({"status": "active"})
    with pytest.raises(DeadlineError, match="migration took longer than 0 s"):
        saved.save(qemu.Monitor(serve(answer)), tmp_path / "disk", tmp_path)
    assert not (tmp_path / "disk.raw").exists()
