"""What must be undone if an attempt ends before the kexec: a list on disk, one way to run it.

Each step is written down before it is taken, so that the same code undoes an attempt whether it
failed, was asked to stop, or was killed (then ``rekernel abort --after-death``, which the upgrade's
unit runs when its process is gone, reads the list). What could not be undone stays on the list with
the reason, so that whoever comes next knows of it and tries again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from rekernel import syscalls
from rekernel.attempt.problem import Problem
from rekernel.carry.apparmor import observe as apparmor
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.network import observe as network
from rekernel.carry.pidfd import observe as pidfd
from rekernel.carry.swap import observe as swap
from rekernel.containers import checkpoint
from rekernel.criu import tcp_repair
from rekernel.records import record, replace
from rekernel.run import run

STATE = Path("/run/rekernel/undo.json")
CGROUPS = Path("/sys/fs/cgroup")
# Seconds that a criu has to end by itself, and again once it is interrupted.
_DUMP_ENDS_S = 30.0


@record
class _Step:
    kind: str
    value: str
    # Why it could not be undone; "" if nobody has tried yet.
    error: str = ""


class UndoList:
    """The steps taken so far. Undone newest first; every step may be undone twice."""

    def __init__(self, path: Path = STATE) -> None:
        self._path = path
        self._steps: list[_Step] = []
        if path.exists():
            self._steps = [_Step(*item) for item in json.loads(path.read_text())]

    def __len__(self) -> int:
        return len(self._steps)

    def push(self, kind: str, *values: str) -> None:
        """Write down a step that is about to be taken, once for each value; or without one."""
        self._steps += [_Step(kind, value) for value in values or ("",)]
        self._save()

    def run(self, keep: int = 0) -> tuple[Problem, ...]:
        """Undo all but the first ``keep`` steps; returns what could not be undone of the others.

        What was tried before in vain is tried again.
        """
        for at in reversed(range(keep, len(self._steps))):
            step = self._steps[at]
            try:
                _kind(step).undo(step.value)
            except Exception as error:  # the next step must be undone all the same
                self._steps[at] = replace(step, error=str(error) or type(error).__name__)
            else:
                del self._steps[at]
            # A full file system must not keep the next step from being undone.
            with contextlib.suppress(OSError):
                self._save()
        return self.left()[keep:]

    def left(self) -> tuple[Problem, ...]:
        """Problems: what is not undone, in the order in which it was begun."""
        return tuple(
            Problem(
                step.kind,
                step.value,
                step.error or "nobody has tried yet",
                _kind(step).by_hand(step.value),
            )
            for step in self._steps
        )

    def _save(self) -> None:
        if not self._steps:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".new")
        steps = [[step.kind, step.value, step.error] for step in self._steps]
        partial.write_text(json.dumps(steps))
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
    tcp_repair.end(int(pid) for pid in pids.split())


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


def _write(assignment: str) -> None:
    path, _, value = assignment.partition("=")
    Path(path).write_text(value)


def _remove(path: str) -> None:
    if not os.path.isdir(path):
        Path(path).unlink(missing_ok=True)
        return
    # What processes have in memory may be in there: nothing of it may stay without a word.
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def _free_container(value: str) -> None:
    pid, _, cgroup = value.partition(" ")
    checkpoint.free(int(pid), cgroup)


def _start_container(value: str) -> None:
    engine, _, container = value.partition(" ")
    run([engine, "start", container], timeout=600)


def _swap_on(value: str) -> None:
    name, priority = json.loads(value)
    swap.turn_on(name, priority)


def _swap_on_by_hand(value: str) -> str:
    name, priority = json.loads(value)
    return shlex.join(["swapon", *(["--priority", str(priority)] if priority >= 0 else []), name])


def _write_by_hand(assignment: str) -> str:
    path, _, value = assignment.partition("=")
    return f"echo {shlex.quote(value)} > {path}"


@record
class _Kind:
    """How a step is undone, and what an administrator does if it cannot be."""

    undo: Callable[[str], object]
    by_hand: Callable[[str], str]


_KINDS: dict[str, _Kind] = {
    "thaw": _Kind(thaw, lambda cgroup: f"echo 0 > /sys/fs/cgroup{cgroup}/cgroup.freeze"),
    "thaw-filesystem": _Kind(
        _thaw_filesystem, lambda target: shlex.join(["fsfreeze", "--unfreeze", target])
    ),
    "unlock-network": _Kind(
        lambda _: network.unlock(), lambda _: f"nft delete table inet {network.TABLE}"
    ),
    "wait-dumps": _Kind(
        _wait_for_dumps, lambda _: "kill -ALRM that criu, restart the service that it holds"
    ),
    "end-repair": _Kind(_end_repair, lambda _: "restart the services whose connections fail"),
    "handle": _Kind(
        pidfd.put_back, lambda handle: f"restart the service of process {handle.split()[0]}"
    ),
    "flush-journal": _Kind(
        lambda _: run(["journalctl", "--flush"]), lambda _: "journalctl --flush"
    ),
    "unload-kernel": _Kind(lambda _: syscalls.kexec_unload(), lambda _: "kexec --unload"),
    "write": _Kind(_write, _write_by_hand),
    "remove": _Kind(_remove, lambda path: shlex.join(["rm", "-r", path])),
    "size-of-run": _Kind(
        lambda size: mounts.resize_run(int(size)), lambda size: f"mount -o remount,size={size} /run"
    ),
    "swap-on": _Kind(_swap_on, _swap_on_by_hand),
    "profile": _Kind(
        lambda path: apparmor.replace(Path(path).read_bytes()),
        lambda _: "systemctl reload apparmor",
    ),
    "free-container": _Kind(
        _free_container, lambda value: f"restart the container of process {value.split()[0]}"
    ),
    "start-container": _Kind(
        _start_container, lambda value: shlex.join([value.split()[0], "start", value.split()[1]])
    ),
    "start-unit": _Kind(
        lambda unit: run(["systemctl", "start", "--no-block", "--", unit]),
        lambda unit: shlex.join(["systemctl", "start", unit]),
    ),
}


def _kind(step: _Step) -> _Kind:
    return _KINDS.get(step.kind, _OF_ANOTHER_VERSION)


def _fail(_: str) -> None:
    raise ValueError("this version of rekernel does not know how")


_OF_ANOTHER_VERSION = _Kind(_fail, lambda _: "reboot, or install the version that began it")
