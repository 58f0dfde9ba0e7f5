"""The agent's side of a restore: who is held, who failed, and that one does not harm another.

The programs here do what the hook does (connect, say who they are, wait); no criu is claimed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rekernel import syscalls
from rekernel.agent import restore
from rekernel.agent.links import Links
from rekernel.handover.manifest import Inherited, Tree, Unkept

from .conftest import Said

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


NO_LINKS = Links((), lambda name: b"")


def hook(status: int = 0, then: str = "wait") -> tuple[str, ...]:
    return (sys.executable, "-c", _HOOK, then, str(status))


@pytest.fixture(autouse=True)
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(restore, "WORK", tmp_path / "work")
    monkeypatch.setattr(restore, "_HOOK_SOCKET", str(tmp_path / "hook.sock"))
    monkeypatch.setattr(restore, "_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "cgroup").mkdir()
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
    restore.make_cgroups([f"/system.slice/{name}.service"])
    # No process has such a PID.
    pids = {str(pid or 1 << 30): f"/system.slice/{name}.service"}
    made = Tree(name, f"{name}.service", 7, f"images/{name}", tuple(argv), tuple(inherited), pids)
    restore.work_directory(made).mkdir(parents=True)
    return made


def test_all_are_held_until_the_commit(stage: Path) -> None:
    found = restore.restore_all([tree("a", hook()), tree("b", hook())], stage, NO_LINKS)
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
    (failed,) = restore.restore_all([bad], stage, NO_LINKS).failed
    assert failed.failure == "Can't open file var/lib/x: No such file"


def test_one_that_fails_fails_alone(stage: Path, said: Said, task: subprocess.Popen[bytes]) -> None:
    bad = tree("bad", ["sh", "-c", "echo why; exit 7"], task.pid)
    found = restore.restore_all([bad, tree("good", hook())], stage, NO_LINKS)
    assert [(item.tree.name, item.failure) for item in found.failed] == [
        ("bad", "criu ended with 7")
    ]
    assert said.lines == ["<5>rekernel: bad.service could not be restored: criu ended with 7"]
    assert (stage / "work/bad/output.log").read_text() == "why\n"
    # What of it was there already does not run beside the fresh start.
    killed = stage / "cgroup/system.slice"
    assert (killed / "bad.service/cgroup.kill").read_text() == "1"
    assert not (killed / "good.service/cgroup.kill").exists()
    # Whoever else has its PID, the reason why it failed perhaps, is left alone.
    assert task.poll() is None
    restore.commit(found)
    assert [item.tree.name for item in found.held] == ["good"]


def test_one_that_dies_while_it_is_held(stage: Path, said: Said) -> None:
    slow = ["sh", "-c", f"sleep 0.5; exec {sys.executable} -c '{_HOOK}' wait 0"]
    found = restore.restore_all([tree("bad", hook(9, "die")), tree("good", slow)], stage, NO_LINKS)
    assert [item.tree.name for item in found.held] == ["good"]
    assert [item.failure for item in found.failed] == ["criu ended with 9"]
    restore.commit(found)
    assert (stage / "work/good/output.log").read_text() == "committed\n"


def test_one_that_dies_just_before_the_commit(stage: Path) -> None:
    found = restore.restore_all([tree("bad", hook()), tree("good", hook())], stage, NO_LINKS)
    bad, good = found.trees
    os.kill(bad.pid, signal.SIGKILL)
    os.waitid(os.P_PID, bad.pid, os.WEXITED | os.WNOWAIT)
    restore.commit(found)
    assert bad.failure == "criu ended with -9 after the commit"
    assert found.held == [good]


def test_one_that_fails_at_the_commit(stage: Path) -> None:
    found = restore.restore_all([tree("bad", hook(4))], stage, NO_LINKS)
    restore.commit(found)
    assert [item.failure for item in found.failed] == ["criu ended with 4 after the commit"]


def test_one_that_takes_too_long(stage: Path, said: Said) -> None:
    found = restore.restore_all([tree("late", ["sleep", "60"])], stage, NO_LINKS, timeout=0.2)
    assert [item.failure for item in found.failed] == ["not restored within 0 s"]
    assert found.trees[0].done
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.trees[0].pid, 0)
        pytest.fail("it still runs")


def test_connections_of_strangers_change_nothing(stage: Path) -> None:
    found = restore.restore_all([tree("a", [sys.executable, "-c", _STRANGER])], stage, NO_LINKS)
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
    restore.restore_all([made], stage / "store", NO_LINKS)
    words = (stage / "work/a.said").read_text().split()
    assert words[:3] == [str(stage / "store/images/a"), str(stage / "work/a"), "--inherit-fd"]
    assert words[3].startswith("fd[")
    assert words[3].endswith("]:file[1e:4]")
    assert (stage / "file").read_text() == "before\ninherited\n"


def test_what_criu_does_not_keep_is_set(stage: Path, said: Said) -> None:
    """By the time it is held."""
    sleeper = subprocess.Popen(["sleep", "60"])
    unkept = Unkept(io_priorities={str(sleeper.pid): 2 << 13 | 7, str(2**22 + 1): 2 << 13})
    made = dataclasses.replace(tree("a", hook()), unkept=unkept)
    found = restore.restore_all([made], stage, NO_LINKS)
    assert syscalls.ioprio_get(sleeper.pid) == 2 << 13 | 7
    assert any("is without its I/O priority" in line for line in said.lines)
    restore.commit(found)
    sleeper.kill()
    sleeper.wait()


def test_each_starts_in_its_own_control_group(stage: Path) -> None:
    restore.restore_all([tree("a", ["false"])], stage, NO_LINKS)
    # The agent went in to start it, and out again.
    inside = stage / "cgroup/system.slice/a.service/cgroup.procs"
    assert inside.read_text() == str(os.getpid())
    assert (stage / "cgroup/cgroup.procs").read_text() == str(os.getpid())


def test_control_groups(stage: Path) -> None:
    restore.make_cgroups(["/system.slice/a.service/inner", "/user.slice"])
    assert (stage / "cgroup/system.slice/a.service/inner").is_dir()
    assert (stage / "cgroup/user.slice").is_dir()
    for parent in ("", "system.slice", "system.slice/a.service"):
        control = stage / "cgroup" / parent / "cgroup.subtree_control"
        assert control.read_text() == "+memory +pids"
    # No processes may be in a group that passes controllers on.
    assert not (stage / "cgroup/user.slice/cgroup.subtree_control").exists()


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
