"""The agent's side of a restore: who is held, who failed, and that one does not harm another.

The programs here do what the hook does (connect, say who they are, wait); no criu is claimed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from said import Said

from rekernel import syscalls
from rekernel.agent import remains, restore
from rekernel.carry.cgroups import restore as cgroups
from rekernel.carry.cgroups.entry import Cgroup
from rekernel.carry.task_attributes.entry import TaskAttributes
from rekernel.carry.terminals import restore as terminals
from rekernel.carry.unix_sockets.restore import UnixConnections
from rekernel.criu.entry import Inherited
from rekernel.handover.manifest import Tree
from rekernel.records import replace

# Holds like the hook; ends as told: argument 1 is what to do while held, 2 the exit status.
_HOOK = """
import os, socket, sys, time
stream = socket.socket(socket.AF_UNIX)
stream.connect(os.environ["REKERNEL_HOOK"])
stream.sendall(b"post-restore /proc/%d/fd/3 tree\\n" % os.getpid())
if sys.argv[1] == "die":
    sys.exit(int(sys.argv[2]))
assert stream.recv(3) == b"go\\n"
print("committed", flush=True)
sys.exit(int(sys.argv[2]))
"""

# Connects, but is nobody's hook.
_STRANGER = """
import os, socket
for line in (b"", b"hello\\n", b"hello world\\n", b"post-restore /proc/1/fd/3 tree\\n"):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(os.environ["REKERNEL_HOOK"])
        stream.sendall(line)
"""


NO_LINKS = UnixConnections((), lambda name: b"")


def hook(status: int = 0, then: str = "wait") -> tuple[str, ...]:
    return (sys.executable, "-c", _HOOK, then, str(status))


@pytest.fixture(autouse=True)
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(restore, "WORK", tmp_path / "work")
    monkeypatch.setattr(restore, "_HOOK_SOCKET", str(tmp_path / "hook.sock"))
    monkeypatch.setattr(restore, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup/cgroup.procs").touch()
    return tmp_path


@pytest.fixture
def task() -> Iterator[subprocess.Popen[bytes]]:
    """A process of a tree."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def tree(
    name: str,
    argv: Sequence[str],
    pid: int | None = None,
    inherited: Sequence[Inherited] = (),
) -> Tree:
    cgroups.make([Cgroup("/system.slice"), Cgroup(f"/system.slice/{name}.service")])
    for file in ("cgroup.procs", "cgroup.kill"):
        (cgroups.ROOT / f"system.slice/{name}.service" / file).touch()
    # No process has such a PID.
    pids = {str(pid or 1 << 30): f"/system.slice/{name}.service"}
    made = Tree(name, f"{name}.service", 7, f"images/{name}", tuple(argv), tuple(inherited), pids)
    restore.work_directory(made).mkdir(parents=True)
    return made


def test_all_are_held_until_the_commit(stage: Path) -> None:
    found = restore.restore_all([tree("a", hook()), tree("b", hook())], NO_LINKS, 120)
    assert [item.tree.name for item in found.held] == ["a", "b"]
    assert found.failed == []
    logs = [restore.work_directory(item.tree) / "output.log" for item in found.trees]
    assert [log.read_text() for log in logs] == ["", ""]
    restore.commit(found)
    assert [log.read_text() for log in logs] == ["committed\n", "committed\n"]
    assert found.failed == []


def test_the_cause_is_what_criu_said_first(stage: Path, said: Said) -> None:
    log = (
        "(00.1) Warn  (criu/x.c:1): no matter\n"
        "(00.2)   4711: Error (criu/files-reg.c:2200): Can't open file var/lib/x: No such file\n"
        "(00.3) Error (criu/cr-restore.c:1): Restoring FAILED.\n"
    )
    bad = tree("bad", ["sh", "-c", "exit 1"])
    (restore.work_directory(bad) / "restore.log").write_text(log)
    (failed,) = restore.restore_all([bad], NO_LINKS, 120).failed
    assert failed.failure == "Can't open file var/lib/x: No such file"


