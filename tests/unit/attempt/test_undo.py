"""The undo list: what was begun is undone, whoever is left to do it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rekernel.attempt import undo
from rekernel.attempt.problem import Problem
from rekernel.attempt.undo import UndoList


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


class Actions:
    """Three kinds of steps, recorded; and what happens at some of them."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.at: dict[str, BaseException] = {}

    def __call__(self, value: str) -> None:
        if value in self.at:
            raise self.at[value]
        self.done.append(value)


@pytest.fixture
def actions(monkeypatch: pytest.MonkeyPatch) -> Actions:
    found = Actions()
    monkeypatch.setattr(undo, "_KINDS", {"step": undo._Kind(found, "do {} by hand".format)})
    return found


def filled(path: Path) -> UndoList:
    steps = UndoList(path)
    for value in "abc":
        steps.push("step", value)
    return steps


def test_a_step_is_on_disk_before_it_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "new" / "undo.json"
    steps = UndoList(path)
    assert not path.exists()
    steps.push("thaw", "/a")
    assert json.loads(path.read_text()) == [["thaw", "/a", ""]]
    steps.push("unlock-network")
    assert json.loads(path.read_text()) == [["thaw", "/a", ""], ["unlock-network", "", ""]]
    assert len(UndoList(path)) == len(steps) == 2
    assert os.listdir(path.parent) == ["undo.json"]


def test_many_at_once(tmp_path: Path, actions: Actions) -> None:
    path = tmp_path / "undo.json"
    steps = UndoList(path)
    steps.push("step", "a", "b")
    steps.push("step")
    assert json.loads(path.read_text()) == [["step", "a", ""], ["step", "b", ""], ["step", "", ""]]
    assert steps.run() == ()
    assert actions.done == ["", "b", "a"]


def test_newest_first(tmp_path: Path, actions: Actions) -> None:
    steps = filled(tmp_path / "undo.json")
    assert steps.run() == ()
    assert actions.done == ["c", "b", "a"]
    assert os.listdir(tmp_path) == []
    assert steps.run() == UndoList(tmp_path / "undo.json").run() == ()
    assert actions.done == ["c", "b", "a"]


def test_another_process_finishes_what_one_began(tmp_path: Path, actions: Actions) -> None:
    path = tmp_path / "undo.json"
    steps = filled(path)
    actions.at = {"b": Killed()}
    with pytest.raises(Killed):
        steps.run()
    # Perhaps b was half done: it is undone again.
    actions.at = {}
    assert UndoList(path).run() == ()
    assert actions.done == ["c", "b", "a"]
    assert not path.exists()


def test_a_write_that_was_cut_off_does_not_count(tmp_path: Path, actions: Actions) -> None:
    path = tmp_path / "undo.json"
    filled(path)
    path.with_suffix(".new").write_text('[["step", "a"], ["st')
    assert UndoList(path).run() == ()
    assert actions.done == ["c", "b", "a"]


def test_one_problem_does_not_stop_the_others(tmp_path: Path, actions: Actions) -> None:
    path = tmp_path / "undo.json"
    steps = filled(path)
    assert [problem.error for problem in steps.left()] == ["nobody has tried yet"] * 3
    actions.at = {"b": OSError(5, "Input/output error"), "c": ValueError()}
    left = (
        Problem("step", "b", "[Errno 5] Input/output error", "do b by hand"),
        Problem("step", "c", "ValueError", "do c by hand"),
    )
    assert steps.run() == steps.left() == left
    assert str(left[0]) == "step b: [Errno 5] Input/output error (by hand: do b by hand)"
    assert actions.done == ["a"]
    # Who comes next knows of it, and tries again.
    assert UndoList(path).left() == left
    actions.at = {"b": OSError(5, "Input/output error")}
    assert UndoList(path).run() == left[:1]
    assert actions.done == ["a", "c"]
    actions.at = {}
    assert UndoList(path).run() == ()
    assert actions.done == ["a", "c", "b"]
    assert not path.exists()


def test_a_problem_above_a_mark_stays(tmp_path: Path, actions: Actions) -> None:
    """What was begun after it is undone; what was begun before is not touched."""
    steps = filled(tmp_path / "undo.json")
    mark = len(steps)
    steps.push("step", "d", "e", "f")
    actions.at = {"e": OSError(5, "Input/output error")}
    assert [problem.value for problem in steps.run(mark)] == ["e"]
    assert actions.done == ["f", "d"]
    actions.at = {}
    assert UndoList(tmp_path / "undo.json").run() == ()
    assert actions.done == ["f", "d", "e", "c", "b", "a"]


def test_a_kind_of_another_version(tmp_path: Path, actions: Actions) -> None:
    path = tmp_path / "undo.json"
    # Older ones knew no errors.
    path.write_text('[["step", "a"], ["sing", "loudly"]]')
    assert UndoList(path).run() == (
        Problem(
            "sing",
            "loudly",
            "this version of rekernel does not know how",
            "reboot, or install the version that began it",
        ),
    )
    assert actions.done == ["a"]


