"""The one place where the old side starts programs."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

from rekernel.errors import RekernelError

_log = logging.getLogger(__name__)

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
