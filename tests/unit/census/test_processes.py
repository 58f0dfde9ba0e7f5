"""Every process has one fate, and none is forgotten."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rekernel.census import processes
from rekernel.census.processes import Fate, Process, account, parse_stat, totals
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.systemd.units import Unit


def unit(name: str, verdict: Verdict, *pids: int) -> UnitVerdict:
    facts = Unit(name, "active", "running", "simple", pids[0], f"/system.slice/{name}", "", {})
    return UnitVerdict(facts, verdict, f"why {name}", "", dict.fromkeys(pids, facts.cgroup))


def process(pid: int, cgroup: str, *, kernel: bool = False) -> Process:
    return Process(pid, 1, "program", kernel, cgroup)


@pytest.mark.parametrize("command", ["sh", "a b", ") R 1 (", "(sd-pam)", ""])
def test_any_name(command: str) -> None:
    # Linux 6.12, shortened after the flags, of which 0x00200000 is a kernel thread's.
    assert parse_stat(f"412 ({command}) S 2 0 0 0 -1 69238880 0 0", "/a") == Process(
        412, 2, command, kernel_thread=True, cgroup="/a"
    )
    assert not parse_stat(f"412 ({command}) S 1 412 412 0 -1 4194560 0 0", "/").kernel_thread


def test_this_process() -> None:
    found = {item.pid: item for item in processes.observe()}
    own = found[os.getpid()]
    assert own.parent == os.getppid() == processes.parents()[os.getpid()]
    assert own.command == Path("/proc/self/comm").read_text().strip()
    assert not own.kernel_thread
    assert found[2].kernel_thread


def test_what_ended_meanwhile_is_left_out(tmp_path: Path) -> None:
    for pid in (7, 10, 30):
        (tmp_path / str(pid)).mkdir()
    (tmp_path / "self").symlink_to("7")
    for pid, cgroup in ((7, "0::/system.slice/a.service\n"), (30, "4:memory:/x\n0::/\n")):
        (tmp_path / f"{pid}/stat").write_text(f"{pid} (a) S 1 0 0 0 -1 0 0")
        (tmp_path / f"{pid}/cgroup").write_text(cgroup)
    assert [(item.pid, item.cgroup) for item in processes.observe(tmp_path)] == [
        (7, "/system.slice/a.service"), (30, "/"),
    ]  # fmt: skip


def test_each_has_one_fate() -> None:
    units = [
        unit("redis.service", Verdict.CARRIED, 500, 501),
        unit("dbus.service", Verdict.PLUMBING, 400),
        unit("vm.service", Verdict.BLOCKS, 600),
        unit("user@1000.service", Verdict.PLUMBING, 700, 701),
    ]
    found = account(
        [
            process(1, "/init.scope"),
            process(2, "/", kernel=True),
            process(400, "/system.slice/dbus.service"),
            process(500, "/system.slice/redis.service"),
            process(501, "/system.slice/redis.service"),
            process(600, "/system.slice/vm.service"),
            process(701, "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service"),
            process(702, "/user.slice/user-1000.slice/session-3.scope"),
            process(800, "/system.slice/new.service"),
            process(801, "/machine.slice/libpod-3f.scope/container"),
            process(802, "/"),
            process(803, ""),
        ],
        units,
    )
    assert [(item.process.pid, item.fate, item.owner) for item in found] == [
        (1, Fate.PLUMBING, "init.scope"),
        (2, Fate.KERNEL, "kernel"),
        (400, Fate.PLUMBING, "dbus.service"),
        (500, Fate.CARRIED, "redis.service"),
        (501, Fate.CARRIED, "redis.service"),
        (600, Fate.BLOCKS, "vm.service"),
        (701, Fate.PLUMBING, "user@1000.service"),
        (702, Fate.ENDS, "session-3.scope"),
        (800, Fate.RESTARTED, "new.service"),
        (801, Fate.ENDS, "libpod-3f.scope"),
        (802, Fate.ENDS, "/"),
        (803, Fate.ENDS, "/"),
    ]
    assert all(item.reason for item in found if item.fate is not Fate.CARRIED)
    assert sum(totals(found).values()) == len(found)
    assert totals(found)[Fate.CARRIED] == 2


def test_it_sums_up_to_what_ps_sees() -> None:
    ours = {item.pid for item in processes.observe()}
    listed = subprocess.run(["ps", "-e", "-o", "pid="], capture_output=True, text=True, check=True)
    theirs = {int(word) for word in listed.stdout.split()}
    # What began or ended between the two looks, ps itself included.
    assert len(ours ^ theirs) <= 4
