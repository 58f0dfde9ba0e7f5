"""What systemctl says of real services, and of one that lies."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Recorded, on_each_kernel

from rekernel.systemd import units
from rekernel.systemd.units import parse_show


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
