"""All trees restored in parallel and held; one commit lets them all run."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rekernel.agent import processes
from rekernel.agent.console import say
from rekernel.agent.links import Links
from rekernel.agent.unkept import set_again
from rekernel.handover.manifest import Inherited, Tree
from rekernel.stuck import where_they_wait

WORK = Path("/run/rekernel/restore")
_HOOK_SOCKET = "/run/rekernel/hook.sock"
_CGROUPS = Path("/sys/fs/cgroup")
JOURNAL_STDOUT = "/run/systemd/journal/stdout"
# Name in the systemd state -> socket type and path.
_JOURNAL_SOCKETS = {
    "stdout": (socket.SOCK_STREAM, JOURNAL_STDOUT),
    "native": (socket.SOCK_DGRAM, "/run/systemd/journal/socket"),
    "syslog": (socket.SOCK_DGRAM, "/run/systemd/journal/dev-log"),
}


@dataclass(slots=True)
class Restore:
    """One tree on its way back."""

    tree: Tree
    pid: int
    pidfd: int
    hook: socket.socket | None = None
    failure: str = ""
    done: bool = False


@dataclass(slots=True)
class Restores:
    """The trees and what they need open."""

    trees: list[Restore] = field(default_factory=list)

    @property
    def held(self) -> list[Restore]:
        """Completely restored, stopped before their first instruction."""
        return [item for item in self.trees if item.hook is not None and not item.failure]

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
    return os.open(item.path, item.flags | os.O_NOCTTY | os.O_CLOEXEC)


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
        _enter(os.getpid(), next(iter(tree.cgroups.values())))
        pid = processes.start(
            argv,
            log=str(work / "output.log"),
            keep=keep,
            environment={"REKERNEL_HOOK": _HOOK_SOCKET},
        )
    finally:
        _enter(os.getpid(), "/")
        for fd in keep:
            os.close(fd)
    return Restore(tree, pid, os.pidfd_open(pid))


def _start_or_fail(tree: Tree, image_root: Path, links: Links) -> Restore:
    """One that cannot even be started must not take the others along."""
    try:
        return _start(tree, image_root, links)
    except Exception as error:
        return Restore(tree, 0, -1, failure=f"criu was not started: {error}", done=True)


def make_cgroups(paths: Sequence[str]) -> None:
    """The control groups of all carried processes, with the controllers that systemd uses."""
    parents = {str(parent) for path in paths for parent in Path(path).parents}
    for parent in sorted(parents, key=len):
        directory = _CGROUPS / parent.lstrip("/")
        directory.mkdir(exist_ok=True)
        try:
            (directory / "cgroup.subtree_control").write_text("+memory +pids")
        except OSError as error:
            say(f"no controllers below {parent}: {error.strerror}")
    for path in paths:
        (_CGROUPS / path.lstrip("/")).mkdir(exist_ok=True)


def restore_all(
    trees: Sequence[Tree], image_root: Path, links: Links, timeout: float = 120.0
) -> Restores:
    """Start one criu per tree and wait until each is held or has failed."""
    Path(_HOOK_SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(_HOOK_SOCKET)
    listener.listen(len(trees) + 8)
    restores = Restores([_start_or_fail(tree, image_root, links) for tree in trees])
    by_pid = {str(item.pid): item for item in restores.trees}
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    started = [item for item in restores.trees if not item.failure]
    for item in started:
        selector.register(item.pidfd, selectors.EVENT_READ, item)
    deadline = time.monotonic() + timeout
    waiting = len(started)
    while waiting:
        events = selector.select(max(0.0, deadline - time.monotonic()))
        if not events and time.monotonic() >= deadline:
            for item in restores.trees:
                if item.hook is None and not item.failure:
                    item.failure = f"not restored within {timeout:.0f} s"
                    _write_down_where_it_waits(item)
            break
        for key, _ in events:
            if key.data is None:
                connection, _ = listener.accept()
                words = connection.makefile("r").readline().split()
                # "ACTION /proc/PID/fd/N TREE": criu names its image directory like that.
                parts = words[1].split("/") if len(words) > 1 else []
                owner = by_pid.get(parts[2]) if len(parts) > 2 else None
                if owner is None or owner.failure:
                    connection.close()
                    continue
                owner.hook = connection
                _enter_cgroups(owner)
                set_again(owner.tree.unkept)
                waiting -= 1
            else:
                item = key.data
                selector.unregister(item.pidfd)
                _, status = os.waitpid(item.pid, 0)
                item.done = True
                # Held or not: what it restored went with it.
                code = os.waitstatus_to_exitcode(status)
                item.failure = _cause(item.tree) or f"criu ended with {code}"
                if item.hook is None:
                    waiting -= 1
    selector.close()
    listener.close()
    for item in restores.failed:
        _clear_away(item)
    return restores


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


def _enter(pid: int, path: str) -> None:
    try:
        with open(_CGROUPS / path.lstrip("/") / "cgroup.procs", "w") as file:
            file.write(str(pid))
    except OSError as error:
        say(f"process {pid} could not enter {path}: {error.strerror}")


def _enter_cgroups(item: Restore) -> None:
    for pid, path in item.tree.cgroups.items():
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
