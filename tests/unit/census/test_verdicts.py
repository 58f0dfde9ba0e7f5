"""Every verdict, and what the next step is."""

from __future__ import annotations

from typing import Any

import pytest

from rekernel.carry.logins import observe as logins
from rekernel.carry.logins.observe import Login
from rekernel.census import obstacles, sharing, strangers, verdicts
from rekernel.census.obstacle import Obstacle
from rekernel.census.verdicts import Verdict, judge, plumbing_reason
from rekernel.policy import Policy
from rekernel.records import replace
from rekernel.systemd import unitfiles
from rekernel.systemd.units import Unit

PARENTS = {10: 1, 11: 10, 20: 1}


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_nested_namespaces", lambda pids: "")
    monkeypatch.setattr(obstacles, "find", lambda pids: None)
    monkeypatch.setattr(
        "rekernel.systemd.units.processes_of", lambda cgroup: dict.fromkeys((10, 11), cgroup)
    )
    monkeypatch.setattr(logins, "observe", dict)
    monkeypatch.setattr(strangers, "find", lambda *_: [])


def unit(name: str = "app.service", sub: str = "running", **properties: str) -> Unit:
    return Unit(name, "active", sub, "simple", 10, f"/system.slice/{name}", "", properties)


def verdict(item: Unit, wish: str = "") -> verdicts.UnitVerdict:
    policy = Policy(((item.name, wish),)) if wish else Policy()
    return judge([item], policy, PARENTS)[0]


def test_carried() -> None:
    found = verdict(unit())
    assert (found.verdict, found.reason, found.roots) == (Verdict.CARRIED, "", (10,))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sub": "reload"}, "it is reload, not running"),
        ({"PrivateUsers": "yes"}, "user namespace that criu cannot dump"),
        ({"NFileDescriptorStore": "2"}, "systemd keeps 2 of its descriptors"),
    ],
)
def test_restarted_for_what_the_unit_is(changes: dict[str, str], words: str) -> None:
    found = verdict(unit(**changes))
    assert found.verdict is Verdict.RESTARTED
    assert words in found.reason
    assert found.remedy


def test_a_service_of_the_message_bus_is_restarted() -> None:
    found = verdict(replace(unit(), type="dbus"))
    assert found.verdict is Verdict.RESTARTED
    assert "Type=dbus" in found.reason


def test_transient_units_are_carried_or_end() -> None:
    """Nobody could start one again."""
    path = "/run/systemd/transient/app.service"
    assert verdict(unit(FragmentPath=path)).verdict is Verdict.CARRIED
    for found in (
        verdict(unit(FragmentPath=path, PrivateUsers="yes")),
        verdict(unit(FragmentPath=path), "restart"),
    ):
        assert found.verdict is Verdict.ENDS
    assert "transient" in verdict(unit(FragmentPath=path, PrivateUsers="yes")).reason
    lasting = unit(FragmentPath="/run/systemd/system/app.service", PrivateUsers="yes")
    assert verdict(lasting).verdict is Verdict.RESTARTED


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("_setting", lambda group, name: "1" if name == "cgroup.freeze" else "", "is frozen"),
        ("_setting", lambda group, name: "threaded", "app.service is a control group of threads"),
        ("_nested_namespaces", lambda pids: "process 10 is in a PID namespace", "PID namespace"),
    ],
)
def test_restarted_for_what_its_processes_have(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, words: str
) -> None:
    monkeypatch.setattr(verdicts, name, value)
    found = verdict(unit())
    assert found.verdict is Verdict.RESTARTED
    assert words in found.reason
    for wish in ("carry", "block"):
        assert verdict(unit(), wish).verdict is Verdict.BLOCKS


