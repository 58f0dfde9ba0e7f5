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
from rekernel.agent import processes, sandboxes
from rekernel.agent.console import say
from rekernel.agent.links import Links
from rekernel.agent.terminals import REACH, Numbers
from rekernel.agent.unkept import set_again
from rekernel.handover.manifest import Inherited, Tree
from rekernel.records import field, record
from rekernel.stuck import where_they_wait

WORK = Path("/run/rekernel/restore")
_HOOK_SOCKET = "/run/rekernel/hook.sock"
_CGROUPS = Path("/sys/fs/cgroup")
# Seconds after which a restore no longer keeps others from beginning: it may never end.
_SLOW_S = 10.0
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
    done: bool = False
    # Whether it began in its control group.
    inside: bool = False
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


def _open_inherited(item: Inherited, links: Links) -> int:
    if item.kind == "unix":
        return links.take(item.link, item.end)
    if item.kind == "journal":
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.connect(JOURNAL_STDOUT)
        stream.sendall(item.header.encode())
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


def _start(tree: Tree, image_root: Path, links: Links) -> Restore:
    work = work_directory(tree)
    argv = [
        part.format(images=image_root / tree.images, work=work) if "{" in part else part
        for part in tree.argv
    ]
    keep: list[int] = []
    try:
        # Above anything that criu opens for itself on start.
        for item in tree.inherited:
            fd = _open_inherited(item, links)
            keep.append(fd)
            argv += ["--inherit-fd", item.argument.format(fd=fd)]
        # In the tree's own control group from the start: memory is charged to who first touches it.
        inside = _enter(os.getpid(), next(iter(tree.cgroups.values())))
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
    return Restore(tree, pid, os.pidfd_open(pid), inside=inside)


def _start_or_fail(tree: Tree, image_root: Path, links: Links) -> Restore:
    """One that cannot even be started must not take the others along."""
    try:
        return _start(tree, image_root, links)
    except Exception as error:
        return Restore(tree, 0, -1, failure=f"criu was not started: {error}", done=True)


