"""Bind mounts: of which directory, and by which other name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekernel import syscalls
from rekernel.carry.disks import observe as disks
from rekernel.carry.mounts import binds
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.entry import Mount

TABLE = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:30 / /run rw,relatime shared:2 - tmpfs tmpfs rw
23 21 8:2 / /srv rw,relatime shared:3 - xfs /dev/sda2 rw
24 21 8:1 /var/www /www rw,relatime shared:1 - ext4 /dev/sda1 rw
25 23 8:2 /logs /var/log ro,nosuid,relatime shared:3 - xfs /dev/sda2 rw
26 22 0:30 /self /run/self rw,relatime shared:2 - tmpfs tmpfs rw
27 21 8:2 / /again rw,relatime shared:9 - xfs /dev/sda2 rw
28 21 8:2 /own /own rw,relatime - xfs /dev/sda2 rw
29 22 0:30 /user/7 /run/user/7 rw,relatime - tmpfs tmpfs rw
"""
BIND = syscalls.MS_BIND | syscalls.MS_RELATIME


def parse(text: str) -> list[mounts.MountInfo]:
    return mounts.parse_mountinfo(text)


def test_how_they_are_made_again() -> None:
    table = parse(TABLE)
    assert binds.plan(table) == [
        Mount("/www", "", "/var/www", BIND),
        Mount("/var/log", "", "/srv/logs", BIND | syscalls.MS_RDONLY | syscalls.MS_NOSUID),
        Mount("/run/self", "", "/run/self", BIND),
        Mount("/again", "", "/srv", BIND),
        Mount("/own", "", "/srv/own", BIND),
    ]
    # Nobody else mounts them.
    assert [item.target for item in disks.plan(table)] == ["/srv"]
    assert [item.target for item in mounts.plan(table)[0]] == ["/run"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/www/a/b", "/var/www/a/b"),
        ("/www", "/var/www"),
        ("/wwww", "/wwww"),
        ("/var/log", "/srv/logs"),
        ("/run/self/x", "/run/self/x"),
        # Of other peers, and of none.
        ("/again/x", "/again/x"),
        ("/own/x", "/own/x"),
    ],
)
def test_without_those_that_show_a_part_of_their_peers(path: str, name: str) -> None:
    assert binds.canonical(path, parse(TABLE)) == name


def test_the_last_one_on_a_directory_counts() -> None:
    table = parse(TABLE + "30 21 0:40 / /www rw - tmpfs tmpfs rw\n")
    found = binds.holder("/www/x", table)
    assert found is not None
    assert found.fstype == "tmpfs"


def test_what_cannot_be_made_again(tmp_path: Path) -> None:
    file, directory = tmp_path / "file", tmp_path / "directory"
    file.touch()
    directory.mkdir()
    start = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:30 / /run rw - tmpfs tmpfs rw\n"

    def obstacle(*lines: str) -> str | None:
        table = parse(start + "".join(f"{line}\n" for line in lines))
        return binds.obstacle(table[-1], table)

    assert obstacle(f"23 21 8:1 /x {directory} rw - ext4 /dev/sda1 rw") is None
    assert obstacle(f"23 21 8:1 /x {file} rw - ext4 /dev/sda1 rw") is None
    assert obstacle(f"23 21 0:30 /x {directory} rw - tmpfs tmpfs rw") is None
    assert obstacle(f"23 21 0:30 /x {file} rw - tmpfs tmpfs rw") == "of a file in a tmpfs"
    hiding = "23 21 0:31 / /a rw - tmpfs tmpfs rw"
    line = f"24 21 8:1 /a/b {directory} rw - ext4 /dev/sda1 rw"
    assert obstacle(hiding, line) == "of what another mount hides"
    again = f"23 21 8:1 /x {directory} rw - ext4 /dev/sda1 rw"
    assert obstacle(again, f"24 23{again[5:]}") == "on or below another mount"


def test_a_part_of_a_mount_on_itself() -> None:
    # criu would look for the wider one by this name.
    table = parse(TABLE)
    found = {mount.target: binds.obstacle(mount, table) for mount in table[3:8]}
    assert found.pop("/run/self") == "on itself"
    assert set(found.values()) == {None}
