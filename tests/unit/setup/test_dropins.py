"""Which units need a drop-in, and what is in it."""

from __future__ import annotations

import pytest

from rekernel.census import obstacles
from rekernel.policy import Policy
from rekernel.setup import dropins
from rekernel.setup.dropins import NO_JIT_BUFFER, PRIVATE_USERS
from rekernel.systemd.units import Unit

# Of PHP 8.4 under Debian's 6.12; of a program that writes its own code.
PHP = """\
55c84e000000-55c852000000 r-xs 08000000 00:01 38                         /dev/zero (deleted)
55c8522b3000-55c852609000 r-xp 000e2000 fe:00 8439                       /usr/sbin/php-fpm8.4
"""
ORDINARY = """\
55c8522b3000-55c852409000 r--p 00000000 fe:00 8439                       /usr/sbin/php-fpm8.4
55c852409000-55c852609000 r-xp 000e2000 fe:00 8439                       /usr/sbin/php-fpm8.4
7f0000000000-7f0000001000 r-xs 00000000 00:01 38                         /memfd:jit (deleted)
"""


def unit(name: str, private_users: str = "no") -> Unit:
    properties = {"PrivateUsers": private_users, "FragmentPath": "/usr/lib/systemd/system/x"}
    return Unit(name, "active", "running", "simple", 10, f"/system.slice/{name}", "", properties)


def test_who_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = {"php.service": 1, "redis.service": 2, "both.service": 3, "plain.service": 4}
    monkeypatch.setattr(
        dropins, "processes_of", lambda cgroup: {pids[cgroup.rpartition("/")[2]]: cgroup}
    )
    monkeypatch.setattr(obstacles, "_maps", lambda pid: PHP if pid in (1, 3) else ORDINARY)
    units = [
        unit("php.service"),
        unit("redis.service", "yes"),
        unit("both.service", "self"),
        unit("plain.service"),
    ]
    assert dropins.needed(units, Policy()) == {
        "both.service": [PRIVATE_USERS, NO_JIT_BUFFER],
        "php.service": [NO_JIT_BUFFER],
        "redis.service": [PRIVATE_USERS],
    }
    assert [*dropins.needed(units, Policy((("php.service", "restart"),)))] == [
        "both.service",
        "redis.service",
    ]


def test_the_text_says_why() -> None:
    text = dropins.content([NO_JIT_BUFFER, PRIVATE_USERS])
    lines = text.decode().splitlines()
    assert lines[-3:] == ["[Service]", PRIVATE_USERS.line, NO_JIT_BUFFER.line]
    assert f"# {NO_JIT_BUFFER.why}" in lines
    assert dropins.in_effect(text) == [PRIVATE_USERS, NO_JIT_BUFFER]
    assert dropins.in_effect(dropins.content([NO_JIT_BUFFER])) == [NO_JIT_BUFFER]
    assert dropins.in_effect(b"[Service]\nNice=5\n") == []
