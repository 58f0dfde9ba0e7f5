"""Interfaces by their address, and loopback without a program."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rekernel import syscalls
from rekernel.agent import network, processes
from rekernel.handover.manifest import Link, Network

from .conftest import Said

SOURCE = Path(__file__).parents[3] / "src"


NETWORK = Network(
    "lock", "unlock", {"inet a": "a", "inet b": "b"}, (), "links", {"iptables-nft-restore": "c"}
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

    monkeypatch.setattr(processes, "feed", feed)
    monkeypatch.setattr(processes, "wait", wait)
    monkeypatch.setattr(syscalls, "set_link_up", lambda name: None)
    return found


def test_links_are_there_before_rules_that_name_them(fed: list[tuple[str, str]]) -> None:
    whole = dataclasses.replace(NETWORK, tables={"inet a": "a", "inet c": "c"})
    assert network.set_up(whole) == []
    assert fed == [
        ("nft", "lock"), ("ip", "links"), ("nft", "ac"), ("iptables-nft-restore", "c"),
    ]  # fmt: skip


def test_a_table_that_this_kernel_does_not_take(fed: list[tuple[str, str]], said: Said) -> None:
    broken = dataclasses.replace(NETWORK, saved={"ip6tables-nft-restore": "b"})
    assert network.set_up(broken) == [
        "table inet b of the packet filter",
        "the packet filter's rules of ip6tables-nft-restore",
    ]
    # What can be is loaded.
    assert fed[2:] == [("nft", "ab"), ("nft", "a"), ("nft", "b"), ("ip6tables-nft-restore", "b")]
    assert len(said.lines) == 2


def test_an_interface_that_is_gone(said: Said) -> None:
    # A locally administered address that nothing here has.
    network._rename([Link("eth0", "02:ff:ff:ff:ff:fe")], timeout=0)
    assert said.lines == [
        "<5>rekernel: no network interface has the address 02:ff:ff:ff:ff:fe (eth0)"
    ]
