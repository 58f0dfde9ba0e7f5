"""Trees on their way from the plan to the manifest."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rekernel.carry.open_files import observe as open_files
from rekernel.carry.task_attributes.entry import TaskAttributes
from rekernel.carry.unix_sockets import observe as unix_sockets
from rekernel.carry.unix_sockets.observe import Taken, UnsettledError
from rekernel.census import sharing
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.criu.descriptors import Descriptor, External
from rekernel.criu.entry import Inherited
from rekernel.criu.options import TreeOptions
from rekernel.errors import RekernelError
from rekernel.records import replace
from rekernel.systemd.units import Unit
from rekernel.transition import trees
from rekernel.transition.amend import Amended
from rekernel.transition.trees import CarriedTree


def tree(*inherited: External) -> CarriedTree:
    unit = Unit("a.service", "active", "running", "simple", 7, "/system.slice/a.service", "", {})
    verdict = UnitVerdict(unit, Verdict.CARRIED, "", processes={7: unit.cgroup}, roots=(7,))
    return CarriedTree(
        verdict,
        verdict.processes,
        TreeOptions(7, unit.cgroup, False, True),
        inherited,
        TaskAttributes({"7": (0,)}),
    )


def test_what_ended_during_the_dump_is_left_to_criu() -> None:
    file = External("file[1:2]", Inherited("file", "fd[{fd}]:file[1:2]"))
    kept = External("unix[5]", Inherited("unix", "fd[{fd}]:socket:[5]"))
    ended = External("unix[6]", Inherited("unix", "fd[{fd}]:socket:[6]"))
    sockets = Amended(frozenset({6, 99}), frozenset({98}))
    (found,) = trees.as_dumped([tree(file, kept, ended)], sockets)
    assert found.inherited == (file, kept)
    sockets = Amended(frozenset(), frozenset({5}))
    with pytest.raises(RekernelError, match="was sent a descriptor while it was dumped"):
        trees.as_dumped([tree(file, kept, ended)], sockets)


def test_what_criu_restores_alone_is_not_in_the_manifest() -> None:
    given = Inherited("unix", "fd[{fd}]:socket:[5]")
    made = trees.for_manifest(
        tree(External("unix[5]", given), External("unix[6]", None)), "images/a"
    )
    assert made.inherited == (given,)
    assert made.task_attributes.affinities == {"7": (0,)}
    assert made.cgroups == {"7": "/system.slice/a.service"}


def test_who_ended_with_what_it_used(monkeypatch: pytest.MonkeyPatch) -> None:
    group = "/system.slice/a.service"
    monkeypatch.setattr("rekernel.systemd.units.processes_of", lambda path: {7: path, 8: path})
    there, ended = trees.remaining([tree()])
    assert ([item.pids for item in there], ended) == ([[7]], [])
    # Started again by systemd meanwhile, as another process; or gone.
    for processes in ({9: group}, {}):
        monkeypatch.setattr("rekernel.systemd.units.processes_of", lambda path, now=processes: now)
        there, ended = trees.remaining([tree()])
        assert there == []
        assert [(item.verdict, item.unit.name) for item in ended] == [
            (Verdict.RESTARTED, "a.service")
        ]
        assert "ended when" in ended[0].reason


def test_more_trees_than_when_it_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = tree().verdict
    monkeypatch.setattr(
        "rekernel.systemd.units.processes_of", lambda path: dict.fromkeys((7, 8, 9), path)
    )
    monkeypatch.setattr(trees, "parents", lambda: {7: 1, 8: 7, 9: 1})
    monkeypatch.setattr(trees, "holds_namespace", lambda pid, name: False)
    monkeypatch.setattr(trees, "led_elsewhere", lambda pid: False)
    monkeypatch.setattr(open_files, "files", lambda pids: [])
    found = trees.describe([verdict], lazy=True)
    # Each has directories of its own.
    assert [(item.name, item.pids) for item in found] == [("a+7", [7, 8]), ("a+9", [9])]


def test_no_two_trees_have_the_same_name() -> None:
    """The dump of the second would remove the images of the first."""

    def named(unit: str, *roots: int) -> list[str]:
        verdict = replace(tree().verdict, roots=roots)
        verdict = replace(verdict, unit=replace(verdict.unit, name=unit))
        return [
            replace(tree(), verdict=verdict, options=replace(tree().options, root_pid=root)).name
            for root in roots
        ]

    names = [
        *named("redis.service", 6379, 6380),
        *named("redis-6379.service", 5),
        *named(r"redis\x2d6379.service", 6),
        *named("redis-x2d6379.service", 8),
        *named("redis.scope", 9),
        *named("redis.scope.service", 10),
    ]
    assert len({*names}) == len(names), names
    assert names[:3] == ["redis+6379", "redis+6380", "redis-6379"]
    assert not any(set(name) & {"/", "\\"} for name in names)


def test_what_ends_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekernel.systemd.units.processes_of", lambda path: {7: path})
    monkeypatch.setattr(trees, "parents", lambda: {7: 1})
    monkeypatch.setattr(trees, "led_elsewhere", lambda pid: False)
    monkeypatch.setattr(open_files, "files", lambda pids: [])
    ended = [FileNotFoundError(), ProcessLookupError()]

    def holds_namespace(pid: int, name: str) -> bool:
        if ended:
            raise ended.pop()
        return False

    monkeypatch.setattr(trees, "holds_namespace", holds_namespace)
    (found,) = trees.describe([tree().verdict], lazy=True)
    assert found.pids == [7]
    ended += [ProcessLookupError()] * 100
    with pytest.raises(RekernelError, match="came and went"):
        trees.describe([tree().verdict], lazy=True)
    # Its mounts are of no interest any more.
    gone = replace(found.options, root_pid=1 << 30, private_mounts=True)
    (same,) = trees.without_mounts_of_others([replace(found, options=gone)], ())
    assert same.options.skipped == ()


def test_a_login_that_has_something_open_that_stays_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid = os.getpid()
    unit = Unit("session-1.scope", "active", "running", "", 0, "/x", "", {})
    verdict = UnitVerdict(unit, Verdict.CARRIED, "", processes={pid: "/x"}, roots=(pid,))
    options = TreeOptions(pid, "/x", False, True)
    carried = [CarriedTree(verdict, verdict.processes, options, ())]
    monkeypatch.setattr("rekernel.systemd.units.processes_of", lambda path: {pid: "/x"})
    carried = trees.as_frozen(carried)
    assert carried[0].pids == [pid]
    monkeypatch.setattr(trees, "stays_behind", lambda path: path.startswith(str(tmp_path)))
    with (
        (tmp_path / "events").open("w"),
        pytest.raises(UnsettledError, match=rf"process {pid} has .*/events open"),
    ):
        trees.linked(carried)


def test_who_logged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekernel.systemd.units.processes_of", lambda path: {})
    carried = tree()
    unit = replace(carried.verdict.unit, name="session-1.scope")
    verdict = replace(carried.verdict, unit=unit)
    _, (ended,) = trees.remaining([replace(carried, verdict=verdict)])
    assert (ended.verdict, ended.reason) == (Verdict.ENDS, "logged out meanwhile")
    # Nor is there anything to stop of a command that has come to its end.
    properties = {"FragmentPath": "/run/systemd/transient/job.service"}
    job = replace(unit, name="job.service", properties=properties)
    verdict = replace(carried.verdict, unit=job)
    _, (ended,) = trees.remaining([replace(carried, verdict=verdict)])
    assert (ended.verdict, ended.reason) == (Verdict.ENDS, "it came to its end meanwhile")


def test_what_ends_in_a_login_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekernel.systemd.units.processes_of", lambda path: {7: "/x"})
    shell, job = login("1", 7), login("1", 8)
    assert trees.remaining([shell, job]) == ([shell], [])
    # All that was known is gone, but something goes on.
    assert trees.remaining([job]) == ([job], [])


def test_terminals_that_need_each_other() -> None:
    def borrower(name: str, of: str) -> CarriedTree:
        return replace(login(name, 7), lenders=(f"session-{of}.scope",))

    trees._assert_order([borrower("1", "2"), login("2", 8)])
    with pytest.raises(RekernelError, match="each has a terminal of the next one open"):
        trees._assert_order([borrower("1", "2"), borrower("2", "1")])
    same = [replace(login(name, 7), terminals=(3, 4)) for name in ("1", "2")]
    with pytest.raises(RekernelError, match=r"whose number session-1\.scope has got"):
        trees._assert_terminals(same)
    trees._assert_terminals([replace(login("1", 7), terminals=(60, 91))])
    with pytest.raises(RekernelError, match="has terminals 60 and 92, which are too far"):
        trees._assert_terminals([replace(login("1", 7), terminals=(60, 92))])


def login(name: str, pid: int) -> CarriedTree:
    unit = Unit(f"session-{name}.scope", "active", "running", "", 0, "/x", "", {})
    verdict = UnitVerdict(unit, Verdict.CARRIED, "", processes={pid: "/x"}, roots=(pid,))
    return CarriedTree(verdict, verdict.processes, TreeOptions(pid, "/x", False, True), ())


def test_terminals_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    slave = Descriptor(8, 3, "/dev/pts/4", 1, os.O_RDWR | os.O_NONBLOCK, 1, 0, 26, 0x8804)
    opened = {
        7: [Descriptor(7, 9, "/dev/ptmx", 1, os.O_RDWR, 1, master_of="4")],
        8: [slave, replace(slave, number=5)],
    }
    monkeypatch.setattr(trees, "descriptors", lambda pid: opened[pid])
    monkeypatch.setattr(
        unix_sockets, "take", lambda members: Taken((), (), frozenset(), ((), ()), {})
    )
    (owner, server), _ = trees.linked([login("1", 7), login("2", 8)])
    assert not owner.lenders and not owner.inherited and not owner.options.externals
    assert server.options.externals == ("tty[8804:1a]",)
    made = trees.for_manifest(server, "images/x")
    assert made.after == ("session-1.scope",)
    (given,) = made.inherited
    assert (given.kind, given.path, given.argument) == (
        "file", "/dev/pts/4", "fd[{fd}]:tty[8804:1a]",
    )  # fmt: skip
    assert given.flags == os.O_RDWR | os.O_NONBLOCK
    opened[7] = []
    with pytest.raises(UnsettledError, match=r"session-2\.scope has a terminal open whose owner"):
        trees.linked([login("1", 7), login("2", 8)])


def test_logins_start_and_end_what_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "holds_namespace", lambda pid, name: False)
    common: dict[int, sharing.Shared] = {}
    monkeypatch.setattr(sharing, "find", lambda *rest, lending: sharing.Sharing(dict(common), {}))
    processes = [os.getpid(), os.getppid()]
    monkeypatch.setattr(trees, "parents", lambda: dict.fromkeys(processes, 1))
    monkeypatch.setattr(
        "rekernel.systemd.units.processes_of", lambda path: dict.fromkeys(processes, "/x")
    )
    before = [login("1", os.getpid()), login("1", 999999)]
    found = trees.as_frozen(before)
    assert {tree.options.root_pid for tree in found} == set(processes)
    # Several now: each has a name of its own.
    assert len({tree.name for tree in found}) == 2
    common[7] = sharing.Shared("a pipe", 7, 8)
    with pytest.raises(RekernelError, match="begun something meanwhile: process 7 shares a pipe"):
        trees.as_frozen(before)
    processes.clear()
    with pytest.raises(RekernelError, match=r"session-1\.scope changed"):
        trees.as_frozen(before)


def test_a_users_manager_is_to_start_itself_anew() -> None:
    plain = tree()
    assert trees.for_manifest(plain, "x").signal == 0
    unit = replace(plain.verdict.unit, name="user@1000.service")
    verdict = replace(plain.verdict, unit=unit)
    own = replace(plain, verdict=verdict)
    assert trees.for_manifest(own, "x").signal == signal.SIGRTMIN + 25
    # What else is in its control group is no manager.
    other = replace(own, options=TreeOptions(8, "/x", False, True))
    assert trees.for_manifest(other, "x").signal == 0


def test_control_groups_of_a_tree() -> None:
    one = tree()
    assert trees.cgroups_of(one, [one]) == ("/system.slice/a.service",)
    # A window of tmux lies below the user's manager, which is a tree of its own.
    unit = replace(one.verdict.unit, name="user@7.service", cgroup="/m")
    manager = replace(one, verdict=replace(one.verdict, unit=unit))
    window = replace(one, processes={**one.processes, 9: "/m/app.slice/w.scope"})
    found = trees.cgroups_of(window, [manager, window])
    assert found == ("/system.slice/a.service", "/m")


def test_what_was_left_below_a_users_manager_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    one = tree()
    unit = replace(one.verdict.unit, name="user@7.service", main_pid=7)
    verdict = replace(one.verdict, unit=unit, roots=(7, 8))
    manager = replace(one, verdict=verdict)
    daemon = replace(manager, options=TreeOptions(8, "/x", False, True))
    group = unit.cgroup
    monkeypatch.setattr(trees, "parents", lambda: {7: 1, 8: 1})
    for now in ({7: group, 8: group}, {7: group}):
        monkeypatch.setattr("rekernel.systemd.units.processes_of", lambda path, now=now: {**now})
        there, ended = trees.remaining([manager, daemon])
        assert [item.options.root_pid for item in there] == list(now)
        assert ended == []
    # Without the manager itself nothing looks after the rest.
    monkeypatch.setattr("rekernel.systemd.units.processes_of", lambda path: {8: group})
    there, ended = trees.remaining([manager, daemon])
    assert (there, [item.reason for item in ended]) == ([], ["logged out meanwhile"])


def test_no_number_is_higher() -> None:
    last = int(Path("/proc/sys/kernel/ns_last_pid").read_text())
    assert trees.highest_number([tree()]) >= last
    high = replace(tree(), processes={1 << 30: "/a"})
    assert trees.highest_number([tree(), high]) == 1 << 30
