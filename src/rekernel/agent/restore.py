"""All trees restored, some side by side, and held; one commit lets them all run."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import socket
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from rekernel import smallfiles
from rekernel.carry.mounts import own_namespaces
from rekernel.carry.task_attributes.restore import set_again
from rekernel.carry.terminals.restore import REACH, Numbers
from rekernel.carry.unix_sockets.restore import UnixConnections
from rekernel.criu.entry import Inherited
from rekernel.criu.log import RESTORE_LOG, first_error
from rekernel.handover.manifest import RESTORE_WORK, Tree
from rekernel.pid1 import processes
from rekernel.pid1.console import miss, say
from rekernel.records import field, record
from rekernel.wait_states import where_they_wait

WORK = Path(RESTORE_WORK)
_HOOK_SOCKET = "/run/rekernel/hook.sock"
_CGROUPS = Path("/sys/fs/cgroup")
# Seconds after which a restore no longer keeps others from beginning: it may never end.
_SLOW_S = 10.0
# Seconds for the rest of a line from a hook, and for a place in the journal's queue: milliseconds.
_WORD_S = 5.0
# Seconds from the commit until each criu has let go of its tree, and ended.
_LET_GO_S = 30.0
# Seconds for what was killed; what takes longer waits for a device.
_END_S = 10.0
# criu/tty.c, pty_open_ptmx_index()
_TERMINAL_MISSED = re.compile(r"Unable to open \S*ptmx with specified index (\d+)")
JOURNAL_STDOUT = "/run/systemd/journal/stdout"
# Name in the systemd state -> socket type and path.
_JOURNAL_SOCKETS = {
    "stdout": (socket.SOCK_STREAM, JOURNAL_STDOUT),
    "native": (socket.SOCK_DGRAM, "/run/systemd/journal/socket"),
    "syslog": (socket.SOCK_DGRAM, "/run/systemd/journal/dev-log"),
}


@record(frozen=False)
class Restore:
    """One tree on its way back."""

    tree: Tree
    pid: int
    pidfd: int
    hook: socket.socket | None = None
    failure: str = ""
    # Whether its criu has ended.
    done: bool = False
    begun: float = field(default_factory=time.monotonic)


@record(frozen=False)
class Restores:
    """The trees and what they need open."""

    trees: list[Restore] = field(default_factory=list)

    @property
    def held(self) -> list[Restore]:
        """Completely restored, stopped before their first instruction."""
        return [item for item in self.trees if item.hook is not None and not item.failure]

    @property
    def waiting(self) -> list[Restore]:
        """Being restored."""
        return [item for item in self.trees if item.hook is None and not item.failure]

    @property
    def failed(self) -> list[Restore]:
        """Not restored."""
        return [item for item in self.trees if item.failure]


def work_directory(tree: Tree) -> Path:
    """Where criu of this tree keeps its log and its lazy-pages socket."""
    return WORK / tree.name


def listen_journal() -> dict[str, socket.socket]:
    """The journal's sockets, open before the journal runs: what is sent waits in them."""
    found = {}
    for name, (kind, path) in _JOURNAL_SOCKETS.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind(path)
        os.chmod(path, 0o666)
        if kind == socket.SOCK_STREAM:
            listener.listen(4096)
        found[name] = listener
    return found


def _open_inherited(item: Inherited, connections: UnixConnections) -> int:
    if item.kind == "unix":
        return connections.take(item.connection, item.end)
    if item.kind == "journal":
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Nobody accepts yet: it would wait if there were more than the listener holds.
        stream.settimeout(_WORD_S)
        stream.connect(JOURNAL_STDOUT)
        stream.sendall(item.header.encode())
        stream.settimeout(None)
        # As systemd leaves it to a service: it only ever writes.
        stream.shutdown(socket.SHUT_RD)
        return stream.detach()
    fd = _open_file(item.path, item.flags | os.O_NOCTTY | os.O_CLOEXEC)
    if item.header:
        _tell(fd, item)
    return fd


def _tell(fd: int, item: Inherited) -> None:
    try:
        os.write(fd, item.header.encode())
    except OSError as error:
        # Without it the process lacks a warning; it is not worth more.
        say(f"{item.path} cannot be told what to watch for: {error.strerror}")


