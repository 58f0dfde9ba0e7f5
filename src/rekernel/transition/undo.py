"""What must be undone if an attempt ends before the kexec: a list on disk, one way to run it.

Each step is written down before it is taken, so that the same code undoes an attempt whether it
failed, was asked to stop, or was killed (then ``rekernel abort --after-death``, which the upgrade's
unit runs when its process is gone, reads the list).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from rekernel import syscalls
from rekernel.checkpoint import handles, repair
from rekernel.containers import checkpoint
from rekernel.host import apparmor, network, swap
from rekernel.run import run

STATE = Path("/run/rekernel/undo.json")
CGROUPS = Path("/sys/fs/cgroup")
# Seconds that a criu has to end by itself, and again once it is interrupted.
_DUMP_ENDS_S = 30.0


class UndoList:
    """The steps taken so far. Undone newest first; every step may be undone twice."""

    def __init__(self, path: Path = STATE) -> None:
        self._path = path
        self._steps: list[tuple[str, str]] = []
        if path.exists():
            self._steps = [(kind, value) for kind, value in json.loads(path.read_text())]

    def __len__(self) -> int:
        return len(self._steps)

    def push(self, kind: str, *values: str) -> None:
        """Write down a step that is about to be taken, once for each value; or without one."""
        self._steps += [(kind, value) for value in values or ("",)]
        self._save()

    def run(self, keep: int = 0) -> list[str]:
        """Undo all but the first ``keep`` steps; returns what could not be undone, in words."""
        problems = []
        while len(self._steps) > keep:
            kind, value = self._steps.pop()
            try:
                _ACTIONS[kind](value)
            except Exception as error:  # the next step must be undone all the same
                problems.append(f"{kind} {value}: {error}")
            # A full file system must not keep the next step from being undone.
            with contextlib.suppress(OSError):
                self._save()
        if not self._steps:
            self._path.unlink(missing_ok=True)
        return problems

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".new")
        partial.write_text(json.dumps(self._steps))
        partial.rename(self._path)


def thaw(cgroup: str) -> None:
    """Let the processes of a control group run; one that is gone has none."""
    try:
        (CGROUPS / cgroup.lstrip("/") / "cgroup.freeze").write_text("0")
    except OSError as error:
        # kernfs: the second if it goes while it is open.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def freeze(cgroup: str) -> None:
    """Begin to freeze a control group; does not wait for it."""
    (CGROUPS / cgroup.lstrip("/") / "cgroup.freeze").write_text("1")


def _thaw_filesystem(mountpoint: str) -> None:
    try:
        syscalls.thaw_filesystem(mountpoint)
    except OSError as error:
        if error.errno != errno.EINVAL:  # it was not frozen
            raise


def _end_repair(pids: str) -> None:
    repair.end(int(pid) for pid in pids.split())


def own_cgroup() -> str:
    """The control group that the attempt and all that it starts are in."""
    return Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]


def interrupt(criu: int) -> None:
    """Have a criu that dumps give up what it waits for, and with that the dump.

    Its handler of SIGALRM, which it sets before it stops the first task, lets the system call fail.
    Source: alarm_handler() in criu/cr-dump.c.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(criu, signal.SIGALRM)
        # Should somebody have stopped it.
        os.kill(criu, signal.SIGCONT)


def _wait_for_dumps(cgroup: str) -> None:
    """criu takes its parasite out of the tasks by itself when its hook tells it to give up."""
    begin = time.monotonic()
    interrupted = False
    while dumping := _running(cgroup, "criu"):
        waited = time.monotonic() - begin
        if waited > _DUMP_ENDS_S and not interrupted:
            interrupted = True
            for pid in dumping:
                interrupt(pid)
        if waited > 2 * _DUMP_ENDS_S:
            raise TimeoutError(f"criu, process {dumping[0]}, does not end")
        time.sleep(0.01)


def _running(cgroup: str, command: str) -> list[int]:
    """Processes of this name in a control group; zombies do not count."""
    try:
        pids = (CGROUPS / cgroup.lstrip("/") / "cgroup.procs").read_text().split()
    except FileNotFoundError:
        return []
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            before, _, after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            if before.partition("(")[2] == command and after.split()[0] != "Z":
                found.append(int(pid))
    return found


def _online(block: str) -> None:
    path = Path("/sys/devices/system/memory", block, "state")
    if path.read_text().strip() == "offline":
        path.write_text("online_movable")


def _write(assignment: str) -> None:
    path, _, value = assignment.partition("=")
    Path(path).write_text(value)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        Path(path).unlink(missing_ok=True)


def _free_container(value: str) -> None:
    pid, _, cgroup = value.partition(" ")
    checkpoint.free(int(pid), cgroup)


def _start_container(value: str) -> None:
    engine, _, container = value.partition(" ")
    run([engine, "start", container], timeout=600)


def _swap_on(value: str) -> None:
    name, priority = json.loads(value)
    swap.turn_on(name, priority)


_ACTIONS: dict[str, Callable[[str], object]] = {
    "thaw": thaw,
    "thaw-filesystem": _thaw_filesystem,
    "unlock-network": lambda _: network.unlock(),
    "wait-dumps": _wait_for_dumps,
    "end-repair": _end_repair,
    "handle": handles.put_back,
    "flush-journal": lambda _: run(["journalctl", "--flush"]),
    "unload-kernel": lambda _: syscalls.kexec_unload(),
    "online": _online,
    "write": _write,
    "remove": _remove,
    "swap-on": _swap_on,
    "profile": lambda path: apparmor.replace(Path(path).read_bytes()),
    "free-container": _free_container,
    "start-container": _start_container,
    "start-unit": lambda unit: run(["systemctl", "start", "--no-block", "--", unit]),
}
