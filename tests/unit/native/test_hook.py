"""rekernel-hook: CRIU is held at two points and nowhere else."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from .conftest import PROGRAMS

HOOK = PROGRAMS / "rekernel-hook"


def run(action: str | None, **env: str) -> subprocess.CompletedProcess[str]:
    full = {"PATH": os.environ["PATH"], "CRTOOLS_IMAGE_DIR": "/proc/1/fd/5", **env}
    if action is not None:
        full["CRTOOLS_SCRIPT_ACTION"] = action
    # As CRIU does it.
    return subprocess.run(
        ["sh", "-c", str(HOOK)], env=full, capture_output=True, text=True, check=False, timeout=30
    )


def ask(path: Path, action: str, answer: bytes, **env: str) -> tuple[int, bytes]:
    """Exit code of the hook and what it said to us, who answered this."""
    heard = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(10000))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = run(action, REKERNEL_HOOK=str(path), **env)
        thread.join()
    return done.returncode, heard[0]


@pytest.mark.parametrize("action", ["post-dump", "pre-resume"])
def test_asks_and_goes(tmp_path: Path, action: str) -> None:
    code, heard = ask(tmp_path / "s", action, b"go\n", CRTOOLS_INIT_PID="42")
    assert code == 0
    assert heard == f"{action} /proc/1/fd/5 42\n".encode()


def test_pid_may_be_unknown(tmp_path: Path) -> None:
    assert ask(tmp_path / "s", "post-dump", b"go\n") == (0, b"post-dump /proc/1/fd/5 -\n")


@pytest.mark.parametrize("answer", [b"stop\n", b"", b"go", b"gone\n", b"go\nx", b"x" * 100])
def test_anything_else_stops_criu(tmp_path: Path, answer: bytes) -> None:
    assert ask(tmp_path / "s", "pre-resume", answer)[0] == 1


def test_holds_until_the_answer_comes(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        hook = subprocess.Popen(
            [HOOK],
            env={
                "CRTOOLS_SCRIPT_ACTION": "post-dump",
                "REKERNEL_HOOK": str(tmp_path / "s"),
            },
        )
        connection, _ = server.accept()
        with connection:
            with pytest.raises(subprocess.TimeoutExpired):
                hook.wait(timeout=0.3)
            connection.sendall(b"g")
            connection.sendall(b"o\n")
            assert hook.wait(timeout=10) == 0


@pytest.mark.parametrize(
    "action", ["pre-dump", "network-lock", "pre-restore", "post-restore", "post-resume", None]
)
def test_other_actions_do_not_connect(action: str | None) -> None:
    assert run(action, REKERNEL_HOOK="/nonexistent").returncode == 0


def test_nobody_listens(tmp_path: Path) -> None:
    done = run("post-dump", REKERNEL_HOOK=str(tmp_path / "none"))
    assert done.returncode == 1
    assert "No such file" in done.stderr


def test_no_socket_named() -> None:
    done = run("post-dump")
    assert done.returncode == 1
    assert "REKERNEL_HOOK is not set" in done.stderr


def test_path_too_long() -> None:
    done = run("post-dump", REKERNEL_HOOK="/" + "x" * 200)
    assert done.returncode == 1
    assert "File name too long" in done.stderr
