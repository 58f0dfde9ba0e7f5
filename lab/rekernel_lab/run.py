"""The one way in which the lab starts other programs."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rekernel_lab.errors import DeadlineError, LabError

log = logging.getLogger("rekernel_lab.run")

# A fixed locale, so that messages which end up in reports and tests read the same everywhere.
FIXED_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child process, `extra` added last."""
    return {**os.environ, **FIXED_ENVIRONMENT, **(extra or {})}


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    timeout: float | None = 600,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log_to: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run `command` without a terminal and return it with its output.

    `timeout` is in seconds. With `log_to` the output goes to that file (appended) instead.
    Raises LabError if the program is missing or, with `check`, exits with another code than 0,
    and DeadlineError if it takes too long.
    """
    words = [str(word) for word in command]
    log.debug("+ %s", shlex.join(words))
    output = log_to.open("ab") if log_to else None
    try:
        done = subprocess.run(
            words,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=output or subprocess.PIPE,
            stderr=subprocess.STDOUT if output else subprocess.PIPE,
            env=environment(env),
            cwd=cwd,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} not found", hint="run: rekernel-lab setup-host") from error
    except subprocess.TimeoutExpired as error:
        raise DeadlineError(f"{words[0]} did not finish in {timeout:.0f} s") from error
    finally:
        if output:
            output.close()
    if check and done.returncode:
        tail = _tail(log_to.read_bytes() if log_to else done.stderr or done.stdout)
        hint = f"full output: {log_to}" if log_to else ""
        raise LabError(
            f"{shlex.join(words[:4])} … exited with {done.returncode}\n{tail}", hint=hint
        )
    return done


def text(command: Sequence[str | Path], *, timeout: float | None = 600) -> str:
    """Return the standard output of `command`, stripped."""
    return run(command, timeout=timeout).stdout.decode(errors="replace").strip()


def _tail(output: bytes, lines: int = 12) -> str:
    return "\n".join(output.decode(errors="replace").strip().splitlines()[-lines:])
