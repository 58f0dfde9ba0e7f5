"""Interfaces by their address, and loopback without a program."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from said import Said

from rekernel import syscalls
from rekernel.carry.network import restore as network
from rekernel.carry.network.entry import FILTER, Link, Network, Tunnel
from rekernel.pid1 import console, processes
from rekernel.records import replace

SOURCE = Path(__file__).parents[4] / "src"


NETWORK = Network(
    "lock", "unlock", {"inet a": "a", "inet b": "b"}, (), "links", {"iptables-nft-restore nat": "c"}
)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Programs and their input, in their order; nft refuses what has a "b"."""
    found: list[tuple[str, str]] = []

    def feed(argv: list[str], data: bytes, log: str) -> int:
        found.append((argv[0], data.decode()))
        return int(b"b" in data)

    def wait(status: int, what: str) -> None:
        if status:
            raise processes.ProgramFailedError(what)

    monkeypatch.setattr(network, "afresh", set())
    monkeypatch.setattr(network, "given_up", set())
    monkeypatch.setattr(processes, "feed", feed)
    monkeypatch.setattr(processes, "wait", wait)
    monkeypatch.setattr(syscalls, "set_link_up", lambda name: None)
    return found


@pytest.fixture
def interfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "net"
    found.mkdir()
    monkeypatch.setattr(network, "_CLASS", str(found))
    return found


def test_links_are_there_before_rules_that_name_them(fed: list[tuple[str, str]]) -> None:
    whole = replace(NETWORK, tables={"inet a": "a", "inet c": "c"})
    network.set_up(whole)
    assert console.missing == []
    assert fed == [
        ("nft", "lock"), ("ip", "links"), ("nft", "ac"), ("iptables-nft-restore", "c"),
    ]  # fmt: skip


def test_a_table_that_this_kernel_does_not_take(fed: list[tuple[str, str]], said: Said) -> None:
    broken = replace(NETWORK, saved={"ip6tables-nft-restore nat": "b"})
    network.set_up(broken)
    assert console.missing == [
        "table inet b of the packet filter: nft",
        "table nat of the packet filter: ip6tables-nft-restore",
    ]
    # What can be is loaded.
    assert fed[2:] == [("nft", "ab"), ("nft", "a"), ("nft", "b"), ("ip6tables-nft-restore", "b")]
    assert len(said.lines) == 2


def test_tunnels(fed: list[tuple[str, str]], interfaces: Path) -> None:
    wake = ("peer", "K", "persistent-keepalive", "25")
    tunnels = {"wg1": Tunnel("b", wake, ()), "wg0": Tunnel("keys", wake, ())}
    settled = {"wg-quick@wg0.service": "wg0", "wg-quick@wg1.service": "wg1", "x.service": FILTER}
    (interfaces / "wg0").mkdir()
    (interfaces / "wg0" / "flags").write_text("0x1091\n")
    whole = replace(NETWORK, tables={}, saved={}, tunnels=tunnels, settled=settled)
    network.set_up(whole)
    # Each has its keys before it is up, and the one that has none is removed.
    assert fed == [
        ("nft", "lock"), ("ip", ""), ("wg", "b"), ("ip", ""), ("ip", ""), ("wg", "keys"),
        ("ip", "links"),
    ]  # fmt: skip
    assert console.missing == ["the tunnel wg1: wg"]
    assert network.afresh == {"wg-quick@wg1.service"}
    fed.clear()
    network.wake_tunnels(whole)
    assert fed == [("wg", "")]
    network.remove_tunnels(whole)
    assert fed == [("wg", ""), ("ip", ""), ("ip", "")]


def test_a_tunnel_that_does_not_come_up(fed: list[tuple[str, str]], interfaces: Path) -> None:
    (interfaces / "wg0").mkdir()
    (interfaces / "wg0" / "flags").write_text("0x1090\n")
    tunnel = Tunnel("keys", (), ())
    whole = replace(NETWORK, tables={}, saved={}, settled={"wg-quick@wg0.service": "wg0"})
    network.set_up(replace(whole, tunnels={"wg0": replace(tunnel, up=False)}))
    assert console.missing == []
    network.set_up(replace(whole, tunnels={"wg0": tunnel}))
    assert console.missing == ["the tunnel wg0 does not come up"]
    assert network.afresh == {"wg-quick@wg0.service"}


def test_who_sets_up_a_filter_that_is_not_taken(fed: list[tuple[str, str]]) -> None:
    settled = {"nftables.service": FILTER, "wg-quick@wg0.service": "wg0"}
    network.set_up(replace(NETWORK, tables={"inet a": "a"}, settled=settled))
    assert network.afresh == set()
    network.set_up(replace(NETWORK, settled=settled))
    assert network.afresh == {"nftables.service"}


def test_an_interface_that_is_gone(said: Said) -> None:
    # A locally administered address that nothing here has.
    network._rename([Link("eth0", "02:ff:ff:ff:ff:fe")], timeout=0)
    assert said.lines == [
        "<5>rekernel: no network interface has the address 02:ff:ff:ff:ff:fe (eth0)"
    ]


def test_interfaces_that_come_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"02:a": "eth0", "02:b": "eth1", "02:c": "eth2"}

    def rename(name: str, wanted: str) -> None:
        assert wanted not in names.values()
        (mac,) = (mac for mac, other in names.items() if other == name)
        names[mac] = wanted

    monkeypatch.setattr(network, "_addresses", lambda: names)
    monkeypatch.setattr(network, "_rename_one", rename)
    monkeypatch.setattr(
        os.path, "exists", lambda path: path.removeprefix("/sys/class/net/") in names.values()
    )
    network._rename([Link("eth2", "02:a"), Link("eth0", "02:b"), Link("eth1", "02:c")], timeout=0)
    assert names == {"02:a": "eth2", "02:b": "eth0", "02:c": "eth1"}
    assert console.missing == []


def test_an_interface_that_keeps_its_name(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    def refuse(name: str, wanted: str) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(network, "_addresses", lambda: {"02:a": "eth0", "02:b": "eth1"})
    monkeypatch.setattr(network, "_rename_one", refuse)
    network._rename([Link("lan", "02:a"), Link("eth1", "02:b")], timeout=0)
    assert console.missing == ["interface lan is called eth0: [Errno 16] Device or resource busy"]


def test_what_an_interface_does_by_itself(tmp_path: Path, said: Said) -> None:
    (tmp_path / "eth0").mkdir()
    (tmp_path / "eth0/accept_ra").write_text("1")
    links = [Link("eth0", "02:a", {"accept_ra": "0", "autoconf": "0"}), Link("eth1", "02:b")]
    network._set_ipv6(links, str(tmp_path))
    assert (tmp_path / "eth0/accept_ra").read_text() == "0"
    # The rest is set all the same.
    assert said.lines == ["<5>rekernel: autoconf of eth0 is not 0: No such file or directory"]
