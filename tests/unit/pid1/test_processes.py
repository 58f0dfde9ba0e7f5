"""Programs started by PID 1."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekernel.pid1 import processes
from rekernel.pid1.processes import ProgramFailedError


@settings(max_examples=10)
@given(st.binary() | st.integers(0, 300_000).map(lambda size: bytes(range(256)) * (size // 256)))
def test_feed(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    log = tmp_path_factory.mktemp("feed") / "log"
    # More than a pipe holds, and nobody writes while it reads.
    processes.wait(processes.feed(["cat"], text, log=str(log)), "cat")
    assert log.read_bytes() == text


def test_output_and_errors_are_appended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("one", "two"):
        argv = ["sh", "-c", f"echo {word}; echo {word}: bad >&2"]
        processes.wait(processes.start(argv, log=str(log)), "sh")
    assert log.read_text() == "one\none: bad\ntwo\ntwo: bad\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_surroundings(tmp_path: Path) -> None:
    log = tmp_path / "log"
    leaking = os.open("/", os.O_RDONLY)
    os.set_inheritable(leaking, False)
    kept = os.open("/", os.O_RDONLY)
    argv = ["sh", "-c", "cat; env; ls /proc/self/fd"]
    more = {"REKERNEL_HOOK": "/x"}
    processes.wait(processes.start(argv, log=str(log), keep=[kept], environment=more), "sh")
    lines = log.read_text().splitlines()
    assert {f"PATH={processes.ENVIRONMENT['PATH']}", "LC_ALL=C", "REKERNEL_HOOK=/x"} <= {*lines}
    assert not [line for line in lines if line.startswith("HOME=")]
    assert str(kept) in lines
    assert str(leaking) not in lines
    # For this one only.
    assert not os.get_inheritable(kept)
    os.close(kept)
    os.close(leaking)


def test_a_program_that_fails() -> None:
    with pytest.raises(ProgramFailedError, match=r"^criu's check ended with 3$"):
        processes.wait(processes.start(["sh", "-c", "exit 3"]), "criu's check")
    pid = processes.start(["sleep", "60"])
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ProgramFailedError, match=r"^sleep ended with -9$"):
        processes.wait(pid, "sleep")


def test_a_program_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = processes.start(["sleep", "60"])
    with pytest.raises(ProgramFailedError, match=r"^nft did not end within 0 s$"):
        processes.wait(pid, "nft", timeout=0.1)
    # Nor is it left to run.
    assert not os.path.exists(f"/proc/{pid}")
    # One that not even that ends.
    monkeypatch.setattr(processes, "_KILLED_S", 0.1)
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    pid = processes.start(["sleep", "1"])
    with pytest.raises(ProgramFailedError, match=r"^nft did not end within 0 s$"):
        processes.wait(pid, "nft", timeout=0.1)
    os.waitpid(pid, 0)


def test_how_a_program_ended() -> None:
    assert processes.ended(processes.start(["sh", "-c", "exit 3"]), 60) == 3
    pid = processes.start(["sleep", "60"])
    assert processes.ended(pid, 0.0) is None
    os.kill(pid, signal.SIGTERM)
    assert processes.ended(pid, 60) == -signal.SIGTERM


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        processes.start(["no-such-program"])
