"""One criu per tree, side by side, each held in its post-dump hook once everything is written."""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

from rekernel.attempt.undo import UndoList, freeze, interrupt, own_cgroup, thaw
from rekernel.criu.log import DUMP_LOG, first_error
from rekernel.errors import RekernelError
from rekernel.records import field, record
from rekernel.run import start
from rekernel.transition.seizing import Seizing
from rekernel.wait_states import where_they_wait

HOOK_SOCKET = "/run/rekernel/dump-hook.sock"
# Seconds in which no criu that has yet to be done was given a processor, wanted one, waited for a
# device, or wrote.
PATIENCE_S = 4.0
# Seconds without a byte more in their images and logs, however busy they are.
_SILENCE_S = 20.0
# How often to look whether criu has stopped all that is in a control group.
_SEIZING_S = 0.002


class DumpFailedError(RekernelError):
    """criu could not dump a tree; the message has its own last error."""


class DumpAgainError(DumpFailedError):
    """criu met what is over as soon as all run on, or stands still: the next may go well, without
    those it stood still with.
    """

    def __init__(self, message: str, hint: str, late: Iterable[str] = ()) -> None:
        """``late``: the units it stood still with."""
        super().__init__(message, hint)
        self.late = tuple(dict.fromkeys(late))


# What criu says of such: a message with who sent it, to a user's manager say (sd_notify(3)), which
# that had not read yet when it was frozen; a handle of init that came after the stand-ins.
_PASSING = ("Control messages in queue", "pidfd pid 1 is not a part of")


@record
class DumpJob:
    """A tree to dump, and where to."""

    name: str
    unit: str
    root_pid: int
    # criu, or what starts it.
    argv: tuple[str, ...]
    images: Path
    work: Path
    # Of all units that have some of its processes: that of a login, and of the user's manager. Its
    # own comes first.
    cgroups: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@record(frozen=False)
class _Running:
    job: DumpJob
    process: Popen[bytes]
    held: bool = False


@record(frozen=False)
class _Hook:
    connection: socket.socket
    said: bytes = b""


@record
class _Signs:
    """``held``: how many are; ``written``: bytes of the others; ``alive``: their nanoseconds."""

    held: int
    written: int
    alive: int


class _Progress:
    """Whether criu gets on, looked at every now and then."""

    def __init__(self, signs: _Signs) -> None:
        self._last = signs
        self._silent_since = time.monotonic()
        self._due = self._silent_since + PATIENCE_S

    def is_due(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() > self._due

    def is_made(self, signs: _Signs) -> bool:
        """Whether anything has changed since it was looked at last."""
        now, last = time.monotonic(), self._last
        if (signs.held, signs.written) != (last.held, last.written):
            self._silent_since = now
        self._last, self._due = signs, now + PATIENCE_S
        return signs != last and now - self._silent_since < max(_SILENCE_S, PATIENCE_S)


def criu_of_hook(words: Sequence[str]) -> str:
    """The PID of the criu behind a hook's line: "ACTION /proc/PID/fd/N TREE"; "" if it is none."""
    parts = words[1].split("/") if len(words) > 1 else []
    return parts[2] if len(parts) > 2 else ""


def _parent(pid: str) -> str:
    """Who started a criu: crun, say; "" if that cannot be told."""
    with suppress(OSError):
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]
    return ""


def _children(pid: int) -> list[int]:
    """The criu that a program has started; none if it is criu itself, or has ended."""
    with suppress(OSError):
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return []


def _scheduled(pid: int, proc: Path = Path("/proc")) -> int:
    """Nanoseconds that a process had a processor or waited for one; 0 if that cannot be told.

    For one that waits for a device, a slow disk say, no two answers are the same: it gets on.
    Documentation/scheduler/sched-stats.rst, proc_pid_stat(5)
    """
    directory = proc / str(pid)
    with suppress(OSError, ValueError, IndexError):
        ran, waited = (directory / "schedstat").read_text().split()[:2]
        state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
        return int(ran) + int(waited) + (time.monotonic_ns() if state == "D" else 0)
    return 0


def _together(jobs: Sequence[DumpJob]) -> list[list[DumpJob]]:
    """Those that share control groups, which run only once each of them has its criu."""
    found: list[list[DumpJob]] = []
    for job in jobs:
        with_it = [group for group in found if any(_share(job, other) for other in group)]
        if not with_it:
            found.append([job])
            continue
        first, *more = with_it
        first.append(job)
        for group in more:
            first += group
            found.remove(group)
    return found


