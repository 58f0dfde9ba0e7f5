"""The one place where the old side starts programs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from rekernel.errors import RekernelError

_log = logging.getLogger(__name__)

# How often who waits for a program looks whether it shall go on with that.
_LOOK_S = 0.1
# One that does not end when it is killed never returns from the kernel.
_KILLED_S = 10.0

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}


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
) -> str:
    """Run a program to its end; returns its standard output.

    ``good``: exit statuses that are no failure. Raises CommandNotFoundError, CommandFailedError
    (with ``check``), or RekernelError after ``timeout`` seconds. The program gets a fixed
    environment and never a terminal.
    """
    _log.debug("%s", shlex.join(argv))
    try:
        done = subprocess.run(
            list(argv),
            input=os.fsencode(stdin),
            capture_output=True,
            env=_ENVIRONMENT,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise CommandNotFoundError(argv[0]) from None
    except subprocess.TimeoutExpired:
        raise RekernelError(f"{argv[0]} did not end within {timeout:.0f} s") from None
    # Not text=True: it takes "\r" in a value, a unit's status say, for the end of a line.
    output = done.stdout.decode(errors="replace")
    if check and done.returncode not in good:
        problems = done.stderr.decode(errors="replace")
        raise CommandFailedError(argv, done.returncode, problems or output)
    return output


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
    _log.debug("start %s", shlex.join(argv))
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


def finish(
    process: subprocess.Popen[bytes],
    what: str,
    *,
    limit: float,
    check: Callable[[], object] | None = None,
) -> int:
    """Wait for a program that :func:`start` has started; returns its exit status.

    ``what``: how an error calls it. ``check`` is called ten times a second meanwhile, and raises if
    nobody shall wait any more. Raises RekernelError after ``limit`` seconds. The program has ended
    in any case.
    """
    deadline = time.monotonic() + limit
    try:
        # Popen.wait() with a limit sleeps in between, for 50 ms in the end.
        while process.poll() is None and not _ends_soon(process.pid):
            if check is not None:
                check()
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
