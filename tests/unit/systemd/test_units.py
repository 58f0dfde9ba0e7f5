"""What systemctl says of real services, and of one that lies."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Recorded, on_each_kernel

from rekernel.systemd import units
from rekernel.systemd.units import Unit, parse_show


@on_each_kernel
def test_real_units(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []

    def systemctl(argv: Sequence[str]) -> str:
        asked.append(argv)
        return recorded.text("systemctl-show")

    monkeypatch.setattr(units, "run", systemctl)
    redis, nginx, odd = units.show(["redis-server.service", "nginx.service", "odd.service"])
    assert asked[0][-4:] == ["--", "redis-server.service", "nginx.service", "odd.service"]
    assert "--timestamp=us+utc" in asked[0]
    assert (redis.name, redis.active, redis.sub, redis.type) == (
        "redis-server.service",
        "active",
        "running",
        "notify",
    )
    assert redis.main_pid == int(recorded.text("redis-server/pid"))
    assert redis.cgroup == "/system.slice/redis-server.service"
    assert redis.private_users
    assert nginx.type == "forking"
    assert not nginx.private_users
    # Its status text has vertical tab, form feed and U+2028, each with a property behind it.
    assert odd.name == "odd.service"
    assert odd.main_pid > 1
    assert odd.cgroup == "/system.slice/odd.service"
    assert odd.description == "odd one = 1"
    status = odd.properties["StatusText"]
    assert status == "half \\ way\vMainPID=1\fControlGroup=/\u2028Id=ssh.service"


@on_each_kernel
def test_every_property_that_is_asked_for_is_answered(recorded: Recorded) -> None:
    for block in parse_show(recorded.text("systemctl-show")):
        assert set(units._PROPERTIES) <= set(block)


def test_nothing_to_show() -> None:
    assert units.show([]) == []


values = st.text().map(lambda text: text.replace("\n", " "))
keys = st.text("ABCabc", min_size=1)


@given(st.lists(st.dictionaries(keys, values, min_size=1), max_size=4))
def test_parse_show(blocks: list[dict[str, str]]) -> None:
    text = "\n".join(
        "".join(f"{key}={value}\n" for key, value in block.items()) for block in blocks
    )
    assert parse_show(text) == blocks


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
