"""The one place where the old side starts programs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rekernel.errors import RekernelError

# Told of every command before it is started, if anybody is.
listener: Callable[[str], None] | None = None

# How often who waits for a program looks whether it shall go on with that.
_LOOK_S = 0.1
# One that does not end when it is killed never returns from the kernel.
_KILLED_S = 10.0

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}


# Raises if nobody shall wait for programs any more.
_check: Callable[[], object] | None = None


@contextlib.contextmanager
def answering(check: Callable[[], object]) -> Iterator[None]:
    """While this lasts, ``check`` is called ten times a second whenever a program is waited for.

    What it raises ends the wait, and the program.
    """
    global _check
    _check = check
    try:
        yield
    finally:
        _check = None


def _tell(words: str) -> None:
    if listener is not None:
        listener(words)


class CommandFailedError(RekernelError):
    """A program ended with another status than 0; ``status`` and ``output`` say more."""

    def __init__(self, argv: Sequence[str], status: int, output: str) -> None:
        last = output.strip().splitlines()[-1:] or ["no output"]
        super().__init__(f"{argv[0]} failed ({status}): {last[0]}", f"tried: {shlex.join(argv)}")
        self.status = status
        self.output = output


class CommandNotFoundError(RekernelError):
    """A program is not installed."""

    exit_code = 3

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} not found", f"install the package that has {name}")


def run(
    argv: Sequence[str],
    *,
    stdin: str = "",
    check: bool = True,
    good: Sequence[int] = (0,),
    timeout: float | None = 120,
    whole: bool = False,
) -> str:
    """Run a program to its end; returns its standard output.

    ``good``: exit statuses that are no failure. ``whole``: it must not be ended midway, whatever
    :func:`answering` is told. Raises CommandNotFoundError, CommandFailedError
    (with ``check``), RekernelError after ``timeout`` seconds, or what :func:`answering` is told.
    The program gets a fixed environment and never a terminal.
    """
    _tell(shlex.join(argv))
    try:
        with _given(stdin) as given:
            process = subprocess.Popen(
                list(argv),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
            )
    except FileNotFoundError:
        raise CommandNotFoundError(argv[0]) from None
    with process:
        try:
            ask = None if whole else _check
            said, complained = _communicate(process, argv[0], timeout, ask)
        except BaseException:
            process.kill()
            raise
    # Not text=True: it takes "\r" in a value, a unit's status say, for the end of a line.
    output = said.decode(errors="replace")
    if check and process.returncode not in good:
        problems = complained.decode(errors="replace")
        raise CommandFailedError(argv, process.returncode, problems or output)
    return output


@contextlib.contextmanager
def _given(text: str) -> Iterator[int]:
    """What a program reads: a file, so that nobody has to write while it is waited for."""
    fd = os.memfd_create("stdin")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(os.fsencode(text))
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _communicate(
    process: subprocess.Popen[bytes],
    name: str,
    timeout: float | None,
    check: Callable[[], object] | None,
) -> tuple[bytes, bytes]:
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        # Asked again, it loses nothing.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=min(_LOOK_S, deadline - time.monotonic()))
        if check is not None:
            check()
        if time.monotonic() > deadline:
            raise RekernelError(f"{name} did not end within {timeout:.0f} s")


def run_json(argv: Sequence[str]) -> Any:
    """Run a program that prints JSON; an empty output is an empty list."""
    text = run(argv)
    return json.loads(text) if text.strip() else []


def start(
    argv: Sequence[str],
    *,
    output: str,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program whose output goes to a file. Raises CommandNotFoundError."""
    _tell(f"start {shlex.join(argv)}")
    with open(output, "ab") as log:
        try:
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_ENVIRONMENT, **(environment or {})},
            )
        except FileNotFoundError:
            raise CommandNotFoundError(argv[0]) from None


def finish(process: subprocess.Popen[bytes], what: str, *, limit: float) -> int:
    """Wait for a program that :func:`start` has started; returns its exit status.

    ``what``: how an error calls it. Raises RekernelError after ``limit`` seconds, or what
    :func:`answering` is told; the program is ended then.
    """
    deadline = time.monotonic() + limit
    try:
        # Popen.wait() with a limit sleeps in between, for 50 ms in the end.
        while process.poll() is None and not _ends_soon(process.pid):
            if _check is not None:
                _check()
            if time.monotonic() > deadline:
                raise RekernelError(f"{what} did not end within {limit:.0f} s")
        return process.wait()
    except BaseException:
        end(process)
        raise


def _ends_soon(pid: int) -> bool:
    """Whether a child ends before it is time to look again."""
    pidfd = os.pidfd_open(pid)
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        return bool(ended.poll(_LOOK_S * 1000))
    finally:
        os.close(pidfd)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program, unless it has ended, and reap it."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILLED_S)
