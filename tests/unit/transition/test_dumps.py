"""What is said when criu could not dump: its own words, from logs of a real one."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded import Recorded, on_each_kernel

from rekernel.attempt.undo import UndoList
from rekernel.records import replace
from rekernel.transition import dumps
from rekernel.transition.dumps import DumpJob, Dumps, criu_of_hook


@pytest.mark.parametrize(
    ("line", "pid"),
    [
        ("post-dump /proc/4711/fd/12 redis", "4711"),
        ("post-dump", ""),
        ("post-dump x", ""),
        ("", ""),
    ],
)
def test_whose_hook_it_is(line: str, pid: str) -> None:
    assert criu_of_hook(line.split()) == pid


@pytest.fixture
def under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dumps:
    monkeypatch.setattr(dumps, "HOOK_SOCKET", str(tmp_path / "hook.sock"))
    found = Dumps(UndoList(tmp_path / "undo.json"))
    found.start([], [])
    return found


def failed(tmp_path: Path, status: int) -> dumps._Running:
    job = DumpJob("a", "a.service", 7, ("criu",), tmp_path / "images", tmp_path, ("/a",))
    return dumps._Running(job, subprocess.Popen(["sh", "-c", f"exit {status}"]))


@on_each_kernel
def test_the_message_of_a_failed_dump(recorded: Recorded, under_way: Dumps, tmp_path: Path) -> None:
    log = (recorded.directory / "criu/device.log").read_bytes()
    (tmp_path / "dump.log").write_bytes(log)
    error = under_way._failure(failed(tmp_path, 1))
    assert str(error) == (
        "a.service could not be dumped: Can't dump file 4 of that type [20600] (chr 250:0)"
    )
    assert error.hint == (f"criu's log: {tmp_path}/dump.log; or leave it out: --restart a.service")
    assert error.exit_code == 1
    under_way.close()
    assert not Path(dumps.HOOK_SOCKET).exists()


def test_a_criu_that_says_nothing(under_way: Dumps, tmp_path: Path) -> None:
    error = under_way._failure(failed(tmp_path, 3))
    assert str(error) == "a.service could not be dumped: criu ended with 3"
    under_way.close()


@pytest.mark.parametrize(
    "words",
    [
        "Error (criu/sk-queue.c:98): skqueue: Control messages in queue, not supported",
        "Error (criu/pidfd.c:97): pidfd: pidfd pid 1 is not a part of process tree..",
    ],
)
def test_what_is_over_in_a_moment(under_way: Dumps, tmp_path: Path, words: str) -> None:
    item = failed(tmp_path, 1)
    (tmp_path / "dump.log").write_text(words)
    assert isinstance(under_way._failure(item), dumps.DumpAgainError)
    under_way.close()


def test_a_dump_that_stands_still(
    under_way: Dumps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumps, "PATIENCE_S", 0)
    monkeypatch.setattr(dumps, "_scheduled", lambda pid: 0)
    late = failed(tmp_path, 0)
    late.process.wait()
    with subprocess.Popen(["sleep", "20"]) as process:
        late.process = process
        under_way._running.append(late)
        with pytest.raises(dumps.DumpAgainError, match=r"a\.service .* for 0 s") as caught:
            under_way.wait(lambda: None)
        assert caught.value.hint.startswith(f"where it waits: {tmp_path}/stuck.log")
        assert caught.value.late == ("a.service",)
        # Perhaps before its exec.
        assert f"{process.pid} " in (tmp_path / "stuck.log").read_text()
        # What it waits for is interrupted.
        assert process.wait(10) == -signal.SIGALRM
    under_way.close()
    # Once more, and this time it fails by itself.
    monkeypatch.setattr(dumps, "PATIENCE_S", 4)
    under_way.start([], [])
    under_way._running.append(failed(tmp_path, 3))
    with pytest.raises(dumps.DumpFailedError, match="criu ended with 3"):
        under_way.wait(lambda: None)
    under_way.close()


def test_a_dump_that_goes_on(
    under_way: Dumps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumps, "PATIENCE_S", 0.7)
    busy = failed(tmp_path, 0)
    busy.process.wait()
    images = tmp_path / "images"
    images.mkdir()
    program = 'for i in 1 2 3 4 5 6 7 8; do echo >> "$1"; sleep 0.2; done; exit 9'
    busy.process = subprocess.Popen(["sh", "-c", program, "sh", images / "pages-1.img"])
    under_way._running.append(busy)
    with pytest.raises(dumps.DumpFailedError, match="criu ended with 9"):
        under_way.wait(lambda: None)
    under_way.close()


def test_a_dump_that_is_busy_is_not_given_up_soon(
    under_way: Dumps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has written nothing for a while, as it reads what a large process maps."""
    monkeypatch.setattr(dumps, "PATIENCE_S", 0.3)
    busy = failed(tmp_path, 0)
    busy.process.wait()
    program = (
        "import sys, time\nend = time.time() + 1.5\nwhile time.time() < end: pass\nsys.exit(9)"
    )
    busy.process = subprocess.Popen([sys.executable, "-c", program])
    under_way._running.append(busy)
    with pytest.raises(dumps.DumpFailedError, match="criu ended with 9"):
        under_way.wait(lambda: None)
    under_way.close()