def test_one_that_fails_fails_alone(stage: Path, said: Said, task: subprocess.Popen[bytes]) -> None:
    bad = tree("bad", ["sh", "-c", "echo why; exit 7"], task.pid)
    found = restore.restore_all([bad, tree("good", hook())], NO_LINKS, 120)
    assert [(item.tree.name, item.failure) for item in found.failed] == [
        ("bad", "criu ended with 7")
    ]
    assert said.lines == ["<5>rekernel: bad.service could not be restored: criu ended with 7"]
    assert (stage / "work/bad/output.log").read_text() == "why\n"
    # What of it was there already does not run beside the fresh start.
    killed = stage / "cgroup/system.slice"
    assert (killed / "bad.service/cgroup.kill").read_text() == "1"
    assert (killed / "good.service/cgroup.kill").read_text() == ""
    # Whoever else has its PID, the reason why it failed perhaps, is left alone.
    assert task.poll() is None
    restore.commit(found)
    assert [item.tree.name for item in found.held] == ["good"]


def test_one_that_dies_while_it_is_held(stage: Path, said: Said) -> None:
    slow = ["sh", "-c", f"sleep 0.5; exec {sys.executable} -c '{_HOOK}' wait 0"]
    found = restore.restore_all([tree("bad", hook(9, "die")), tree("good", slow)], NO_LINKS, 120)
    assert [item.tree.name for item in found.held] == ["good"]
    assert [item.failure for item in found.failed] == ["criu ended with 9"]
    restore.commit(found)
    assert (stage / "work/good/output.log").read_text() == "committed\n"


def killed(stage: Path, name: str) -> bool:
    """Whether a unit's control group was."""
    return (stage / f"cgroup/system.slice/{name}.service/cgroup.kill").read_text() == "1"


def test_one_that_dies_just_before_the_commit(stage: Path, said: Said) -> None:
    """What it held runs on by itself then: it ends before the others begin to run."""
    pair = [
        replace(tree(name, hook()), unit="pair.service", root_pid=number)
        for name, number in (("bad", 7), ("with", 8))
    ]
    found = restore.restore_all([*pair, tree("good", hook())], NO_LINKS, 120)
    by_name = {item.tree.name: item for item in found.trees}
    bad = by_name["bad"]
    os.kill(bad.pid, signal.SIGKILL)
    os.waitid(os.P_PID, bad.pid, os.WEXITED | os.WNOWAIT)
    restore.commit(found)
    assert bad.failure == "criu ended with -9"
    assert by_name["with"].failure == "it goes with process tree 7"
    assert [item.tree.name for item in found.held] == ["good"]
    assert [name for name in ("bad", "with", "good") if killed(stage, name)] == ["bad", "with"]
    # Nothing of the unit has run.
    assert (stage / "work/with/output.log").read_text() == ""
    assert (stage / "work/good/output.log").read_text() == "committed\n"
    assert all(item.done for item in found.trees)


def test_one_that_fails_at_the_commit(stage: Path, said: Said) -> None:
    """Its unit has begun to run, and systemd will start it afresh."""
    pair = [
        replace(tree(name, hook(status)), unit="pair.service", root_pid=number)
        for name, number, status in (("bad", 7, 4), ("with", 8, 0))
    ]
    found = restore.restore_all([*pair, tree("good", hook())], NO_LINKS, 120)
    restore.commit(found)
    assert {item.tree.name: item.failure for item in found.failed} == {
        "bad": "criu ended with 4 after the commit",
        "with": "it goes with process tree 7",
    }
    assert [name for name in ("bad", "with", "good") if killed(stage, name)] == ["bad", "with"]
    assert len(said.lines) == 2