def test_several_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rekernel.systemd.units.processes_of", lambda cgroup: dict.fromkeys((10, 11, 20), cgroup)
    )
    found = verdict(unit())
    assert (found.verdict, found.roots) == (Verdict.CARRIED, (10, 20))
    # What two of them share is torn apart no less.
    asked = []

    def find(trees: Any, *rest: Any) -> sharing.Sharing[Any]:
        asked.append(trees)
        return sharing.Sharing({("app.service", 20): sharing.Shared("a pipe", 20, 11)}, {})

    monkeypatch.setattr(sharing, "find", find)
    monkeypatch.setattr(verdicts, "_group_of", lambda pid: "/user.slice/user@7.service/a.scope")
    found = verdict(unit())
    assert found.verdict is Verdict.RESTARTED
    assert found.reason == "process 20 shares a pipe with process 11 outside of its tree (a.scope)"
    assert asked == [{("app.service", 10): [10, 11], ("app.service", 20): [20]}]


def test_control_groups_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rekernel.systemd.units.processes_of", lambda cgroup: {10: cgroup, 11: f"{cgroup}/x"}
    )
    assert verdict(unit()).verdict is Verdict.CARRIED
    frozen = "/system.slice/app.service/x"
    monkeypatch.setattr(verdicts, "_setting", lambda group, name: "1" if group == frozen else "0")
    assert verdict(unit()).reason == f"{frozen} is frozen"


def test_policy() -> None:
    assert verdict(unit(), "restart").reason == "policy says so"
    assert verdict(unit("cups.service"), "carry").verdict is Verdict.CARRIED
    plumbing = unit("systemd-udevd.service")
    assert verdict(plumbing).verdict is Verdict.PLUMBING
    assert verdict(plumbing, "carry").verdict is Verdict.CARRIED


def test_policy_of_the_unit_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unitfiles, "wish", lambda unit: "restart")
    assert verdict(unit()).reason == "its unit file says so"
    assert verdict(unit(), "carry").verdict is Verdict.CARRIED


def test_units_without_processes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rekernel.systemd.units.processes_of", lambda cgroup: {})
    assert judge([unit()], Policy(), PARENTS) == []


def test_plumbing_has_reasons() -> None:
    assert plumbing_reason("systemd-journald.service") == "part of the init system"
    assert plumbing_reason("rekernel-upgrade.service") == "rekernel itself"
    assert plumbing_reason("redis-server.service") is None


def test_restarted_for_what_criu_cannot_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    obstacle = Obstacle("process 10 has a multipath TCP socket open", "do x")
    monkeypatch.setattr(obstacles, "find", lambda pids: obstacle)
    found = verdict(unit())
    assert (found.verdict, found.reason, found.remedy) == (
        Verdict.RESTARTED, obstacle.what, obstacle.remedy,
    )  # fmt: skip
    assert verdict(unit(), "carry").verdict is Verdict.BLOCKS


TRANSIENT = {"FragmentPath": "/run/systemd/transient/session-3.scope"}


def login(service: str = "sshd", terminal: str = "pts/0") -> dict[str, Login]:
    return {"session-3.scope": Login("session-3.scope", 1000, "ann", service, terminal, "::1")}


@pytest.mark.parametrize("sub", ["running", "abandoned"])
def test_login(monkeypatch: pytest.MonkeyPatch, sub: str) -> None:
    monkeypatch.setattr(logins, "observe", login)
    found = verdict(unit("session-3.scope", sub, **TRANSIENT))
    assert (found.verdict, found.reason) == (Verdict.CARRIED, "ann on pts/0 from ::1")


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({}, "systemd-logind does not know this login"),
        (login("login", "tty1"), "ann on tty1 from ::1: only logins over ssh"),
    ],
)
def test_login_that_ends(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, Login], words: str
) -> None:
    monkeypatch.setattr(logins, "observe", lambda: known)
    item = unit("session-3.scope", **TRANSIENT)
    found = verdict(item)
    assert found.verdict is Verdict.ENDS
    assert words in found.reason
    assert verdict(item, "carry").verdict is Verdict.BLOCKS