def test_one_that_is_busy_for_ever_is(
    under_way: Dumps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumps, "PATIENCE_S", 0.2)
    monkeypatch.setattr(dumps, "_SILENCE_S", 0.7)
    busy = failed(tmp_path, 0)
    busy.process.wait()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        busy.process = process
        under_way._running.append(busy)
        with pytest.raises(dumps.DumpAgainError, match="nothing more from criu"):
            under_way.wait(lambda: None)
        process.kill()
    under_way.close()


def test_what_criu_waits_for_in_a_frozen_control_group_is_let_go(
    under_way: Dumps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then is the dump given up: nobody is interrupted within a process."""
    thawed: list[str] = []
    monkeypatch.setattr(dumps, "PATIENCE_S", 0)
    monkeypatch.setattr(dumps, "_scheduled", lambda pid: 0)
    monkeypatch.setattr(dumps, "thaw", thawed.append)
    late = failed(tmp_path, 0)
    late.process.wait()
    with subprocess.Popen(["sleep", "20"]) as process:
        late.process = process
        under_way._running.append(late)
        under_way._frozen = {"/a": {7}, "/b": {7, 8}}

        def held() -> None:
            late.held = bool(thawed)

        under_way._frozen["/c"] = {9}
        late.job = replace(late.job, cgroups=("/a", "/b"))
        with pytest.raises(dumps.DumpAgainError, match="had not stopped all of /a, /b") as caught:
            under_way.wait(held)
        assert caught.value.late == ("a.service",)
        assert thawed == ["/a", "/b"]
        assert process.poll() is None
        process.kill()


@pytest.fixture
def silent_hook(under_way: Dumps, tmp_path: Path) -> Iterator[socket.socket]:
    """A criu whose hook has connected, and then was stopped before it could speak."""
    late = failed(tmp_path, 0)
    late.process.wait()
    with (
        socket.socket(socket.AF_UNIX) as hook,
        subprocess.Popen(["sleep", "60"]) as process,
    ):
        late.process = process
        under_way._running.append(late)
        hook.connect(dumps.HOOK_SOCKET)
        yield hook
        process.kill()
        under_way.close()


def test_a_hook_that_says_nothing_does_not_keep_from_stopping(
    under_way: Dumps, silent_hook: socket.socket
) -> None:
    looks = 0

    def cancelled() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise InterruptedError

    before = time.monotonic()
    with pytest.raises(InterruptedError):
        under_way.wait(cancelled)
    assert time.monotonic() - before < 10


def test_a_hook_that_says_nothing_stands_still(
    under_way: Dumps, silent_hook: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumps, "PATIENCE_S", 0.3)
    # Half a line names nobody: the rest of the number may be missing.
    silent_hook.sendall(b"post-dump /proc/%d" % under_way._running[0].process.pid)
    with pytest.raises(dumps.DumpAgainError, match="nothing more from criu"):
        under_way.wait(lambda: None)


def test_a_hook_that_speaks_bit_by_bit(under_way: Dumps, silent_hook: socket.socket) -> None:
    words = b"post-dump /proc/%d/fd/3 7\n" % under_way._running[0].process.pid
    bits = [words[:9], words[9:14], words[14:]]

    def speak() -> None:
        if bits:
            silent_hook.sendall(bits.pop(0))

    under_way.wait(speak)
    assert bits == []


# What criu does at the end, by way of the hook: it says that it is done, and waits.
_HOLD = """
import os, socket, sys
path, log, name = os.environ["REKERNEL_HOOK"], sys.argv[1], sys.argv[2]
def note(what):
    with open(log, "a") as file:
        file.write(f"{what} {name}\\n")
note("begins")
with socket.socket(socket.AF_UNIX) as hook:
    hook.connect(path)
    note("held")
    hook.sendall(b"post-dump /proc/%d/fd/3 7\\n" % os.getpid())
    hook.recv(16)
"""


def held_jobs(tmp_path: Path, *groups: tuple[str, ...]) -> list[DumpJob]:
    log = str(tmp_path / "order")
    return [
        DumpJob(
            name,
            f"{name}.service",
            1 << 29 | number,
            (sys.executable, "-c", _HOLD, log, name),
            tmp_path / name / "images",
            tmp_path / name / "work",
            cgroups,
        )
        for number, (name, cgroups) in enumerate(zip("abcdef", groups, strict=False))
    ]


@pytest.fixture
def one_by_one(under_way: Dumps, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dumps]:
    monkeypatch.setattr(dumps, "thaw", lambda cgroup: None)
    under_way.close()
    under_way._at_once = 1
    yield under_way
    running = [item.process for item in under_way._running]
    under_way.close()
    for process in running:
        process.wait(20)


def test_no_more_at_once_than_there_is_room_for(one_by_one: Dumps, tmp_path: Path) -> None:
    one_by_one.start(held_jobs(tmp_path, ("/a",), ("/b",), ("/c",)), [])
    one_by_one.wait(lambda: None)
    one_by_one.assert_held()
    lines = (tmp_path / "order").read_text().splitlines()
    assert lines == ["begins a", "held a", "begins b", "held b", "begins c", "held c"]


def test_what_shares_a_control_group_begins_together(one_by_one: Dumps, tmp_path: Path) -> None:
    """It is thawed only once each of its trees has a criu; and criu's code must run to end."""
    jobs = held_jobs(tmp_path, ("/a",), ("/b",), ("/a", "/c"), ("/c",))
    one_by_one.start(jobs, [])
    one_by_one.wait(lambda: None)
    one_by_one.assert_held()
    lines = (tmp_path / "order").read_text().splitlines()
    assert set(lines[:-2]) == {f"{what} {name}" for what in ("begins", "held") for name in "acd"}
    assert lines[-2:] == ["begins b", "held b"]


def test_one_that_joins_two() -> None:
    jobs = [
        DumpJob(name, "", 0, (), Path(), Path(), cgroups)
        for name, cgroups in (("a", ("/1",)), ("b", ("/2",)), ("c", ("/1", "/2")), ("d", ("/3",)))
    ]
    assert [[job.name for job in group] for group in dumps._together(jobs)] == [
        ["a", "c", "b"],
        ["d"],
    ]


def test_what_failed_keeps_the_others_from_starting(one_by_one: Dumps, tmp_path: Path) -> None:
    first, second = held_jobs(tmp_path, ("/a",), ("/b",))
    first = replace(first, argv=("false",))
    one_by_one.start([first, second], [])
    with pytest.raises(dumps.DumpFailedError, match=r"a\.service could not be dumped"):
        one_by_one.wait(lambda: None)
    assert not (tmp_path / "order").exists()


def test_one_that_fails_later(one_by_one: Dumps, tmp_path: Path) -> None:
    first, second = held_jobs(tmp_path, ("/a",), ("/b",))
    second = replace(second, argv=("false",))
    one_by_one.start([first, second], [])
    with pytest.raises(dumps.DumpFailedError, match=r"b\.service could not be dumped"):
        one_by_one.wait(lambda: None)


def test_only_what_has_its_criu_is_let_go(
    one_by_one: Dumps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would run for no reason, against a locked network."""
    thawed: list[str] = []
    monkeypatch.setattr(dumps, "PATIENCE_S", 0)
    monkeypatch.setattr(dumps, "_scheduled", lambda pid: 0)
    monkeypatch.setattr(dumps, "thaw", thawed.append)
    first, second = held_jobs(tmp_path, ("/a",), ("/b",))
    one_by_one.start([replace(first, argv=("sleep", "60")), second], [])
    # Not seized by anybody: it is where it was.
    monkeypatch.setattr(one_by_one._seizing, "is_done", lambda root: False)
    with pytest.raises(dumps.DumpAgainError):
        one_by_one.wait(lambda: None)
    assert thawed == ["/a"]
    assert not (tmp_path / "order").exists()


@pytest.mark.parametrize(("state", "gets_on"), [("S", False), ("D", True)])
def test_who_waits_for_a_device_gets_on(tmp_path: Path, state: str, gets_on: bool) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "schedstat").write_text("1000 500 3\n")
    (tmp_path / "7" / "stat").write_text(f"7 (criu (1)) {state} 1 7 7 0\n")
    first, second = (dumps._scheduled(7, tmp_path) for _ in range(2))
    assert (first != second) is gets_on
    assert gets_on or first == 1500