# What each kind is pushed with, and what is done instead of it.
BY_HAND = [
    ("thaw", "/a.service", "echo 0 > /sys/fs/cgroup/a.service/cgroup.freeze"),
    ("thaw-filesystem", "/srv/my data", "fsfreeze --unfreeze '/srv/my data'"),
    ("unlock-network", "", "nft delete table inet rekernel_lock"),
    ("wait-dumps", "/unit", "kill -ALRM that criu, restart the service that it holds"),
    ("end-repair", "7 8", "restart the services whose connections fail"),
    ("handle", "7 3 99", "restart the service of process 7"),
    ("flush-journal", "", "journalctl --flush"),
    ("unload-kernel", "", "kexec --unload"),
    ("write", "/proc/sys/a=b=c d", "echo 'b=c d' > /proc/sys/a"),
    ("remove", "/var/lib/x", "rm -r /var/lib/x"),
    ("size-of-run", "1048576", "mount -o remount,size=1048576 /run"),
    ("swap-on", '["/dev/sda2", 7]', "swapon --priority 7 /dev/sda2"),
    ("swap-on", '["/dev/sda2", -2]', "swapon /dev/sda2"),
    ("profile", "/run/x", "systemctl reload apparmor"),
    ("free-container", "7 /machine.slice/x.scope", "restart the container of process 7"),
    ("start-container", "docker 3f", "docker start 3f"),
    ("start-unit", "a@b.service", "systemctl start a@b.service"),
]


@pytest.mark.parametrize(("kind", "value", "remedy"), BY_HAND)
def test_what_is_done_by_hand(kind: str, value: str, remedy: str, tmp_path: Path) -> None:
    steps = UndoList(tmp_path / "undo.json")
    steps.push(kind, value)
    assert [problem.remedy for problem in steps.left()] == [remedy]


def test_every_kind_has_its_remedy() -> None:
    assert {kind for kind, *_ in BY_HAND} == undo._KINDS.keys()


def test_what_cannot_be_removed_is_not_taken_for_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    steps = UndoList(tmp_path / "undo.json")
    steps.push("remove", str(images))

    def fail(path: str, *_: object) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        assert "Operation not permitted" in steps.run()[0].error
    assert steps.run() == ()
    assert not images.exists()


def test_settings_are_written_back(tmp_path: Path) -> None:
    steps = UndoList(tmp_path / "undo.json")
    target = tmp_path / "max=imum"
    target.write_text("0")
    steps.push("write", f"{tmp_path / 'setting'}=always [madvise] x=y")
    assert steps.run() == ()
    assert (tmp_path / "setting").read_text() == "always [madvise] x=y"


def test_waiting_for_the_dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    criu = tmp_path / "criu"
    shutil.copy("/bin/sleep", criu)
    monkeypatch.setattr(undo, "CGROUPS", tmp_path)
    group = tmp_path / "unit"
    group.mkdir()
    steps = UndoList(tmp_path / "undo.json")
    with (
        subprocess.Popen([criu, "0.3"]) as dump,
        subprocess.Popen(["sleep", "60"]) as other,
    ):
        (group / "cgroup.procs").write_text(f"{dump.pid}\n{other.pid}\n{1 << 30}\n")
        steps.push("wait-dumps", "/unit")
        assert steps.run() == ()
        # Over, though nobody has waited for it yet; the other does not count.
        assert dump.returncode is None
        assert dump.wait(0) == 0
        other.kill()
    # Long gone: no error either.
    steps.push("wait-dumps", "/no-such-unit")
    assert steps.run() == ()


def test_a_dump_that_does_not_end_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    criu = tmp_path / "criu"
    shutil.copy("/bin/sleep", criu)
    monkeypatch.setattr(undo, "CGROUPS", tmp_path)
    monkeypatch.setattr(undo, "_DUMP_ENDS_S", 0.2)
    group = tmp_path / "unit"
    group.mkdir()
    steps = UndoList(tmp_path / "undo.json")
    with subprocess.Popen([criu, "60"]) as dump:
        (group / "cgroup.procs").write_text(f"{dump.pid}\n")
        steps.push("wait-dumps", "/unit")
        assert steps.run() == ()
        assert dump.wait(0) == -signal.SIGALRM
    # One that heeds nothing is named.
    with subprocess.Popen(["env", "--ignore-signal=ALRM", criu, "5"]) as dump:
        while Path(f"/proc/{dump.pid}/comm").read_text() != "criu\n":
            time.sleep(0.01)
        (group / "cgroup.procs").write_text(f"{dump.pid}\n")
        steps.push("wait-dumps", "/unit")
        (problem,) = steps.run()
        assert problem.error == f"criu, process {dump.pid}, does not end"
        dump.kill()
        steps.run()


def test_down_to_a_mark(tmp_path: Path) -> None:
    steps = UndoList(tmp_path / "undo.json")
    first, second = tmp_path / "first", tmp_path / "second"
    steps.push("write", f"{first}=1")
    mark = len(steps)
    steps.push("write", f"{second}=1", f"{second}=2")
    assert steps.run(mark) == ()
    assert second.read_text() == "1"
    assert not first.exists()
    # What is left is still on disk, for who undoes it after a death.
    assert len(UndoList(tmp_path / "undo.json")) == 1
    assert steps.run() == ()
    assert first.read_text() == "1"
    assert not (tmp_path / "undo.json").exists()


def test_what_is_gone_need_not_be_undone(tmp_path: Path) -> None:
    steps = UndoList(tmp_path / "undo.json")
    steps.push("thaw", "/no/such/control-group")
    steps.push("remove", str(tmp_path / "no-such-directory"))
    assert steps.run() == ()
