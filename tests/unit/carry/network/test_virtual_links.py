from __future__ import annotations

from typing import Any

import pytest

from rekernel.carry.network import virtual_links


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    first = {
        "bridge": {"ageing_time": 30000, "stp_state": 0, "vlan_filtering": 0, "priority": 32768},
        "bond": {"mode": "802.3ad", "miimon": 0, "updelay": 0, "new": 1},
    }
    monkeypatch.setattr(virtual_links, "_fresh", lambda kind, *words: first[kind])


def link(name: str, kind: str = "", data: dict[str, Any] | None = None, **more: Any) -> Any:
    info = {"linkinfo": {"info_kind": kind, "info_data": data or {}}} if kind else {}
    return {"ifname": name, "address": "02:00:00:00:00:05", **info, **more}


def test_only_what_differs_is_set() -> None:
    data = {"ageing_time": 100, "priority": 32768, "bridge_id": "8000", "stp_state": 0}
    assert virtual_links.making(link("br0", "bridge", data)) == [
        "link add name br0 address 02:00:00:00:00:05 type bridge ageing_time 100"
    ]
    data = {"miimon": 100, "updelay": 200, "mode": "802.3ad", "active_slave": "eth0", "new": 1}
    assert virtual_links.making(link("bond0", "bond", data)) == [
        "link add name bond0 address 02:00:00:00:00:05 type bond mode 802.3ad miimon 100 "
        "updelay 200"
    ]
    assert virtual_links.making(link("dummy0", "dummy")) == [
        "link add name dummy0 address 02:00:00:00:00:05 type dummy"
    ]


def test_vlan() -> None:
    data = {"protocol": "802.1ad", "id": 5, "flags": ["REORDER_HDR", "GVRP"]}
    assert virtual_links.making(link("v", "vlan", data, link="br0")) == [
        "link add link br0 name v address 02:00:00:00:00:05 type vlan protocol 802.1ad id 5 gvrp on"
    ]


def test_what_cannot_be_made_again() -> None:
    assert virtual_links.unsupported(link("veth0", "veth")) == "veth"
    assert virtual_links.unsupported(link("br0", "bridge", {"stp_state": 1})) == (
        "bridge with stp_state"
    )
    strange = {"vlan_filtering": 1, "from_the_future": 2, "root_port": 7}
    assert virtual_links.unsupported(link("br0", "bridge", strange)) == (
        "bridge with from_the_future, vlan_filtering"
    )
    assert virtual_links.unsupported(link("bond0", "bond", {"mode": "802.3ad", "new": 1})) == ""
    assert virtual_links.unsupported(link("bond0", "bond", {"mode": "802.3ad", "new": 2})) == (
        "bond with new"
    )
    vlan = {"protocol": "802.1Q", "id": 5, "ingress_qos": [{"from": 1, "to": 2}]}
    assert virtual_links.unsupported(link("v", "vlan", vlan)) == "vlan with ingress_qos"


def test_each_after_what_it_stands_on() -> None:
    links = [
        link("a", "vlan", link="b"), link("b", "vlan", link="br0"), link("br0", "bridge"),
        # Below a device, and in a circle.
        link("c", "vlan", link="eth0"), link("x", "vlan", link="y"), link("y", "vlan", link="x"),
    ]  # fmt: skip
    names = [item["ifname"] for item in virtual_links.ordered(links)]
    assert sorted(names) == ["a", "b", "br0", "c", "x", "y"]
    assert names.index("br0") < names.index("b") < names.index("a")


def test_ports() -> None:
    port = link("eth0", master="br0")
    port["linkinfo"] = {
        "info_slave_kind": "bridge",
        "info_slave_data": {"hairpin": True, "learning": False, "flood": True, "state": "x"},
    }
    assert virtual_links.joining(port, []) == [
        "link set dev eth0 master br0",
        "link set dev eth0 type bridge_slave hairpin on learning off",
    ]
    slave = link("eth1", master="bond0")
    bond = link("bond0", "bond", {"mode": "active-backup", "primary": "eth1"})
    assert virtual_links.joining(slave, [slave, bond]) == [
        "link set dev eth1 master bond0",
        "link set dev bond0 type bond primary eth1",
    ]
    assert virtual_links.joining(bond, [slave, bond]) == []
