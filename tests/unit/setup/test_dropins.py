"""Which units need a drop-in, and what is in it."""

from __future__ import annotations

import pytest

from rekernel.census import obstacles
from rekernel.criu.descriptors import Descriptor
from rekernel.policy import Policy
from rekernel.setup import dropins
from rekernel.setup.dropins import (
    NO_JIT_BUFFER,
    NO_RING,
    PRIVATE_IPC,
    PRIVATE_USERS,
)
from rekernel.systemd.units import Unit

# Of PHP 8.4 under Debian's 6.12; of a program that writes its own code.
PHP = """\
55c84e000000-55c852000000 r-xs 08000000 00:01 38                         /dev/zero (deleted)
55c8522b3000-55c852609000 r-xp 000e2000 fe:00 8439                       /usr/sbin/php-fpm8.4
"""
POSTGRES = """\
560000000000-560000001000 r-xp 00000000 fe:00 11           /usr/lib/postgresql/17/bin/postgres
7f16a4d8e000-7f16a4d8f000 rw-s 00000000 00:01 2                          /SYSV0012f2ab (deleted)
"""
MARIADB = """\
560000000000-560001000000 r-xp 00000000 fe:00 12                         /usr/sbin/mariadbd
7f16a4d8e000-7f16a4d8f000 r-xp 00000000 fe:00 13                         /usr/lib/liburing.so.2.9
"""
NODE = """\
560000000000-560000001000 r-xp 00000000 fe:00 12                         /usr/bin/node
7f16a4d8e000-7f16a4d8f000 r-xp 00000000 fe:00 13                         /usr/lib/libuv.so.1.0.0
"""
ORDINARY = """\
55c8522b3000-55c852409000 r--p 00000000 fe:00 8439                       /usr/sbin/php-fpm8.4
55c852409000-55c852609000 r-xp 000e2000 fe:00 8439                       /usr/sbin/php-fpm8.4
7f0000000000-7f0000001000 r-xs 00000000 00:01 38                         /memfd:jit (deleted)
"""


def unit(name: str, private_users: str = "no") -> Unit:
    properties = {"PrivateUsers": private_users, "FragmentPath": "/usr/lib/systemd/system/x"}
    return Unit(name, "active", "running", "simple", 10, f"/system.slice/{name}", "", properties)


def ring_of(pid: int) -> list[Descriptor]:
    link = "anon_inode:[io_uring]"
    return [Descriptor(pid, 9, link, -1, 0, 1, 0, 14, 0)] if pid >= 6 else []


def test_who_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = {
        "plain.service": ORDINARY,
        "redis.service": ORDINARY,
        "php.service": PHP,
        "both.service": PHP,
        "postgresql.service": POSTGRES,
        # These and what follows have an io_uring.
        "mariadb.service": MARIADB,
        "node.service": NODE,
        "stranger.service": ORDINARY,
        "filtered-node.service": NODE,
    }
    names = ["", *maps]
    filters = {names.index("filtered-node.service"): "2"}
    monkeypatch.setattr(
        dropins, "processes_of", lambda cgroup: {names.index(cgroup.rpartition("/")[2]): cgroup}
    )
    monkeypatch.setattr(obstacles, "_maps", lambda pid: maps[names[pid]])
    monkeypatch.setattr(obstacles, "descriptors", ring_of)
    monkeypatch.setattr(obstacles, "_status", lambda pid: {"Seccomp": filters.get(pid, "0")})
    monkeypatch.setattr(obstacles, "_own_ipc", lambda pid: False)
    wants_users = {"redis.service": "yes", "both.service": "self"}
    units = [unit(name, wants_users.get(name, "no")) for name in maps]
    assert dropins.needed(units, Policy()) == {
        "both.service": [PRIVATE_USERS, NO_JIT_BUFFER],
        "mariadb.service": [NO_RING],
        "node.service": [NO_RING],
        "php.service": [NO_JIT_BUFFER],
        "postgresql.service": [PRIVATE_IPC],
        "redis.service": [PRIVATE_USERS],
    }
    assert "php.service" not in dropins.needed(units, Policy((("php.service", "restart"),)))
    # In a name space of its own there is nothing to give up.
    monkeypatch.setattr(obstacles, "_own_ipc", lambda pid: True)
    assert "postgresql.service" not in dropins.needed(units, Policy())


def test_the_text_says_why() -> None:
    text = dropins.content([NO_JIT_BUFFER, PRIVATE_USERS])
    lines = text.decode().splitlines()
    assert lines[-3:] == ["[Service]", PRIVATE_USERS.line, NO_JIT_BUFFER.line]
    assert f"# {NO_JIT_BUFFER.why}" in lines
    assert dropins.in_effect(text) == [PRIVATE_USERS, NO_JIT_BUFFER]
    assert dropins.in_effect(dropins.content([NO_JIT_BUFFER])) == [NO_JIT_BUFFER]
    assert dropins.in_effect(b"[Service]\nNice=5\n") == []