def _open_file(path: str, flags: int) -> int:
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return os.open(path, flags)
    # It would wait for the other side, which is yet to come.
    both = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return os.open(path, flags)
    finally:
        os.close(both)


def _start(tree: Tree, connections: UnixConnections) -> Restore:
    work = work_directory(tree)
    argv = [
        part.format(images=WORK / tree.images, work=work) if "{" in part else part
        for part in tree.argv
    ]
    keep: list[int] = []
    try:
        # Above anything that criu opens for itself on start.
        for item in tree.inherited:
            fd = _open_inherited(item, connections)
            keep.append(fd)
            argv += ["--inherit-fd", item.argument.format(fd=fd)]
        # In the tree's own control group from the start: memory is charged to who first touches it.
        # Elsewhere nobody could end it, nor would systemd find it.
        if not _enter(os.getpid(), next(iter(tree.cgroups.values()))):
            raise OSError("its control group cannot be entered")
        pid = processes.start(
            argv,
            log=str(work / "output.log"),
            keep=keep,
            environment={"REKERNEL_HOOK": _HOOK_SOCKET},
            # What had its session from elsewhere gets this one.
            new_session=True,
        )
    finally:
        _enter(os.getpid(), "/")
        for fd in keep:
            os.close(fd)
    return Restore(tree, pid, os.pidfd_open(pid))


def _start_or_fail(tree: Tree, connections: UnixConnections) -> Restore:
    """One that cannot even be started must not take the others along."""
    try:
        return _start(tree, connections)
    except Exception as error:
        return Restore(tree, 0, -1, failure=f"criu was not started: {error}", done=True)