def restore_all(trees: Sequence[Tree], image_root: Path, links: Links, timeout: float) -> Restores:
    """Start a criu for each tree when it is its turn; returns when each is held or has failed."""
    Path(_HOOK_SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(_HOOK_SOCKET)
    listener.listen(len(trees) + 8)
    restores = Restores()
    queue = _Queue(trees)
    try:
        _restore_in_turns(queue, restores, listener, image_root, links, timeout)
    finally:
        queue.numbers.close()
    listener.close()
    for tree in queue.not_started():
        why = f"it goes with {', '.join(tree.after)}" if tree.after else "it was not its turn yet"
        restores.trees.append(Restore(tree, 0, -1, failure=why, done=True))
    _fail_whole_units(restores)
    for item in restores.failed:
        _clear_away(item)
    return restores


def _restore_in_turns(
    queue: _Queue,
    restores: Restores,
    listener: socket.socket,
    image_root: Path,
    links: Links,
    timeout: float,
) -> None:
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    deadline = time.monotonic() + timeout
    while True:
        following = queue.next(restores)
        for tree in following:
            item = _start_or_fail(tree, image_root, links)
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
                _hold(listener.accept()[0], restores)
                continue
            item = key.data
            selector.unregister(item.pidfd)
            _, status = os.waitpid(item.pid, 0)
            item.done = True
            # Held or not: what it restored went with it.
            code = os.waitstatus_to_exitcode(status)
            item.failure = _cause(item.tree) or f"criu ended with {code}"
            if queue.again(item):
                restores.trees.remove(item)
                os.close(item.pidfd)
    selector.close()


class _Queue:
    """Trees that are not started yet: as many at once as can run, but a second attempt alone.

    Large ones begin first, so that none of them is the last, alone. More at once would only take
    longer: 30 trees on two processors 2.5 s if all begin at once, 2.0 s if two do.

    criu gives a terminal its old number by opening new ones until it has that. While others do the
    same it may find the number taken for an instant, or too far away, and gives up. So those with
    terminals start in the order of their numbers, and no more of them at once than lie within its
    reach; what none of these wants is not free (agent/terminals.py).
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
        found: list[Tree] = []
        since = time.monotonic() - _SLOW_S
        busy = sum(item.begun > since for item in restores.waiting)
        for tree in self._left:
            if busy + len(found) >= self._at_once:
                break
            if not held.issuperset(tree.after):
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
                if held.issuperset(item[1].after):
                    self._again.remove(item)
                    self.numbers.release(item[1].terminals)
                    return [item[1]]
        return found

    def _fits(self, tree: Tree, under_way: Sequence[Sequence[int]]) -> bool:
        numbers = [number for each in (*under_way, tree.terminals) for number in each]
        alone = not under_way
        return alone or max(numbers) - min(numbers) < REACH

    def not_started(self) -> list[Tree]:
        """Those that wait still."""
        return [*self._left, *(tree for _, tree in self._again)]

    def again(self, item: Restore) -> bool:
        """Whether a tree that has failed gets a second attempt."""
        self._loose = self._loose or bool(item.tree.terminals)
        number = _TERMINAL_MISSED.search(item.failure)
        if number is None or item.hook is not None or item.tree.name in self._tried:
            return False
        self._tried.add(item.tree.name)
        # Only these: the same control group may have other trees, which stand.
        for pid, path in item.tree.cgroups.items():
            _kill_in(int(pid), path)
        _reap([int(pid) for pid in item.tree.cgroups])
        self._again.append((int(number[1]), item.tree))
        return True


def _hold(connection: socket.socket, restores: Restores) -> None:
    words = connection.makefile("r").readline().split()
    # "ACTION /proc/PID/fd/N TREE": criu names its image directory like that.
    parts = words[1].split("/") if len(words) > 1 else []
    owners = [item for item in restores.waiting if parts[2:3] == [str(item.pid)]]
    if not owners:
        connection.close()
        return
    (owner,) = owners
    owner.hook = connection
    _enter_cgroups(owner)
    set_again(owner.tree.unkept)
    sandboxes.remount(owner.tree.root_pid, owner.tree.mounts)


def _fail_whole_units(restores: Restores) -> None:
    """systemd starts a unit afresh as a whole: what is left of one may not run beside that."""
    failed = {item.tree.unit: item for item in restores.failed}
    for item in restores.held:
        if item.tree.unit in failed:
            item.failure = f"it goes with process tree {failed[item.tree.unit].tree.root_pid}"


def _write_down_where_it_waits(item: Restore) -> None:
    """criu and all that it made."""
    pids: list[int] = []
    for path in dict.fromkeys(item.tree.cgroups.values()):
        with contextlib.suppress(OSError):
            pids += map(int, (_CGROUPS / path.lstrip("/") / "cgroup.procs").read_text().split())
    with contextlib.suppress(OSError):
        (work_directory(item.tree) / "stuck.log").write_text(where_they_wait(pids))


def _cause(tree: Tree) -> str:
    """criu's own first error, without its prefix; "" if it left none."""
    try:
        text = (work_directory(tree) / "restore.log").read_text(errors="replace")
    except OSError:
        return ""
    # "(00.123456)   4711: Error (criu/files.c:12): words"
    errors = [line for line in text.splitlines() if "Error (" in line]
    return errors[0].partition("Error (")[2].partition("): ")[2] if errors else ""


def _enter(pid: int, path: str) -> bool:
    try:
        smallfiles.write(f"{_CGROUPS}{path}/cgroup.procs", str(pid).encode())
    except OSError as error:
        say(f"process {pid} could not enter {path}: {error.strerror}")
        return False
    return True


def _enter_cgroups(item: Restore) -> None:
    """criu was in the one that comes first, and so is all that it made."""
    first = next(iter(item.tree.cgroups.values())) if item.inside else ""
    for pid, path in item.tree.cgroups.items():
        if path != first:
            _enter(int(pid), path)


def kill_all(trees: Sequence[Tree]) -> None:
    """Nothing of these may run: used when the machine boots normally after all.

    By control group, not by PID: a restore may have failed because somebody else has its PID.
    """
    for path in dict.fromkeys(path for tree in trees for path in tree.cgroups.values()):
        try:
            with open(_CGROUPS / path.lstrip("/") / "cgroup.kill", "w") as file:
                file.write("1")
        except FileNotFoundError:
            continue
        except OSError as error:
            say(f"what is in {path} could not be ended: {error.strerror}")


def _kill_in(pid: int, path: str) -> None:
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/cgroup").read_text().strip().endswith(f"::{path}"):
            os.kill(pid, signal.SIGKILL)


def _reap(pids: Sequence[int], timeout: float = 5.0) -> None:
    """Wait for the end of killed processes: orphans are ours, and keep their PIDs until then."""
    deadline = time.monotonic() + timeout
    left = list(pids)
    while left and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        left = [pid for pid in left if os.path.exists(f"/proc/{pid}")]
        time.sleep(0.002 if left else 0)


def _clear_away(item: Restore) -> None:
    """Nothing of a tree that failed may run: systemd starts its unit afresh."""
    say(f"{item.tree.unit} could not be restored: {item.failure}")
    if not item.done:
        os.kill(item.pid, signal.SIGKILL)
        os.waitpid(item.pid, 0)
        item.done = True
    kill_all([item.tree])


def commit(restores: Restores) -> None:
    """Let everything run. From here on there is no way back."""
    held = restores.held
    for item in held:
        assert item.hook is not None
        # One that died meanwhile fails alone; its status tells below.
        with contextlib.suppress(OSError):
            item.hook.sendall(b"go\n")
    for item in held:
        if not item.done:
            _, status = os.waitpid(item.pid, 0)
            item.done = True
            code = os.waitstatus_to_exitcode(status)
            if code != 0:
                item.failure = f"criu ended with {code} after the commit"
        assert item.hook is not None
        item.hook.close()
        os.close(item.pidfd)
        if item.tree.signal and not item.failure:
            with contextlib.suppress(ProcessLookupError):
                os.kill(item.tree.root_pid, item.tree.signal)
