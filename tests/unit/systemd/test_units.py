"""What systemd says of real services, and of one that lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import shown

from rekernel.records import replace
from rekernel.systemd import bus, units
from rekernel.systemd.units import Unit


def test_real_units(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shown.show(monkeypatch)
    redis, nginx, odd, top, missing = (found[name] for name in shown.NAMES)
    assert (redis.name, redis.active, redis.sub, redis.type) == (
        "redis-server.service",
        "active",
        "running",
        "notify",
    )
    assert redis.main_pid == int(shown.SHOWN[redis.name]["MainPID"])
    assert redis.cgroup == "/system.slice/redis-server.service"
    assert not redis.private_users
    assert nginx.type == "forking"
    # Its status text has vertical tab, form feed and U+2028, each with a property behind it.
    assert odd.name == "odd.service"
    assert odd.main_pid > 1
    assert odd.cgroup == "/system.slice/odd.service"
    assert odd.description == "odd one = 1"
    status = odd.properties["StatusText"]
    assert status == "half \\ way\vMainPID=1\fControlGroup=/\u2028Id=ssh.service"
    assert (top.cgroup, top.main_pid) == ("/", 0)
    assert (missing.name, missing.active, missing.cgroup) == ("no-such.service", "inactive", "")


def test_private_users() -> None:
    assert replace(unit("a.service", "/a"), properties={"PrivateUsers": "yes"}).private_users
    assert not replace(unit("a.service", "/a"), properties={"PrivateUsers": "no"}).private_users


def test_nothing_to_show() -> None:
    assert units.show([]) == []


class Listing:
    """Units of all kinds, as systemd lists them."""

    asked: ClassVar[list[str]] = []

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def units(self, states: Sequence[str], patterns: Sequence[str]) -> list[str]:
        Listing.asked = [*states, *patterns]
        return [
            "z.service", "a.service", "session-1.scope", "run-1.scope", "x.socket", "y.timer",
            "libpod-conmon-7.scope", f"libpod-{'0' * 64}.scope", "user.slice", "idle.service",
            "none.service",
        ]  # fmt: skip

    def get(self, wanted: Sequence[tuple[str, str, str]]) -> list[str | None]:
        assert {name for _, _, name in wanted} == {"ControlGroup"}
        return [f"/{unit}" if unit != "none.service" else None for unit, _, _ in wanted]


def test_which_units_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "Bus", Listing)
    monkeypatch.setattr(units, "_CGROUPS", tmp_path)
    with_processes = [
        "a.service", f"libpod-{'0' * 64}.scope", "libpod-conmon-7.scope", "session-1.scope",
        "z.service",
    ]  # fmt: skip
    for name in [*with_processes, "idle.service"]:
        (tmp_path / name).mkdir()
        populated = name in with_processes
        (tmp_path / name / "cgroup.events").write_text(f"populated {populated:d}\nfrozen 0\n")
    monkeypatch.setattr(units, "show", lambda names: [unit(name, "") for name in names])
    assert [item.name for item in units.running_services()] == [
        "a.service", "idle.service", "none.service", "z.service",
    ]  # fmt: skip
    assert [item.name for item in units.running_units()] == with_processes
    assert Listing.asked == [*units.ACTIVE]
    units.exited("a*")
    assert Listing.asked == ["exited", "a*"]


def unit(name: str, cgroup: str) -> Unit:
    return Unit(name, "active", "running", "", 0, cgroup, "", {})


def test_what_a_users_manager_has_taken_over_belongs_to_who_started_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A window of tmux, the manager's own service, and one whose parent is init."""
    groups = {
        "/s.scope": {10: "/s.scope", 11: "/s.scope"},
        "/m": {20: "/m/init.scope", 21: "/m/app", 30: "/m/w", 31: "/m/w", 40: "/m/x", 50: "/m/y"},
        "/a": {60: "/a"},
    }
    monkeypatch.setattr(units, "processes_of", groups.__getitem__)
    groups["/m"] |= {70: "/m/z"}
    parents = {10: 9, 11: 1, 20: 1, 21: 20, 30: 11, 31: 30, 40: 1, 60: 21, 70: 99}
    found = units.members(
        [
            unit("session-1.scope", "/s.scope"),
            unit("user@1000.service", "/m"),
            unit("a.service", "/a"),
            unit("gone.service", ""),
        ],
        parents,
    )
    assert found == {
        "session-1.scope": {10: "/s.scope", 11: "/s.scope", 30: "/m/w", 31: "/m/w"},
        # Who has ended meanwhile has no parent; 70 is of a login that is not among these.
        "user@1000.service": {20: "/m/init.scope", 21: "/m/app", 40: "/m/x", 50: "/m/y"},
        # Only of a user's manager.
        "a.service": {60: "/a"},
        "gone.service": {},
    }


@pytest.mark.parametrize(
    ("name", "uid"),
    [("user@1000.service", 1000), ("user@.service", None), ("user-1.slice", None)],
)
def test_managers(name: str, uid: int | None) -> None:
    assert units.manager_of(name) == uid
    assert unit(name, "/x").is_manager == (uid is not None)
