"""A real dump and restore, small enough to be tried on any machine at any time.

A parent, its child and two pipes between them, and an open TCP connection over loopback to us:
checkpointed by the installed criu under the running kernel and restored again. What it proves no
version number can: Debian 13's criu, for one, dumps no inet socket on kernels from 6.16 on.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rekernel.criu.log import first_error
from rekernel.errors import RekernelError
from rekernel.records import record
from rekernel.run import CommandFailedError, run

_CGROUPS = Path("/sys/fs/cgroup")
_RUN = Path("/run/rekernel")

# Answers a line with how many it has seen; the child does the counting, so an answer proves both
# processes, both pipes and the connection.
_PROGRAM = """
import os, socket, sys
to_child, from_parent = os.pipe()[::-1]
to_parent, from_child = os.pipe()[::-1]
if os.fork() == 0:
    os.close(to_child); os.close(from_child)
    count = 0
    while os.read(from_parent, 1):
        count += 1
        os.write(to_parent, b"%d\\n" % count)
    os._exit(0)
os.close(from_parent); os.close(to_parent)
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
while link.recv(1):
    os.write(to_child, b"?")
    link.sendall(os.read(from_child, 64))
"""

# What the real thing uses, as far as a tree without externals needs it. No network lock: nothing
# is sent while the canary is away, and other connections must not notice.
_COMMON = (
    "--tcp-established",
    "--network-lock", "skip",
    "--file-locks",
    "--ext-unix-sk",
    "--manage-cgroups=ignore",
    "-v2",
)  # fmt: skip


class CanaryError(RekernelError):
    """criu could not dump or restore the canary, or it did not live on."""

    exit_code = 3


@record
class CanaryResult:
    """How long the two steps took, in seconds."""

    dump: float
    restore: float


def remedy_for(cause: str) -> str:
    """What helps against an error of criu, as far as it is known."""
    if "Can't get 1:16 opt" in cause:
        # SO_PASSCRED: for unix sockets only since Linux 6.16.
        return "this kernel needs criu 4.2 or newer: from Debian forky or trixie-backports"
    return "see the criu package's documentation; a newer criu may know this kernel"


def _argv(action: str, directory: Path) -> list[str]:
    return [
        "criu", action,
        "--images-dir", str(directory),
        "--work-dir", str(directory),
        "--log-file", f"{action}.log",
        *_COMMON,
    ]  # fmt: skip


def _criu(argv: list[str], directory: Path) -> float:
    action = argv[1]
    began = time.monotonic()
    try:
        run(argv, timeout=20)
    except CommandFailedError as error:
        cause = first_error(directory / f"{action}.log") or error.message
        raise CanaryError(
            f"criu cannot {action} a test process: {cause}", remedy_for(cause)
        ) from None
    return time.monotonic() - began


@contextmanager
def _cgroup() -> Iterator[Path]:
    """A control group of its own; whatever is in it in the end is killed."""
    path = _CGROUPS / f"rekernel-canary-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        (path / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + 5
        while True:
            try:
                path.rmdir()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _ask(connection: socket.socket, expected: int) -> None:
    try:
        connection.sendall(b"?")
        answer = connection.recv(64)
    except OSError as error:
        raise CanaryError(f"the test process does not answer: {error}") from None
    if answer != b"%d\n" % expected:
        raise CanaryError(f"the test process answers {answer!r} instead of {expected}")


def _start(cgroup: Path, port: int) -> subprocess.Popen[bytes]:
    # By way of a shell, which enters the control group before anything of ours is forked.
    return subprocess.Popen(
        ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(cgroup / "cgroup.procs"),
         sys.executable, "-I", "-S", "-c", _PROGRAM, str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        # A session of its own: criu refuses a tree whose leader is outside of it.
        start_new_session=True,
    )  # fmt: skip


class Background:
    """A canary that is tried while others are asked; most of its time it waits for criu."""

    def __init__(self) -> None:
        self._outcome: CanaryResult | Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = try_canary()
        except Exception as error:
            self._outcome = error

    def result(self) -> CanaryResult:
        """Waits for it. Raises what try_canary() does."""
        self._thread.join()
        if isinstance(self._outcome, CanaryResult):
            return self._outcome
        assert self._outcome is not None
        raise self._outcome


def try_canary(timeout: float = 10.0) -> CanaryResult:
    """Dump and restore the canary; leaves nothing behind. Raises CanaryError.

    ``timeout``: seconds that the canary has for each answer.
    """
    if shutil.which("criu") is None:
        raise CanaryError("criu is not installed", "apt install criu")
    _RUN.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="canary-", dir=_RUN) as name,
        _cgroup() as cgroup,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        directory = Path(name)
        process = _start(cgroup, listener.getsockname()[1])
        try:
            listener.settimeout(timeout)
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                raise CanaryError("the test process did not start") from None
            with connection:
                connection.settimeout(timeout)
                _ask(connection, 1)
                # Refused if the kernel does not tell which pages were written.
                argv = [*_argv("dump", directory), "--track-mem", "--tree", str(process.pid)]
                dump = _criu(argv, directory)
                # Gone with its dump; its PID must be free for the restore.
                process.wait(timeout)
                restore = _criu([*_argv("restore", directory), "--restore-detached"], directory)
                _ask(connection, 2)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    return CanaryResult(dump, restore)