def _share(one: DumpJob, other: DumpJob) -> bool:
    return not set(one.cgroups).isdisjoint(other.cgroups)


class Dumps:
    """Dumps under way. Closing it tells every criu to let its tree run on; it may start again.

    More of them at once than there are processors take longer in all: 30 trees on two processors
    3.5 s if all begin at once, 2.7 s if two do.
    """

    def __init__(self, undo: UndoList) -> None:
        self._undo = undo
        self._at_once = os.cpu_count() or 1
        # What is not started yet.
        self._waiting: list[list[DumpJob]] = []
        self._running: list[_Running] = []
        self._connections: list[socket.socket] = []
        self._listener: socket.socket | None = None
        # Control groups that stand still until criu has stopped all that is in them: their trees.
        self._frozen: dict[str, set[int]] = {}
        self._seizing = Seizing(())

    def start(self, jobs: Sequence[DumpJob], pids: Sequence[int]) -> None:
        """Get ready for them; those that come first are started first. ``pids``: of all trees."""
        Path(HOOK_SOCKET).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(HOOK_SOCKET)
        self._listener.listen(1024)
        self._undo.push("end-repair", " ".join(map(str, pids)))
        self._undo.push("wait-dumps", own_cgroup())
        roots: dict[str, set[int]] = {}
        for job in jobs:
            for cgroup in job.cgroups:
                roots.setdefault(cgroup, set()).add(job.root_pid)
        # Before it waits for them: criu's parasites must run to leave.
        self._undo.push("thaw", *sorted(roots))
        self._frozen = roots
        self._seizing = Seizing(job.root_pid for job in jobs)
        self._waiting = _together(jobs)

    def _start_more(self) -> list[_Running]:
        """As many as there is room for."""
        started = []
        while self._waiting and sum(not item.held for item in self._running) < self._at_once:
            for job in self._waiting.pop(0):
                # Of an attempt before.
                shutil.rmtree(job.images, ignore_errors=True)
                job.images.mkdir(parents=True, exist_ok=True)
                job.work.mkdir(parents=True, exist_ok=True)
                process = start(
                    job.argv,
                    output=str(job.work / "output.log"),
                    environment={"REKERNEL_HOOK": HOOK_SOCKET, **job.environment},
                )
                started.append(_Running(job, process))
                self._running.append(started[-1])
        return started

    def wait(self, cancelled: Callable[[], None]) -> None:
        """Wait until all are held. Raises DumpFailedError for the first that fails, DumpAgainError
        if it stands still.
        """
        self._start_more()
        progress = _Progress(self._signs())
        spoiled: DumpAgainError | None = None
        assert self._listener is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ, None)
            for item in self._running:
                selector.register(os.pidfd_open(item.process.pid), selectors.EVENT_READ, item)
            try:
                while not all(item.held for item in self._running):
                    cancelled()
                    if progress.is_due() and not progress.is_made(self._signs()):
                        if not self._unseized():
                            raise self._stuck()
                        spoiled = self._let_go()
                    self._thaw_what_is_seized()
                    for key, _ in selector.select(_SEIZING_S if self._unseized() else 0.1):
                        if isinstance(key.data, _Running):
                            raise self._failure(key.data)
                        if key.data is not None:
                            self._hear(key.data, selector)
                            continue
                        connection, _ = self._listener.accept()
                        self._connections.append(connection)
                        # Who connects may be stopped before it speaks.
                        connection.setblocking(False)
                        selector.register(connection, selectors.EVENT_READ, _Hook(connection))
                    for item in self._start_more():
                        pidfd = os.pidfd_open(item.process.pid)
                        selector.register(pidfd, selectors.EVENT_READ, item)
            finally:
                for key in list(selector.get_map().values()):
                    if isinstance(key.data, _Running):
                        os.close(key.fd)
        if spoiled is not None:
            raise spoiled

    def _hear(self, hook: _Hook, selector: selectors.BaseSelector) -> None:
        """What a hook says: one line, at once or bit by bit."""
        data = b""
        with suppress(ConnectionError):
            data = hook.connection.recv(4096)
        hook.said += data
        if not data or b"\n" in data:
            selector.unregister(hook.connection)
        # One that was killed before it could speak: its criu tells the rest.
        if b"\n" in data:
            self._hold(criu_of_hook(hook.said.decode(errors="replace").split()))

    def _hold(self, criu: str) -> None:
        by_pid = {str(item.process.pid): item for item in self._running}
        holder = by_pid.get(criu) or by_pid.get(_parent(criu))
        if holder is not None:
            holder.held = True

    def _let_go(self) -> DumpAgainError:
        """Thaw what criu may be waiting for: interrupted within a process, it would lose that. The
        cut is none any more then.
        """
        unseized = self._unseized()
        late = [
            item.job for item in self._running if not unseized.keys().isdisjoint(item.job.cgroups)
        ]
        groups = ", ".join(unseized)
        # The others stand still until all is undone.
        for cgroup in unseized:
            thaw(cgroup)
        self._frozen = {}
        self._waiting = []
        return DumpAgainError(
            f"criu had not stopped all of {groups} within {PATIENCE_S:.0f} s",
            f"or leave it out: --restart {late[0].unit}",
            (job.unit for job in late),
        )

    def _unseized(self) -> dict[str, set[int]]:
        """The frozen control groups, with their trees, that have their criu."""
        begun = {item.job.root_pid for item in self._running}
        return {
            cgroup: roots for cgroup, roots in self._frozen.items() if not roots.isdisjoint(begun)
        }

    def _thaw_what_is_seized(self) -> None:
        for cgroup, roots in self._unseized().items():
            if all(self._seizing.is_done(root) for root in roots):
                thaw(cgroup)
                del self._frozen[cgroup]

    def freeze(self, pids: Sequence[int]) -> None:
        """Freeze the held trees again, which ran for criu's work in them.

        Should a criu be killed, its tree stands still until its connections are as they were.
        """
        running = [item.job for item in self._running]
        cgroups = list(dict.fromkeys(cgroup for job in running for cgroup in job.cgroups))
        if cgroups:
            self._undo.push("thaw", *cgroups)
        self._undo.push("end-repair", " ".join(map(str, pids)))
        for cgroup in cgroups:
            freeze(cgroup)

    def assert_held(self) -> None:
        """Whether every criu still holds its tree. Raises DumpFailedError.

        One that died let its tree run on, so what it wrote down is not the last word any more.
        """
        for item in self._running:
            code = item.process.poll()
            if code is not None:
                raise DumpFailedError(
                    f"{item.job.unit}: criu ended with {code} while it held the dumped processes",
                    "they run on; see who killed it in the journal, then try again",
                )

    def _signs(self) -> _Signs:
        """Of life, of those that are not held yet."""
        written = alive = 0
        for item in self._running:
            if not item.held:
                for directory in (item.job.images, item.job.work):
                    # A file may go while it is looked at.
                    with suppress(FileNotFoundError):
                        written += sum(path.stat().st_size for path in directory.iterdir())
                alive += sum(map(_scheduled, [item.process.pid, *_children(item.process.pid)]))
        return _Signs(sum(item.held for item in self._running), written, alive)

    def _stuck(self) -> DumpAgainError:
        late = [item for item in self._running if not item.held]
        for item in late:
            tree = Path("/sys/fs/cgroup", item.job.cgroups[0].lstrip("/"), "cgroup.procs")
            pids = [item.process.pid]
            with suppress(OSError):
                pids += map(int, tree.read_text().split())
            with suppress(OSError):
                (item.job.work / "stuck.log").write_text(where_they_wait(pids))
            # Not those that are merely slow, when another fails: they give up in their hook.
            for pid in _children(item.process.pid) or [item.process.pid]:
                interrupt(pid)
        units = ", ".join(item.job.unit for item in late)
        return DumpAgainError(
            f"{units} could not be dumped: nothing more from criu for {PATIENCE_S:.0f} s",
            f"where it waits: {late[0].job.work / 'stuck.log'}; "
            f"or leave it out: --restart {late[0].job.unit}",
            (item.job.unit for item in late),
        )

    def _failure(self, item: _Running) -> DumpFailedError:
        code = item.process.wait()
        cause = first_error(item.job.work / DUMP_LOG) or f"criu ended with {code}"
        passes = any(words in cause for words in _PASSING)
        kind = DumpAgainError if passes else DumpFailedError
        return kind(
            f"{item.job.unit} could not be dumped: {cause}",
            f"criu's log: {item.job.work / DUMP_LOG}; or leave it out: --restart {item.job.unit}",
        )

    def close(self) -> None:
        """Let every tree run on: the hooks see the end of their connection and criu gives up.

        What is frozen waits for what undoes the rest.
        """
        self._frozen = {}
        for connection in self._connections:
            connection.close()
        if self._listener is not None:
            self._listener.close()
        self._waiting, self._running, self._connections = [], [], []
        self._listener = None
        Path(HOOK_SOCKET).unlink(missing_ok=True)
