"""Starting programs from PID 1 without the weight of the subprocess module.

Imported early: see agent/main.py.
"""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
}
# posix_spawnp searches the caller's own PATH; the kernel gives PID 1 none.
os.environ["PATH"] = ENVIRONMENT["PATH"]


# Seconds for a program that is done in a fraction of one, on a slow machine.
LIMIT_S = 50.0
# For one that was killed; what does not end then waits for a device.
_KILLED_S = 1.0


class ProgramFailedError(Exception):
    """A program ended with another status than 0, or not at all."""


def start(
    argv: Sequence[str],
    *,
    log: str | None = None,
    stdin: int | None = None,
    keep: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    new_session: bool = False,
) -> int:
    """Start a program of the new root; returns its PID.

    ``log``: file that gets its output. ``stdin``: descriptor to read from (else /dev/null).
    ``keep``: descriptors it inherits under their own numbers. ``new_session``: it leads one.
    """
    actions: list[tuple[object, ...]] = []
    if stdin is None:
        actions.append((os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0))
    else:
        actions.append((os.POSIX_SPAWN_DUP2, stdin, 0))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions.append((os.POSIX_SPAWN_OPEN, 1, log or "/dev/null", flags, 0o600))
    actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
    for fd in keep:
        os.set_inheritable(fd, True)
    try:
        return os.posix_spawnp(
            argv[0],
            list(argv),
            {**ENVIRONMENT, **(environment or {})},
            file_actions=actions,
            setsid=new_session,
        )
    finally:
        for fd in keep:
            os.set_inheritable(fd, False)


def wait(pid: int, what: str, timeout: float = LIMIT_S) -> None:
    """Wait for a program; raises ProgramFailedError unless it ended with 0.

    One that has not ended within ``timeout`` seconds is killed: everybody waits for it.
    """
    code = ended(pid, timeout)
    if code is None:
        # Costs others their imports if it is wanted from the start.
        import signal

        os.kill(pid, signal.SIGKILL)
        ended(pid, _KILLED_S)
        raise ProgramFailedError(f"{what} did not end within {timeout:.0f} s")
    if code != 0:
        raise ProgramFailedError(f"{what} ended with {code}")


def ended(pid: int, timeout: float) -> int | None:
    """The exit code of a child, which is waited for; None if it still runs after these seconds.

    Negative: the signal that ended it.
    """
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(max(0.0, timeout) * 1000):
            return None
    finally:
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def feed(argv: Sequence[str], text: bytes | memoryview, *, log: str | None = None) -> int:
    """Start a program with this on its standard input; returns its PID."""
    # A memfd, not a pipe: nobody has to keep writing while it reads.
    fd = os.memfd_create("rekernel-input", os.MFD_CLOEXEC)
    try:
        view = memoryview(text)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        return start(argv, stdin=fd, log=log)
    finally:
        os.close(fd)
