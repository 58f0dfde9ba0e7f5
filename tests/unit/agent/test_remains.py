"""What failed ends, whatever it has become, and is not started beside what does not end."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from said import Said

from rekernel.agent import remains
from rekernel.carry.cgroups import restore as cgroups
from rekernel.handover.manifest import Tree
from rekernel.pid1 import console


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of control groups that are plain files: nothing that is written to them kills."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    for name in ("NOT_ENDED", "SYSTEMD"):
        monkeypatch.setattr(remains, name, str(tmp_path / name))
    return tmp_path / "cgroup"


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    found = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    yield found
    for process in found:
        process.kill()
        process.wait()


def group(root: Path, path: str, *pids: int, kill: bool = True) -> Path:
    directory = root / path.lstrip("/")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    if kill:
        (directory / "cgroup.kill").touch()
    return directory


def tree(unit: str, *paths: str, first: int = 1 << 30) -> Tree:
    found = {str(first + number): path for number, path in enumerate(paths)}
    return Tree(unit, unit, first, "", (), (), found)


def killed(root: Path) -> list[str]:
    return sorted(
        str(file.parent.relative_to(root))
        for file in root.rglob("cgroup.kill")
        if file.read_text() == "1"
    )


def test_whole_units_end(root: Path) -> None:
    """What has run for a moment may have made control groups below that of its unit."""
    manager = "/user.slice/user-7.slice/user@7.service"
    for path in ("/system.slice/a.service", "/system.slice/b.service", manager):
        group(root, path)
    group(root, f"{manager}/init.scope")
    group(root, "/other")
    trees = [
        tree("a.service", "/system.slice/a.service/payload"),
        tree("user@7.service", f"{manager}/init.scope", f"{manager}/app.slice/x.service"),
        # Somebody has moved a process elsewhere.
        tree("c.service", "/other"),
    ]
    remains.end(trees, [tree("b.service", "/system.slice/b.service")])
    assert killed(root) == ["other", "system.slice/a.service", manager.lstrip("/")]


def test_names_that_mean_something_to_the_kernel(root: Path) -> None:
    group(root, "/system.slice/_cpu.service")
    remains.end([tree("cpu.service", "/system.slice/_cpu.service/x")], ())
    assert killed(root) == ["system.slice/_cpu.service"]


def test_others_within_a_unit_are_spared(
    root: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    """A window of tmux is in a scope of the user's manager, and in the tree of a login."""
    first, second, third = (process.pid for process in processes)
    group(root, "/u/user@7.service", kill=True)
    group(root, "/u/user@7.service/init.scope", first)
    group(root, "/u/user@7.service/tmux.scope", second, third)
    login = tree("session-3.scope", "/u/session-3.scope", "/u/user@7.service/tmux.scope")
    manager = tree("user@7.service", "/u/user@7.service/init.scope")
    # And one process of the manager has gone to where the others are.
    manager.cgroups[str(third)] = "/u/user@7.service/tmux.scope"
    remains.end([manager], [login])
    assert processes[0].wait(60) == processes[2].wait(60) == -9
    assert processes[1].poll() is None
    assert killed(root) == []


def test_kernels_that_cannot_kill_a_group(
    root: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    pids = [process.pid for process in processes]
    group(root, "/a.service", pids[0], kill=False)
    # Whoever has the agent itself in there: that is to go on.
    group(root, "/a.service/below", pids[1], os.getpid(), kill=False)
    group(root, "/b.service", pids[2], kill=False)
    remains.end([tree("a.service", "/a.service")], ())
    assert processes[0].wait(60) == processes[1].wait(60) == -9
    assert processes[2].poll() is None


def test_a_group_that_cannot_be_killed_at_once(
    root: Path, processes: list[subprocess.Popen[bytes]], said: Said
) -> None:
    directory = group(root, "/a.service", processes[0].pid, kill=False)
    # Threaded ones refuse it.
    (directory / "cgroup.kill").mkdir()
    remains.end([tree("a.service", "/a.service")], ())
    assert processes[0].wait(60) == -9
    assert said.lines == [
        "<5>rekernel: what is in /a.service could not be ended at once: Is a directory"
    ]


def test_nobody_kills_the_machine(root: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """A process that was in no control group of its own."""
    group(root, "/", processes[0].pid, processes[1].pid)
    group(root, "/b.service", processes[2].pid)
    remains.end([tree("a.service", "/", first=processes[0].pid)], ())
    assert processes[0].wait(60) == -9
    assert killed(root) == []
    assert [process.poll() for process in processes[1:]] == [None, None]


def test_waits_until_it_is_gone(root: Path) -> None:
    directory = group(root, "/a.service/below", 1 << 29)
    timer = threading.Timer(0.2, lambda: (directory / "cgroup.procs").write_text(""))
    timer.start()
    began = time.monotonic()
    assert remains.left([tree("a.service", "/a.service/below")], (), 60) == {}
    assert 0.15 < time.monotonic() - began < 30
    timer.join()


def test_what_does_not_end(root: Path) -> None:
    group(root, "/a.service", 1 << 29)
    group(root, "/b.service")
    trees = [tree("a.service", "/a.service"), tree("b.service", "/b.service")]
    assert remains.left(trees, (), 0.05) == {"a.service": [1 << 29]}


def test_control_groups_that_were_never_made() -> None:
    assert remains.left([tree("a.service", "/a.service")], (), 0) == {}


def test_none_starts_beside_it(tmp_path: Path, said: Said) -> None:
    remains.keep_from_starting({"a@1.service": [7, 8], "session-3.scope": [9]})
    marker = tmp_path / "NOT_ENDED/a@1.service"
    assert marker.exists()
    (drop_in,) = (tmp_path / "SYSTEMD").rglob("*.conf")
    assert drop_in.parent.name == "a@1.service.d"
    assert f"AssertPathExists=!{marker}" in drop_in.read_text().splitlines()
    assert said.lines == [
        "<5>rekernel: a@1.service is not started afresh: 7, 8 could not be ended",
        "<5>rekernel: session-3.scope is not started afresh: 9 could not be ended",
    ]


def test_where_it_cannot_be_kept_from_that(tmp_path: Path, said: Said) -> None:
    (tmp_path / "NOT_ENDED").write_text("in the way")
    remains.keep_from_starting({"a.service": [7]})
    assert [words.partition(":")[0] for words in console.missing] == ["a.service may run twice"]


def test_second_attempts_find_their_pids_free(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        path = Path(f"/proc/{process.pid}/cgroup").read_text().strip().rpartition("::")[2]
        made = tree("a.service", path, first=process.pid)
        made.cgroups[str(1 << 30)] = path
        remains.free_pids(made)
        assert not Path(f"/proc/{process.pid}").exists()


def test_second_attempts_leave_others_with_such_a_pid_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        made = tree("a.service", "/no/such/group", first=process.pid)
        remains.free_pids(made, timeout=0.05)
        assert process.poll() is None
        process.kill()
