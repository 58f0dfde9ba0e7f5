"""Control groups as the old side saw them are made again, in a directory that stands for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from said import Said

from rekernel.carry.cgroups import observe as cgroups
from rekernel.carry.cgroups import restore as agent
from rekernel.carry.cgroups.entry import Cgroup


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(agent, "ROOT", tmp_path)
    return tmp_path


def test_shares_of_the_processors_are_there_at_once(tmp_path: Path, root: Path) -> None:
    """Also in groups that systemd sets up by itself; limits are left to it."""
    old = tmp_path / "old"
    shares = {"": {}, "batch.slice": {"cpu.weight": "1", "memory.max": "9"},
              "batch.slice/a.service": {"cpu.idle": "1", "cpu.weight": "0", "cpu.max": "1 9"},
              "batch.slice/a.service/x": {"cpu.idle": "0", "cpu.weight": "100"}}  # fmt: skip
    for path, settings in shares.items():
        (old / path).mkdir(parents=True)
        (old / path / "cgroup.subtree_control").write_text(
            "cpu memory\n" if path[-1:] != "x" else ""
        )
        for name, value in settings.items():
            (old / path / name).write_text(f"{value}\n")
    found = [
        *cgroups.above(["/batch.slice/a.service"], old),
        *cgroups.observe("/batch.slice/a.service", old),
    ]
    assert found == [
        Cgroup("/", passed_on="cpu memory"),
        Cgroup("/batch.slice", passed_on="cpu memory", settings={"cpu.weight": "1"}),
        Cgroup("/batch.slice/a.service", passed_on="cpu memory", settings={"cpu.idle": "1"}),
        Cgroup("/batch.slice/a.service/x"),
    ]
    agent.make(found)
    assert (root / "batch.slice/cpu.weight").read_text() == "1"
    # A file keeps what was written last; the kernel adds them up.
    assert (root / "cgroup.subtree_control").read_text() == "+memory"
    assert (root / "batch.slice/a.service/x").is_dir()


def test_from_the_old_side_to_the_new(tmp_path: Path, root: Path) -> None:
    old = tmp_path / "old"
    inner = old / "system.slice/a.service/x/y"
    inner.mkdir(parents=True)
    for path, passed_on in (("", "memory pids"), ("x", ""), ("x/y", "")):
        group = old / "system.slice/a.service" / path
        (group / "cgroup.subtree_control").write_text(f"{passed_on}\n")
        (group / "pids.max").write_text("max\n")
    (inner / "pids.max").write_text("77\n")
    (inner / "memory.low").write_text("max\n")
    (inner / "io.max").write_text("8:0 rbps=1 wbps=max\n8:16 rbps=2 wbps=max\n")
    # systemd's own settings are not ours.
    (old / "system.slice/a.service/pids.max").write_text("5\n")
    found = cgroups.observe("/system.slice/a.service", old)
    assert found == [
        Cgroup("/system.slice/a.service", passed_on="memory pids"),
        Cgroup("/system.slice/a.service/x"),
        Cgroup(
            "/system.slice/a.service/x/y",
            settings={
                "io.max": "8:0 rbps=1 wbps=max\n8:16 rbps=2 wbps=max",
                "memory.low": "max",
                "pids.max": "77",
            },
        ),
    ]
    agent.make([Cgroup("/system.slice"), *found])
    made = root / "system.slice/a.service"
    assert (made / "x/y/pids.max").read_text() == "77"
    assert (made / "x/y/io.max").read_text() == "8:16 rbps=2 wbps=max"
    assert not (made / "pids.max").exists()
    assert not (made / "x/pids.max").exists()


def test_delegated(root: Path) -> None:
    made = root / "a"
    made.mkdir()
    for name in ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "pids.max"):
        (made / name).touch()
    agent.make([Cgroup("/a", uid=1001, gid=1002)])
    assert made.stat().st_uid == 1001
    assert (made / "cgroup.procs").stat().st_gid == 1002
    # Not its limits.
    assert (made / "pids.max").stat().st_uid == 0


def test_what_cannot_be_set_is_said(root: Path, said: Said) -> None:
    (root / "a/pids.max").mkdir(parents=True)
    agent.make([Cgroup("/a", settings={"pids.max": "7"})])
    assert any("pids.max: 7 could not be set" in line for line in said.lines)


def test_what_cannot_be_given_is_said(root: Path, said: Said) -> None:
    # A kernel without one of its files must not keep anybody from being restored.
    agent.make([Cgroup("/a", uid=1001, gid=1002)])
    assert (root / "a").stat().st_uid == 1001
    assert any("cgroup.threads could not be given to user 1001" in line for line in said.lines)


def test_a_group_that_is_gone(tmp_path: Path) -> None:
    assert cgroups.observe("/no/such", tmp_path) == []