def test_login_with_something_that_cannot_be_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "observe", login)
    monkeypatch.setattr(obstacles, "find", lambda pids: Obstacle("process 11 has x open"))
    found = verdict(unit("session-3.scope", **TRANSIENT))
    assert found.verdict is Verdict.ENDS
    assert found.reason == "ann on pts/0 from ::1: process 11 has x open"


def test_login_that_policy_does_not_want(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "observe", login)
    found = verdict(unit("session-3.scope", **TRANSIENT), "restart")
    assert (found.verdict, found.reason) == (Verdict.ENDS, "policy says so")


def test_login_with_a_terminal_of_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        f"session-{number}.scope": Login(f"session-{number}.scope", 1000, "ann", "sshd", "", "")
        for number in (1, 2, 3)
    }
    monkeypatch.setattr(logins, "observe", lambda: known)
    members = {f"/system.slice/{name}": {10 + index: ""} for index, name in enumerate(known)}
    monkeypatch.setattr("rekernel.systemd.units.processes_of", lambda cgroup: members[cgroup])
    names = list(known)
    borrowed = {(names[1], 11): {(names[0], 10)}, (names[2], 12): {(names[1], 11)}}
    monkeypatch.setattr(sharing, "find", lambda *args: sharing.Sharing({}, borrowed))
    units = [unit(name, **TRANSIENT) for name in names]
    parents = {10: 1, 11: 1, 12: 1}
    assert {item.verdict for item in judge(units, Policy(), parents)} == {Verdict.CARRIED}
    # Whose terminal is gone goes as well, and so on.
    found = judge(units, Policy(((names[0], "restart"),)), parents)
    assert {item.verdict for item in found} == {Verdict.ENDS}
    assert "part of it is in session-2.scope, which is not carried" in found[2].reason


def user_manager(monkeypatch: pytest.MonkeyPatch, **groups: int) -> Unit:
    """Of root, with processes in these groups below its own: name -> PID."""
    item = replace(unit("user@0.service"), cgroup="/u")
    members = {"/u": {pid: f"/u/{name}" for name, pid in groups.items()}}
    monkeypatch.setattr(
        "rekernel.systemd.units.processes_of", lambda cgroup: {**members.get(cgroup, {5: cgroup})}
    )
    return item


def test_a_manager_that_runs_nothing_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"init.scope": 10, "session.slice/dbus.service": 11}
    found = verdict(user_manager(monkeypatch, **groups))
    assert found.verdict is Verdict.PLUMBING
    assert "nothing of the user's but itself" in found.reason


def test_a_manager_is_carried_with_what_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    item = user_manager(monkeypatch, **{"init.scope": 10, "app.slice/a.service": 11})
    found = verdict(item)
    assert (found.verdict, found.reason) == (Verdict.CARRIED, "root's own services")
    assert verdict(item, "restart").verdict is Verdict.ENDS
    monkeypatch.setattr(obstacles, "find", lambda pids: Obstacle("process 11 has x open"))
    found = verdict(item)
    assert (found.verdict, found.reason) == (
        Verdict.ENDS,
        "root's own services: process 11 has x open",
    )
    assert verdict(item, "carry").verdict is Verdict.BLOCKS


def test_a_login_goes_with_the_manager_that_runs_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logins, "observe", login)
    item = user_manager(monkeypatch, **{"init.scope": 10, "app.slice/tmux-spawn-1.scope": 11})
    units = [item, unit("session-3.scope", **TRANSIENT)]
    parents = {5: 1, 10: 1, 11: 5}
    session, manager = judge(units, Policy(), parents)
    assert (session.verdict, session.processes[11]) == (
        Verdict.CARRIED,
        "/u/app.slice/tmux-spawn-1.scope",
    )
    assert (manager.verdict, list(manager.processes)) == (Verdict.CARRIED, [10])
    session, manager = judge(units, Policy(((item.name, "restart"),)), parents)
    assert session.verdict is Verdict.ENDS
    assert "part of it is in user@0.service, which is not carried" in session.reason