def test_one_that_never_lets_go(stage: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody waits for it."""
    monkeypatch.setattr(restore, "_LET_GO_S", 1.0)
    # Its shell is who is waited for.
    words = _HOOK.replace("os.getpid()", "os.getppid()")
    stays = ("sh", "-c", f"{sys.executable} -c '{words}' wait 0; exec sleep 60")
    found = restore.restore_all([tree("bad", stays), tree("good", hook())], NO_LINKS, 120)
    began = time.monotonic()
    restore.commit(found)
    assert time.monotonic() - began < 30
    assert [item.failure for item in found.failed] == ["criu did not end within 1 s of the commit"]
    assert killed(stage, "bad")
    assert not killed(stage, "good")
    assert not Path(f"/proc/{found.failed[0].pid}").exists()


def test_one_that_dies_while_others_are_restored(stage: Path, said: Said) -> None:
    """What it held ends at once, with its unit, of which no more is begun."""
    lines = f"""
while ! [ -e {stage}/held ]; do sleep 0.01; done; kill -9 $(cat {stage}/held)
until grep -q 1 {stage}/cgroup/system.slice/bad.service/cgroup.kill; do sleep 0.01; done
exec {sys.executable} -c '{_HOOK}' wait 0
"""
    words = _HOOK.replace("stream.sendall", f"open('{stage}/held', 'w').write(str(os.getpid())); "
                          "stream.sendall", 1)  # fmt: skip
    bad = replace(tree("bad", (sys.executable, "-c", words, "wait", "0")), unit="pair.service")
    later = replace(tree("later", hook()), unit="pair.service", after=("good",))
    found = restore.restore_all([bad, tree("good", ["sh", "-c", lines]), later], NO_LINKS, 120)
    assert [item.tree.name for item in found.held] == ["good"]
    assert {item.tree.name: item.failure for item in found.failed} == {
        "bad": "criu ended with -9",
        "later": "it goes with process tree 7",
    }
    assert not (stage / "work/later/output.log").exists()
    restore.commit(found)


def test_who_has_no_control_group_is_not_restored(stage: Path, said: Said) -> None:
    """Nobody could end what comes of it."""
    made = tree("a", hook())
    (stage / "cgroup/system.slice/a.service/cgroup.procs").unlink()
    (failed,) = restore.restore_all([made], NO_LINKS, 120).failed
    assert failed.failure == "criu was not started: its control group cannot be entered"


def test_a_hook_that_says_nothing(stage: Path, said: Said) -> None:
    """It keeps its own tree waiting, and nobody else."""
    silent = (
        "import os, socket, time; stream = socket.socket(socket.AF_UNIX);"
        f"stream.connect(os.environ['REKERNEL_HOOK']); open('{stage}/there', 'w'); stream.recv(1)"
    )
    wait = f"while ! [ -e {stage}/there ]; do sleep 0.01; done; exec"
    trees = [
        tree("bad", (sys.executable, "-c", silent)),
        tree("good", ["sh", "-c", f"{wait} {sys.executable} -c '{_HOOK}' wait 0"]),
    ]
    found = restore.restore_all(trees, NO_LINKS, 5)
    assert [item.failure for item in found.failed] == ["not restored within 5 s"]
    assert [item.tree.name for item in found.held] == ["good"]
    restore.commit(found)


def test_a_hook_of_a_tree_that_is_given_up_gets_no_answer(stage: Path) -> None:
    """criu would let the tree run."""
    found = restore.Restores()
    made = restore.Restore(tree("a", ()), 4711, -1, failure="it goes with process tree 7")
    found.trees.append(made)
    ours, hooks = socket.socketpair()
    hooks.sendall(b"pre-resume /proc/4711/fd/3 a\n")
    restore._hold(ours, found)
    assert found.held == []
    hooks.setblocking(False)
    with pytest.raises(BlockingIOError):
        hooks.recv(1)
    hooks.close()
    ours.close()


def test_what_cannot_be_ended_is_told(stage: Path, said: Said, task: subprocess.Popen[bytes],
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(restore, "_END_S", 0.1)
    for name in ("NOT_ENDED", "SYSTEMD"):
        monkeypatch.setattr(remains, name, str(stage / name))
    bad = tree("bad", ["sh", "-c", "exit 7"])
    (stage / "cgroup/system.slice/bad.service/cgroup.procs").write_text(f"{task.pid}\n")
    found = restore.restore_all([bad, tree("good", hook())], NO_LINKS, 120)
    restore.commit(found)
    (stage / "cgroup/system.slice/bad.service/cgroup.procs").write_text(f"{task.pid}\n")
    assert restore.wait_for_the_end(found) == {"bad.service": [task.pid]}
    assert (stage / "NOT_ENDED/bad.service").exists()
    assert restore.end_all([bad]) == {"bad.service": [task.pid]}


def test_nothing_to_wait_for(stage: Path) -> None:
    found = restore.restore_all([tree("good", hook())], NO_LINKS, 120)
    restore.commit(found)
    assert restore.wait_for_the_end(found) == {}


def test_one_that_takes_too_long(stage: Path, said: Said) -> None:
    found = restore.restore_all([tree("late", ["sleep", "60"])], NO_LINKS, timeout=0.2)
    assert [item.failure for item in found.failed] == ["not restored within 0 s"]
    assert found.trees[0].done
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.trees[0].pid, 0)
        pytest.fail("it still runs")


def test_connections_of_strangers_change_nothing(stage: Path) -> None:
    found = restore.restore_all([tree("a", [sys.executable, "-c", _STRANGER])], NO_LINKS, 120)
    assert [item.failure for item in found.failed] == ["criu ended with 0"]


def test_directories_and_descriptors(stage: Path) -> None:
    (stage / "file").write_text("before\n")
    inherited = Inherited(
        "file", "fd[{fd}]:file[1e:4]", str(stage / "file"), os.O_WRONLY | os.O_APPEND
    )
    script = (
        "import os, re, sys\n"
        "open(sys.argv[2] + '.said', 'w').write(' '.join(sys.argv[1:]))\n"
        "os.write(int(re.findall('[0-9]+', sys.argv[4])[0]), b'inherited\\n')\n"
    )
    # {images} and {work} stand for directories; a script is no argument of criu.
    argv = [sys.executable, str(stage / "script"), "{images}", "{work}"]
    (stage / "script").write_text(script)
    made = tree("a", argv, inherited=[inherited])
    restore.restore_all([made], NO_LINKS, 120)
    words = (stage / "work/a.said").read_text().split()
    assert words[:3] == [str(stage / "work/images/a"), str(stage / "work/a"), "--inherit-fd"]
    assert words[3].startswith("fd[")
    assert words[3].endswith("]:file[1e:4]")
    assert (stage / "file").read_text() == "before\ninherited\n"


def test_what_criu_does_not_keep_is_set(stage: Path, said: Said) -> None:
    """By the time it is held."""
    sleeper = subprocess.Popen(["sleep", "60"])
    task_attributes = TaskAttributes(
        io_priorities={str(sleeper.pid): 2 << 13 | 7, str(2**22 + 1): 2 << 13}
    )
    made = replace(tree("a", hook()), task_attributes=task_attributes)
    found = restore.restore_all([made], NO_LINKS, 120)
    assert syscalls.ioprio_get(sleeper.pid) == 2 << 13 | 7
    assert any("is without its I/O priority" in line for line in said.lines)
    restore.commit(found)
    sleeper.kill()
    sleeper.wait()


def test_each_starts_in_its_own_control_group(stage: Path) -> None:
    restore.restore_all([tree("a", ["false"])], NO_LINKS, 120)
    # The agent went in to start it, and out again.
    inside = stage / "cgroup/system.slice/a.service/cgroup.procs"
    assert inside.read_text() == str(os.getpid())
    assert (stage / "cgroup/cgroup.procs").read_text() == str(os.getpid())


def test_who_belongs_below_is_moved_there(stage: Path) -> None:
    made = tree("a", hook())
    below = stage / "cgroup/system.slice/a.service/below/cgroup.procs"
    below.parent.mkdir()
    below.touch()
    made.cgroups["4711"] = "/system.slice/a.service/below"
    restore.commit(restore.restore_all([made], NO_LINKS, 120))
    assert below.read_text() == "4711"
    # Who belongs where criu was is there already.
    assert (below.parents[1] / "cgroup.procs").read_text() == str(os.getpid())


def test_a_connection_to_the_journal(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(stage / "journal")
    monkeypatch.setattr(restore, "JOURNAL_STDOUT", path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fd = restore._open_inherited(
            Inherited("journal", "", header="redis\nredis.service\n"), NO_LINKS
        )
        os.write(fd, b"a line\n")
        os.close(fd)
        journal, _ = listener.accept()
        with journal, journal.makefile() as file:
            assert file.read() == "redis\nredis.service\na line\n"


def test_a_unit_is_restored_as_a_whole(stage: Path, said: Said) -> None:
    bad = replace(tree("bad", ["sh", "-c", "exit 7"]), unit="pair.service")
    good = replace(tree("good", hook()), unit="pair.service", root_pid=8)
    found = restore.restore_all([bad, good, tree("other", hook())], NO_LINKS, 120)
    assert {item.tree.name: item.failure for item in found.failed} == {
        "bad": "criu ended with 7",
        "good": "it goes with process tree 7",
    }
    # Nothing of it runs beside the fresh start.
    for name in ("bad", "good"):
        killed = stage / f"cgroup/system.slice/{name}.service/cgroup.kill"
        assert killed.read_text() == "1"
    assert [item.tree.name for item in found.held] == ["other"]
    restore.commit(found)
    assert (stage / "work/good/output.log").read_text() == ""
    assert (stage / "work/other/output.log").read_text() == "committed\n"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_a_fifo_that_nobody_else_has_open(tmp_path: Path, flags: int) -> None:
    os.mkfifo(tmp_path / "fifo")
    given = Inherited("file", "fd[{fd}]:x", path=str(tmp_path / "fifo"), flags=flags)
    number = restore._open_inherited(given, NO_LINKS)
    assert fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == flags
    os.close(number)


def missing_once(made: Tree, number: int) -> Tree:
    """The same tree, whose first attempt ends as criu's does when it misses its terminal."""
    work = restore.work_directory(made)
    error = f"Error (criu/tty.c:500): tty: Unable to open dev/ptmx with specified index {number}"
    (work / "first.log").write_text(f"(00.1)   4711: {error}\n")
    script = (
        f"echo {made.name} >> {restore.WORK}/order; cd {work};"
        ' if [ -e first.log ]; then mv first.log restore.log; exit 1; fi; exec "$@"'
    )
    return replace(made, argv=("sh", "-c", script, "sh", *made.argv))


def test_a_terminal_that_was_missed(stage: Path) -> None:
    trees = [missing_once(tree("b", hook()), 9), missing_once(tree("a", hook()), 4)]
    found = restore.restore_all([*trees, tree("c", hook())], NO_LINKS, 120)
    assert found.failed == []
    assert [item.tree.name for item in found.held] == ["c", "a", "b"]
    # One after the other, the lowest number first.
    assert (stage / "work/order").read_text().split()[2:] == ["a", "b"]
    restore.commit(found)


def test_terminals_in_order(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    log = f'echo "$0" >> {restore.WORK}/order; exec "$@"'
    trees = [
        replace(
            made, argv=("sh", "-c", log, name, *made.argv), terminals=(number,) if number else ()
        )
        for name, number in (("b", 9), ("a", 4), ("c", 11), ("none", None))
        for made in [tree(name, hook())]
    ]
    found = restore.restore_all(trees, NO_LINKS, 120)
    assert found.failed == []
    order = (stage / "work/order").read_text().split()
    assert [name for name in order if name != "none"] == ["a", "b", "c"]
    restore.commit(found)


def test_no_more_at_once_than_can_run(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    log = f'echo "$0" >> {restore.WORK}/order; exec "$@"'
    trees = []
    for name, size in (("small", 1), ("large", 3), ("middle", 2)):
        made = tree(name, hook())
        for number in range(1, size):
            made.cgroups[str((1 << 30) + number)] = made.cgroups[str(1 << 30)]
        trees.append(replace(made, argv=("sh", "-c", log, name, *made.argv)))
    found = restore.restore_all(trees, NO_LINKS, 120)
    # Each began when the one before it was held.
    assert [item.tree.name for item in found.held] == ["large", "middle", "small"]
    assert (stage / "work/order").read_text().split() == ["large", "middle", "small"]
    restore.commit(found)


def test_one_that_hangs_keeps_nobody_back(
    stage: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(restore, "_SLOW_S", 0.2)
    trees = [tree("hangs", ["sleep", "60"]), tree("good", hook()), tree("fine", hook())]
    found = restore.restore_all(trees, NO_LINKS, timeout=4)
    assert [item.tree.name for item in found.held] == ["good", "fine"]
    assert [item.failure for item in found.failed] == ["not restored within 4 s"]
    restore.commit(found)


# A new terminal has the number that is wanted, whoever else is to get a lower one later.
_NUMBER = """
import fcntl, struct, sys
with open("/dev/ptmx", "rb") as master:
    (number,) = struct.unpack("i", fcntl.ioctl(master, 0x80045430, bytes(4)))
sys.exit(number != int(sys.argv[1]))
"""


def test_terminals_far_from_each_other(stage: Path) -> None:
    fd = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    free = terminals.number_of(fd)
    os.close(fd)
    found = restore.restore_all(
        [
            replace(
                made,
                argv=("sh", "-c", f"{sys.executable} -c '{_NUMBER}' {number} && exec \"$@\"", "sh",
                      *made.argv),
                terminals=(number,),
                after=after,
            )
            for name, number, after in (
                # A window of tmux, which needs the terminal of the login.
                ("server", free + 1, ("login",)), ("login", free + 50, ()), ("far", free + 90, ()),
            )
            for made in [tree(name, hook())]
        ],
        NO_LINKS, 120,
    )  # fmt: skip
    assert found.failed == []
    restore.commit(found)


def test_turns_that_never_came(stage: Path, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    trees = [
        replace(tree(name, ["sleep", "60"]), terminals=(number,) if number else ())
        for name, number in (("b", 2), ("a", 1))
    ]
    found = restore.restore_all(trees, NO_LINKS, timeout=0.2)
    assert {item.tree.name: item.failure for item in found.failed} == {
        "a": "not restored within 0 s",
        "b": "it was not its turn yet",
    }


def test_one_that_does_not_start_keeps_nobody_back(
    stage: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    bad = replace(tree("bad", ["no-such-program"]), terminals=(1,))
    good = replace(tree("good", hook()), terminals=(2,))
    found = restore.restore_all([bad, good], NO_LINKS, 120)
    assert [item.tree.name for item in found.held] == ["good"]
    assert [item.tree.name for item in found.failed] == ["bad"]
    restore.commit(found)


def test_a_second_attempt_leaves_others_of_the_unit_alone(stage: Path) -> None:
    other = tree("other", hook())
    missed = missing_once(tree("missed", hook()), 4)
    missed = replace(missed, cgroups=dict.fromkeys(missed.cgroups, "/system.slice/other.service"))
    found = restore.restore_all([other, missed], NO_LINKS, 120)
    assert {item.tree.name for item in found.held} == {"other", "missed"}
    assert (stage / "cgroup/system.slice/other.service/cgroup.kill").read_text() == ""
    restore.commit(found)


def test_a_terminal_that_is_missed_twice(stage: Path, said: Said) -> None:
    made = missing_once(tree("a", ["sh", "-c", "exit 1"]), 4)
    (failed,) = restore.restore_all([made], NO_LINKS, 120).failed
    assert "specified index 4" in failed.failure


def test_one_after_the_other(stage: Path, said: Said) -> None:
    lender, other = tree("lender", hook()), tree("other", ["sh", "-c", "exit 7"])
    borrower = replace(tree("borrower", hook()), after=("lender",))
    lost = replace(tree("lost", hook()), after=("lender", "other"))
    found = restore.restore_all([borrower, lost, lender, other], NO_LINKS, 120)
    assert [item.tree.name for item in found.held] == ["lender", "borrower"]
    assert {item.tree.name: item.failure for item in found.failed} == {
        "other": "criu ended with 7",
        "lost": "it goes with lender, other",
    }
    restore.commit(found)


def test_the_first_process_is_signalled_once_it_runs(
    stage: Path, task: subprocess.Popen[bytes]
) -> None:
    one, failed, gone = (
        tree(name, hook(*more)) for name, more in (("a", ()), ("b", (1,)), ("c", ()))
    )
    trees = [
        replace(one, signal=signal.SIGTERM, root_pid=task.pid),
        replace(failed, signal=signal.SIGKILL, root_pid=os.getpid()),
        replace(gone, signal=signal.SIGKILL, root_pid=1 << 30),
    ]
    found = restore.restore_all(trees, NO_LINKS, 120)
    assert task.poll() is None
    restore.commit(found)
    assert task.wait(60) == -signal.SIGTERM
