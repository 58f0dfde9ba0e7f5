"""The host around the services: its network stands on a bridge on a bond, with a VLAN above."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from rekernel_lab.guestfiles import GUEST_ADDRESS, HOST_ADDRESS, PREFIX_LENGTH
from vm.support import NEW, Guest, opened

_NETDEVS = {
    "bond0": "Kind=bond\n[Bond]\nMode=active-backup\nMIIMonitorSec=100ms\nUpDelaySec=200ms\n",
    "br0": "Kind=bridge\n[Bridge]\nSTP=no\nAgeingTimeSec=100\nMulticastSnooping=no\n",
    "vlan5": "Kind=vlan\n[VLAN]\nId=5\n",
    "dummy5": "Kind=dummy\n",
}
_NETWORKS = {
    # Instead of the lab's own.
    "10-lab": "[Match]\nName=en* eth*\n[Network]\nBond=bond0\n",
    "20-bond0": "[Match]\nName=bond0\n[Network]\nBridge=br0\n[Bridge]\nHairPin=yes\n",
    "20-br0": f"[Match]\nName=br0\n[Network]\nAddress={GUEST_ADDRESS}/{PREFIX_LENGTH}\n"
    f"Gateway={HOST_ADDRESS}\nLinkLocalAddressing=no\nVLAN=vlan5\n",
    "20-others": "[Match]\nName=vlan5 dummy5\n[Network]\nAddress=192.0.2.0/28\n",
}
# What the kernel counts down, or finds out for itself.
_STATE = (
    "hello_timer", "tcn_timer", "topology_change_timer", "gc_timer", "ad_info", "fdb_n_learned",
)  # fmt: skip


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with opened("host", "demo", limit_s=900, memory_mib=3072) as running:
        mac = running.text("cat /sys/class/net/en*/address")
        for name, text in _NETDEVS.items():
            address = "" if name in ("vlan5", "dummy5") else f"MACAddress={mac}\n"
            running.write(
                f"/etc/systemd/network/20-{name}.netdev",
                f"[NetDev]\nName={name}\n{address}{text}",
            )
        for name, text in _NETWORKS.items():
            running.write(f"/etc/systemd/network/{name}.network", text)
        running.session.set_up(1024)
        yield running


def links(guest: Guest) -> dict[str, Any]:
    """Everything that is set on each interface, and its addresses."""
    found: dict[str, Any] = {}
    for link in guest.json("ip -json -details link show"):
        info = link.get("linkinfo", {})
        for name in _STATE:
            info.get("info_data", {}).pop(name, None)
        port = info.get("info_slave_data", {})
        found[link["ifname"]] = (
            link.get("link"), link.get("master"), link["mtu"], link["address"],
            "UP" in link["flags"], info.get("info_kind"), info.get("info_data"),
            port.get("hairpin"),
        )  # fmt: skip
    for entry in guest.json("ip -json address show"):
        addresses = [item["local"] for item in entry["addr_info"]]
        found[entry["ifname"]] = (*found[entry["ifname"]], addresses)
    return found


def get(connection: socket.socket) -> None:
    """One request of many over a connection."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n")
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while length:
        length -= len(connection.recv(length))


def test_bridge_bond_and_vlan(guest: Guest) -> None:
    before = links(guest)
    assert {*_NETDEVS} <= {*before}
    with guest.connect(80) as connection:
        get(connection)
        outcome = guest.upgrade(NEW)
        assert outcome.passed, guest.explain(outcome)
        get(connection)
    assert outcome.report["connections"]["lost"] == []
    assert links(guest) == before
    # Nothing was left for whoever configures the network afterwards.
    assert guest.text("cat /run/rekernel/network.log") == ""
