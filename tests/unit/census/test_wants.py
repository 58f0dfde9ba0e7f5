"""What processes use that another kernel may lack: of real ones."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path

import pytest

from rekernel.census import wants
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.kernel.features import Feature
from rekernel.kernel.installed import Kernel
from rekernel.systemd.units import Unit

NEXT = Kernel("7.3.4", Path("/boot/vmlinuz-7.3.4"), Path("/usr/lib/modules/7.3.4"))


def verdict(
    name: str = "a.service", wish: str | None = None, which: Verdict = Verdict.CARRIED
) -> UnitVerdict:
    unit = Unit(name, "active", "running", "simple", 7, f"/system.slice/{name}", "", {})
    return UnitVerdict(unit, which, "", processes={7: unit.cgroup}, roots=(7,), wish=wish)


def test_a_process_of_ours() -> None:
    fd = ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC)
    memory = os.memfd_create("x")
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netfilter:
            netfilter.bind((0, 0))
            found = wants.Observer().observe([1 << 30, os.getpid()])
    finally:
        os.close(fd)
        os.close(memory)
    assert found[Feature.INOTIFY] == found[Feature.MEMFD] == os.getpid()
    assert found[Feature.NETLINK_NETFILTER] == os.getpid()
    assert Feature.SYSV not in found


def test_a_list_of_sockets(tmp_path: Path) -> None:
    """As Linux 6.12 has it, with one socket."""
    (tmp_path / "udplite").write_text(
        "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  "
        "timeout inode ref pointer drops             \n"
        "  107: 0100007F:1F3F 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        "
        "0 16918 2 0000000012c0ee3c 0         \n"
    )
    (tmp_path / "packet").write_text(
        "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"
        "000000001985d13c 3      3    88cc   2     1 0      998    3477  \n"
    )
    (tmp_path / "netlink").write_text(
        "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"
        "00000000195eb82f 0   1          800405dd 0        0        0     2        0        1393\n"
        "00000000b8b7181a 9   0          00000000 0        0        0     2        0        5\n"
    )
    assert dict(wants._sockets(tmp_path)) == {
        "socket:[16918]": Feature.UDPLITE,
        "socket:[3477]": Feature.PACKET,
        "socket:[5]": Feature.NETLINK_AUDIT,
    }


@pytest.mark.parametrize(
    ("item", "fate"),
    [
        (verdict(), Verdict.RESTARTED),
        (verdict(wish="carry"), Verdict.BLOCKS),
        (verdict(wish="block"), Verdict.BLOCKS),
        (verdict("session-1.scope"), Verdict.ENDS),
    ],
)
def test_what_becomes_of_it(
    item: UnitVerdict, fate: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wants.Observer, "observe", lambda *_: {Feature.UDPLITE: 7})
    monkeypatch.setattr(wants, "lacking", lambda kernel, running, wanted: set(wanted))
    (found,) = wants.judge([item], NEXT, "6.12")
    assert found.verdict is fate
    assert found.reason == "process 7 uses UDP-Lite sockets, which 7.3.4 does not have"
    assert found.remedy


def test_who_needs_nothing_of_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wants.Observer, "observe", lambda *_: {Feature.UDPLITE: 7})
    monkeypatch.setattr(wants, "lacking", lambda kernel, running, wanted: set())
    carried, plumbing = verdict(), verdict("b.service", which=Verdict.PLUMBING)
    assert wants.judge([carried, plumbing], NEXT, "6.12") == [carried, plumbing]
    # And the same kernel has all.
    monkeypatch.setattr(wants, "lacking", lambda kernel, running, wanted: set(wanted))
    assert wants.judge([carried], NEXT, "7.3.4") == [carried]
    (found,) = wants.judge([plumbing], NEXT, "6.12")
    assert found == plumbing
