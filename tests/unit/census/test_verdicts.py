"""Every verdict, and what the next step is."""

from __future__ import annotations

from typing import Any

import pytest

from rekernel.census import obstacles, verdicts
from rekernel.census.obstacles import Obstacle
from rekernel.census.verdicts import Verdict, judge, plumbing_reason
from rekernel.policy import Policy
from rekernel.systemd import unitfiles
from rekernel.systemd.units import Unit

PARENTS = {10: 1, 11: 10, 20: 1}


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_nested_namespaces", lambda pids: "")
    monkeypatch.setattr(verdicts, "_session", lambda pid: pid)
    monkeypatch.setattr(obstacles, "find", lambda pids: None)
    monkeypatch.setattr(verdicts, "processes_of", lambda cgroup: dict.fromkeys((10, 11), cgroup))


def unit(name: str = "app.service", sub: str = "running", **properties: str) -> Unit:
    return Unit(name, "active", sub, "simple", 10, f"/system.slice/{name}", "", properties)


def verdict(item: Unit, wish: str = "") -> verdicts.UnitVerdict:
    policy = Policy(((item.name, wish),)) if wish else Policy()
    return judge([item], policy, PARENTS)[0]


def test_carried() -> None:
    found = verdict(unit())
    assert (found.verdict, found.reason, found.root_pid) == (Verdict.CARRIED, "", 10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sub": "reload"}, "it is reload, not running"),
        ({"PrivateUsers": "yes"}, "user namespace that criu cannot dump"),
        ({"NFileDescriptorStore": "2"}, "systemd keeps 2 of its descriptors"),
        ({"FragmentPath": "/run/systemd/transient/app.service"}, "it is transient"),
        ({"FragmentPath": "/run/systemd/system/app.service"}, "defined at run time only"),
    ],
)
def test_restarted_for_what_the_unit_is(changes: dict[str, str], words: str) -> None:
    found = verdict(unit(**changes))
    assert found.verdict is Verdict.RESTARTED
    assert words in found.reason
    assert found.remedy


def test_transient_units_are_carried_as_soon_as_their_files_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verdicts, "RUN_SYSTEMD_CARRIED", ("transient",))
    item = unit(FragmentPath="/run/systemd/transient/app.service")
    assert verdict(item).verdict is Verdict.CARRIED


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("processes_of", lambda cgroup: {10: cgroup, 20: cgroup}, "2 separate trees"),
        ("processes_of", lambda cgroup: {10: cgroup, 11: f"{cgroup}/x"}, "control groups below"),
        ("_nested_namespaces", lambda pids: "process 10 is in a PID namespace", "PID namespace"),
        ("_session", lambda pid: 9, "process 10 belongs to the session of process 9"),
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
    monkeypatch.setattr(verdicts, "processes_of", lambda cgroup: {})
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
