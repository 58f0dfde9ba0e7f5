"""Nobody's processes are told as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rekernel.census import strangers, verdicts
from rekernel.census.verdicts import Verdict
from rekernel.policy import Policy, load
from rekernel.systemd.units import Unit

# init, a thread of the kernel and what it has started, a service's own, and others.
PARENTS = {1: 0, 2: 0, 30: 2, 31: 30, 40: 1, 50: 1, 51: 50, 60: 1, 70: 1, 71: 1, 80: 1, 90: 1}
GROUPS = {
    30: "/",
    31: "/",
    40: "/system.slice/app.service",
    50: "/machine.slice/machine-web.scope/libvirt/emulator",
    51: "/machine.slice/machine-web.scope/libvirt/vcpu0",
    60: "/yard/holder",
    70: "/system.slice/gone.service",
    71: "/system.slice/begun.service",
    80: "/init.scope",
    # In a unit that was looked at, since then.
    90: "/user.slice/user-0.slice/session-1.scope",
}
STATES = {"machine-web.scope": "active", "gone.service": "inactive", "begun.service": "active"}


@pytest.fixture(autouse=True)
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for pid, group in GROUPS.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"1:name=x:/y\n0::{group}\n")
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) Z (b) S 1 1 1\n")

    def show(names: Sequence[str]) -> list[Unit]:
        return [Unit(name, STATES[name], "", "", 0, "", "", {}) for name in names]

    monkeypatch.setattr(strangers, "show", show)
    return tmp_path


def find(proc: Path) -> list[strangers.Stranger]:
    return strangers.find({"app.service", "session-1.scope"}, {40}, PARENTS, proc)


def test_found(proc: Path) -> None:
    moved, left, machine = find(proc)
    assert (moved.unit.name, moved.processes, moved.roots) == ("/yard", {60: "/yard/holder"}, (60,))
    assert moved.reason == "it belongs to no unit"
    assert (left.unit.name, [*left.processes]) == ("gone.service", [70])
    assert left.reason == "it has ended, and has left this behind"
    assert (machine.unit.name, [*machine.processes]) == ("machine-web.scope", [50, 51])
    assert machine.roots == (50,)
    assert machine.reason == "a scope, which is neither a login nor a container"
    assert "end it in good order before" in machine.remedy


def test_what_has_ended_is_nobody(proc: Path) -> None:
    for name in ("stat", "cgroup"):
        (proc / "60" / name).unlink()
    (proc / "70" / "stat").write_text("70 (a) Z 1 70 70\n")
    assert [item.unit.name for item in find(proc)] == ["machine-web.scope"]


@pytest.mark.parametrize(
    ("wish", "verdict"),
    [("", Verdict.ENDS), ("restart", Verdict.ENDS), ("carry", Verdict.BLOCKS),
     ("block", Verdict.BLOCKS)],
)  # fmt: skip
def test_as_verdicts(
    wish: str, verdict: Verdict, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find(proc)
    monkeypatch.setattr(strangers, "find", lambda *_: found)
    policy = Policy((("machine-*", wish),)) if wish else Policy()
    shown = verdicts.judge([], policy, {})
    assert [item.unit.name for item in shown] == ["/yard", "gone.service", "machine-web.scope"]
    assert [item.verdict for item in shown] == [Verdict.ENDS, Verdict.ENDS, verdict]


def test_a_policy_for_what_has_no_unit(tmp_path: Path) -> None:
    config = tmp_path / "rekernel.toml"
    config.write_text('[units]\n"/lxc*" = "block"\napp = "carry"\n')
    policy = load(config=config)
    assert policy.wish("/lxc") == "block"
    assert policy.wish("app.service") == "carry"