def restore_all(trees: Sequence[Tree], connections: UnixConnections, timeout: float) -> Restores:
    """Start a criu for each tree when it is its turn; returns when each is held or has failed."""
    Path(_HOOK_SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(_HOOK_SOCKET)
    listener.listen(len(trees) + 8)
    restores = Restores()
    queue = _Queue(trees)
    try:
        _restore_in_turns(queue, restores, listener, connections, timeout)
    finally:
        queue.numbers.close()
    listener.close()
    lost = {item.tree.unit for item in restores.failed}
    for tree in queue.not_started():
        why = f"it goes with {', '.join(tree.after)}" if tree.after else "it was not its turn yet"
        # Of a unit that is lost it is the unit.
        why = "" if tree.unit in lost else why
        restores.trees.append(Restore(tree, 0, -1, failure=why, done=True))
    _end_units_of_failed(restores)
    for item in restores.failed:
        _clear_away(item)
    return restores


def _restore_in_turns(
    queue: _Queue,
    restores: Restores,
    listener: socket.socket,
    connections: UnixConnections,
    timeout: float,
) -> None:
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    deadline = time.monotonic() + timeout
    while True:
        following = queue.next(restores)
        for tree in following:
            item = _start_or_fail(tree, connections)
            restores.trees.append(item)
            if not item.failure:
                selector.register(item.pidfd, selectors.EVENT_READ, item)
        if not restores.waiting:
            if following:
                continue
            break
        left = max(0.0, deadline - time.monotonic())
        events = selector.select(min(left, 1.0) if queue.not_started() else left)
        if not events and time.monotonic() >= deadline:
            for item in restores.waiting:
                item.failure = f"not restored within {timeout:.0f} s"
                _write_down_where_it_waits(item)
            break
        for key, _ in events:
            if key.data is None:
                # A hook that says nothing keeps nobody else waiting.
                connection = listener.accept()[0]
                selector.register(connection, selectors.EVENT_READ, connection)
                continue
            if isinstance(key.data, socket.socket):
                selector.unregister(key.data)
                _hold(key.data, restores)
                continue
            item = key.data
            selector.unregister(item.pidfd)
            _, status = os.waitpid(item.pid, 0)
            item.done = True
            if item.failure:
                # It went with its unit.
                continue
            # Held or not: what it restored is no tree of ours, even if it runs on.
            code = os.waitstatus_to_exitcode(status)
            log = work_directory(item.tree) / RESTORE_LOG
            item.failure = first_error(log) or f"criu ended with {code}"
            if queue.again(item):
                restores.trees.remove(item)
                os.close(item.pidfd)
            else:
                _end_units_of_failed(restores)
    selector.close()


class _Queue:
    """Trees that are not started yet: as many at once as can run, but a second attempt alone.

    Large ones begin first, so that none of them is the last, alone. More at once would only take
    longer: 30 trees on two processors 2.5 s if all begin at once, 2.0 s if two do.

    criu gives a terminal its old number by opening new ones until it has that. While others do the
    same it may find the number taken for an instant, or too far away, and gives up. So those with
    terminals start in the order of their numbers, and no more of them at once than lie within its
    reach; what none of these wants is not free (carry/terminals/restore.py).
    """

    def __init__(self, trees: Sequence[Tree]) -> None:
        self._left = sorted(trees, key=lambda tree: (tree.terminals[:1], -len(tree.cgroups)))
        self.numbers = Numbers(number for tree in trees for number in tree.terminals)
        # Whether numbers are free again that nobody who is under way wants.
        self._loose = False
        self._at_once = os.cpu_count() or 1
        # The number of the terminal that it missed, and the tree.
        self._again: list[tuple[int, Tree]] = []
        self._tried: set[str] = set()

    def next(self, restores: Restores) -> list[Tree]:
        """What is to be started now."""
        held = {item.tree.name for item in restores.held}
        under_way = [item.tree.terminals for item in restores.waiting if item.tree.terminals]
        if not under_way:
            self.numbers.take()
            self._loose = False
        lost = {item.tree.unit for item in restores.failed}
        found: list[Tree] = []
        since = time.monotonic() - _SLOW_S
        busy = sum(item.begun > since for item in restores.waiting)
        for tree in self._left:
            if busy + len(found) >= self._at_once:
                break
            if tree.unit in lost or not held.issuperset(tree.after):
                continue
            if tree.terminals:
                if self._loose or not self._fits(tree, under_way):
                    continue
                under_way.append(tree.terminals)
                self.numbers.release(tree.terminals)
            found.append(tree)
        self._left = [tree for tree in self._left if tree not in found]
        if not found and not restores.waiting:
            # From the lowest number on, so that it is the next that is free.
            for item in sorted(self._again, key=lambda item: item[0]):
                if item[1].unit not in lost and held.issuperset(item[1].after):
                    self._again.remove(item)
                    self.numbers.release(item[1].terminals)
                    return [item[1]]
        return found

    def _fits(self, tree: Tree, under_way: Sequence[Sequence[int]]) -> bool:
        numbers = [number for each in (*under_way, tree.terminals) for number in each]
        alone = not under_way
        return alone or max(numbers) - min(numbers) < REACH

    def not_started(self) -> list[Tree]:
        """Trees whose restore has not begun."""
        return [*self._left, *(tree for _, tree in self._again)]

    def again(self, item: Restore) -> bool:
        """Whether a tree that has failed gets a second attempt."""
        self._loose = self._loose or bool(item.tree.terminals)
        number = _TERMINAL_MISSED.search(item.failure)
        if number is None or item.hook is not None or item.tree.name in self._tried:
            return False
        self._tried.add(item.tree.name)
        from rekernel.agent import remains

        remains.free_pids(item.tree)
        self._again.append((int(number[1]), item.tree))
        return True


def _hold(connection: socket.socket, restores: Restores) -> None:
    connection.settimeout(_WORD_S)
    try:
        words = connection.makefile("r").readline().split()
    except OSError:
        words = []
    # "ACTION /proc/PID/fd/N TREE": criu names its image directory like that.
    parts = words[1].split("/") if len(words) > 1 else []
    owners = [item for item in restores.trees if parts[2:3] == [str(item.pid)]]
    if not owners or owners[0].hook is not None:
        connection.close()
        return
    (owner,) = owners
    # Kept also of one that is about to be killed: criu lets its tree run if its hook fails
    # (restore_root_task() in criu/cr-restore.c).
    owner.hook = connection
    if owner.failure:
        return
    _enter_cgroups(owner)
    set_again(owner.tree.task_attributes)
    own_namespaces.remount(owner.tree.root_pid, owner.tree.mounts)


def _end_units_of_failed(restores: Restores) -> None:
    """systemd starts a unit afresh as a whole: what is left of one may not run beside that.

    Only kills: :func:`wait_for_the_end` waits.
    """
    failed = {item.tree.unit: item for item in reversed(restores.failed)}
    if not failed:
        return
    for item in restores.trees:
        if item.tree.unit in failed and not item.failure:
            item.failure = f"it goes with process tree {failed[item.tree.unit].tree.root_pid}"
    from rekernel.agent import remains

    remains.end(*_failed_and_others(restores))


def _failed_and_others(restores: Restores) -> tuple[list[Tree], list[Tree]]:
    return (
        [item.tree for item in restores.failed],
        [item.tree for item in restores.trees if not item.failure],
    )


def wait_for_the_end(restores: Restores) -> dict[str, list[int]]:
    """Unit -> its processes that could not be ended; such a unit is not to start afresh."""
    if not restores.failed:
        return {}
    return _wait_for_the_end(*_failed_and_others(restores))


def end_all(trees: Sequence[Tree]) -> dict[str, list[int]]:
    """Nothing of these may run: used when the machine boots normally after all.

    Returns what :func:`wait_for_the_end` does.
    """
    return _wait_for_the_end(trees, ())


def _wait_for_the_end(ending: Sequence[Tree], sparing: Sequence[Tree]) -> dict[str, list[int]]:
    from rekernel.agent import remains

    left = remains.left(ending, sparing, _END_S)
    remains.keep_from_starting(left)
    return left


def _write_down_where_it_waits(item: Restore) -> None:
    """criu and all that it made."""
    pids: list[int] = []
    for path in dict.fromkeys(item.tree.cgroups.values()):
        with contextlib.suppress(OSError):
            pids += map(int, (_CGROUPS / path.lstrip("/") / "cgroup.procs").read_text().split())
    with contextlib.suppress(OSError):
        (work_directory(item.tree) / "stuck.log").write_text(where_they_wait(pids))


def _enter(pid: int, path: str) -> bool:
    try:
        smallfiles.write(f"{_CGROUPS}{path}/cgroup.procs", str(pid).encode())
    except OSError as error:
        miss(f"process {pid} could not enter {path}: {error.strerror}")
        return False
    return True


def _enter_cgroups(item: Restore) -> None:
    """criu was in the one that comes first, and so is all that it made."""
    first = next(iter(item.tree.cgroups.values()))
    for pid, path in item.tree.cgroups.items():
        if path != first:
            _enter(int(pid), path)


def _clear_away(item: Restore) -> None:
    """Its processes are killed already, and criu is among them."""
    say(f"{item.tree.unit} could not be restored: {item.failure}")
    if not item.done:
        os.kill(item.pid, signal.SIGKILL)
        item.done = processes.ended(item.pid, _END_S) is not None


def commit(restores: Restores) -> None:
    """Let everything run. From here on there is no way back."""
    known = {item.tree.name for item in restores.failed}
    _look_again(restores)
    held = restores.held
    for item in held:
        assert item.hook is not None
        # One that died just now fails alone; its status tells below.
        with contextlib.suppress(OSError):
            item.hook.sendall(b"go\n")
    deadline = time.monotonic() + _LET_GO_S
    for item in held:
        code = processes.ended(item.pid, deadline - time.monotonic())
        item.done = code is not None
        if code is None:
            item.failure = f"criu did not end within {_LET_GO_S:.0f} s of the commit"
        elif code != 0:
            item.failure = f"criu ended with {code} after the commit"
    _end_units_of_failed(restores)
    for item in restores.failed:
        if item.tree.name not in known:
            _clear_away(item)
    for item in held:
        assert item.hook is not None
        item.hook.close()
        os.close(item.pidfd)
        if item.tree.signal and not item.failure:
            with contextlib.suppress(ProcessLookupError):
                os.kill(item.tree.root_pid, item.tree.signal)


def _look_again(restores: Restores) -> None:
    """Nothing of a unit may begin to run if one of its criu has died while it held."""
    for item in restores.held:
        code = processes.ended(item.pid, 0.0)
        if code is not None:
            item.done = True
            log = work_directory(item.tree) / RESTORE_LOG
            item.failure = first_error(log) or f"criu ended with {code}"
    _end_units_of_failed(restores)
