"""The network of a real machine, written down; and set up from that in a namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recorded import NEW, OLD, Recorded, on_each_kernel

from rekernel.carry.network import observe as network
from rekernel.carry.network.entry import Link, Tunnel
from rekernel.carry.network.observe import NetworkFacts
from rekernel.carry.network.packetfilter import PacketFilter
from rekernel.errors import BlockedError
from rekernel.records import replace
from rekernel.run import CommandFailedError

SOURCE = Path(__file__).parents[4] / "src"


@on_each_kernel
def test_a_plain_server(recorded: Recorded) -> None:
    facts = recorded.network("net")
    assert network.unsupported(facts) == []
    described = network.describe(facts)
    assert described.links == (Link("enp0s2", "52:54:00:4c:41:42"),)
    gateway = facts.neighbours[0]["lladdr"]
    assert described.batch.splitlines() == [
        "link set dev lo mtu 65536 up",
        "link set dev enp0s2 mtu 1500 addrgenmode none up",
        "address replace 127.0.0.1/8 dev lo scope host",
        "address replace ::1/128 dev lo scope host noprefixroute",
        "address replace 10.77.0.2/24 dev enp0s2 broadcast 10.77.0.255",
        "route replace unicast 0.0.0.0/0 via 10.77.0.1 dev enp0s2 proto static",
        f"neighbour replace 10.77.0.1 lladdr {gateway} dev enp0s2 nud stale",
    ]
    assert described.tables == {}


def test_what_the_packet_filter_lacks_is_named() -> None:
    facts = NetworkFacts([], [], [], [], PacketFilter(problems=("table arp filter (x)",)))
    assert network.unsupported(facts) == ["table arp filter (x)"]


@on_each_kernel
def test_a_busy_router(recorded: Recorded) -> None:
    facts = recorded.network("net-busy")
    assert network.unsupported(facts) == [
        "route to 10.69.0.0/16 (several next hops or an encapsulation)",
    ]
    described = network.describe(facts)
    assert [link.name for link in described.links] == ["enp0s2"]
    lines = described.batch.splitlines()
    assert not [line for line in lines if ".69." in line]
    assert {
        "address replace 192.0.2.1 peer 192.0.2.2/32 dev enp0s2",
        "address replace 198.51.100.7/24 dev enp0s2 label enp0s2:1",
        "address replace fe80::1234/64 dev enp0s2 scope link nodad",
        "address replace 2001:db8::5/64 dev enp0s2 nodad",
        "route replace blackhole 10.66.0.0/16",
        "route append unreachable 2001:db8:dead::/48 dev lo metric 1024",
        "route replace unicast 10.68.0.0/16 via inet6 fe80::99 dev enp0s2",
        "route replace unicast 10.71.0.0/16 via 100.64.9.9 dev enp0s2 onlink",
        # "default" alone would be IPv4's.
        "route append unicast ::/0 dev enp0s2 metric 4096",
        "neighbour replace 198.51.100.9 lladdr 02:00:00:00:00:09 dev enp0s2 nud permanent",
    } <= {*lines}
    (temporary,) = (line for line in lines if "203.0.113.5" in line)
    assert "valid_lft 3" in temporary
    assert temporary.endswith(" noprefixroute")
    (other_table,) = (line for line in lines if "10.70." in line)
    assert "metric 5 table 77 mtu 1400" in other_table
    # Links are up before they get addresses, and addresses are there before routes by way of them.
    kinds = [line.split()[0] for line in lines]
    assert kinds == sorted(kinds, key=["link", "address", "route", "neighbour"].index)


@on_each_kernel
def test_an_interface_that_is_down_stays_down(recorded: Recorded) -> None:
    facts = recorded.network("net")
    link = facts.links[1]
    down = NetworkFacts([link | {"flags": ["BROADCAST"]}], [], [], [], PacketFilter())
    assert network.describe(down).batch == "link set dev enp0s2 mtu 1500 addrgenmode none down\n"


def _can_make_namespaces() -> bool:
    script = "ip link add near type veth peer name far && nft list ruleset"
    try:
        done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True)
    except FileNotFoundError:
        return False
    return os.geteuid() == 0 and done.returncode == 0


# In an empty namespace with an interface of that address: apply, and describe what came of it.
_APPLY = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(":")
from recorded import Recorded
from rekernel.carry.network import observe as network
from rekernel.run import run
facts = Recorded(Path(sys.argv[2])).network(sys.argv[3])
# What needs a module, which not every machine that tests has, the VM tests set up.
facts.links[:] = [link for link in facts.links if "linkinfo" not in link]
described = network.describe(facts)
run(["ip", "link", "add", "enp0s2", "address", described.links[0].mac,
     "type", "veth", "peer", "name", "far"])
run(["ip", "link", "set", "far", "up"])
run(["ip", "link", "set", "enp0s2", "addrgenmode", "none"])
run(["nft", "-f", "-"], stdin="".join(described.tables.values()) + described.lock_rules)
run(["ip", "-batch", "-"], stdin=described.batch)
run(["nft", "-f", "-"], stdin=described.unlock_rules)
network.lock()
assert "inet rekernel_lock" in network.observe().filter.tables
network.unlock()
network.unlock()
facts = network.observe()
links = [link for link in facts.links if link["ifname"] != "far"]
for link in links:
    link.pop("linkinfo", None)
again = network.describe(network.NetworkFacts(
    links, facts.addresses, facts.routes, facts.neighbours, facts.filter))
assert again.tables == described.tables, again.tables
def lines(batch):
    # Lifetimes run; neighbours come in no particular order.
    return sorted(line.partition(" valid_lft")[0] for line in batch.splitlines())
assert lines(again.batch) == lines(described.batch), again.batch
"""


@pytest.mark.skipif(not _can_make_namespaces(), reason="needs root and network namespaces")
@pytest.mark.parametrize("recorded", [OLD, NEW], ids=lambda item: item.release)
@pytest.mark.parametrize("name", ["net", "net-busy"])
def test_what_is_described_can_be_set_up_and_is_the_same_then(
    recorded: Recorded, name: str
) -> None:
    path = f"{SOURCE}:{Path(__file__).parents[2]}:{os.pathsep.join(sys.path)}"
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", _APPLY, path, str(recorded.directory), name],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# In one empty namespace after the other: set up by hand, describe, apply, describe again.
_RULES = """
import sys
sys.path.insert(0, sys.argv[1])
from rekernel import syscalls
from rekernel.carry.network import observe as network
from rekernel.run import run
BY_HAND = (
    "link set dev lo addrgenmode none up",
    "neighbour add proxy 10.1.1.1 dev lo",
    "rule add priority 500 from 10.0.0.0/8 fwmark 0x10/0xff iif lo lookup 100",
    "rule add priority 501 not from 1.2.3.4 lookup main suppress_prefixlength 0",
    "rule add priority 502 ipproto tcp dport 80-90 uidrange 0-5 unreachable",
    "rule add priority 503 to 192.0.2.0/24 tos 0x10 sport 22 oif lo blackhole",
    "rule del priority 32767",
)
syscalls.unshare(syscalls.CLONE_NEWNET)
run(["ip", "-batch", "-"], stdin="\\n".join(BY_HAND))
run(["ip", "-6", "rule", "add", "priority", "77", "from", "fd00::/8", "lookup", "77"])
facts = network.observe()
assert network.unsupported(facts) == [], network.unsupported(facts)
described = network.describe(facts)
syscalls.unshare(syscalls.CLONE_NEWNET)
run(["ip", "-batch", "-"], stdin=described.batch)
for family, text in described.rules.items():
    run(["ip", family, "-batch", "-"], stdin=text)
again = network.observe()
assert again.rules == facts.rules, again.rules
assert again.neighbours == facts.neighbours, again.neighbours
assert network.describe(again) == described
run(["ip", "rule", "add", "priority", "5", "l3mdev"])
print(*network.unsupported(network.observe()), sep=", ")
"""


@pytest.mark.skipif(not _can_make_namespaces(), reason="needs root and network namespaces")
def test_policy_routing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RULES, str(SOURCE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "routing rule 5 of -4 (l3mdev)" in done.stdout


def test_a_lock_that_stays_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything would be dropped for ever, and be called undone."""
    nft = tmp_path / "nft"
    nft.write_text("#!/bin/sh\necho Operation not permitted >&2; exit 1\n")
    nft.chmod(0o755)
    monkeypatch.setattr("rekernel.run._ENVIRONMENT", {"PATH": str(tmp_path)})
    with pytest.raises(CommandFailedError, match="Operation not permitted"):
        network.unlock()


def test_traffic_control() -> None:
    qdiscs = [{"kind": "fq_codel", "dev": "eth0"}, {"kind": "netem", "dev": "eth1"}]
    facts = replace(OLD.network("net"), qdiscs=qdiscs)
    assert network.unsupported(facts) == ["traffic control on eth1 (netem)"]


def test_a_tunnel() -> None:
    link = {
        "ifname": "wg0", "flags": ["POINTOPOINT", "NOARP", "UP"], "mtu": 1420, "link_type": "none",
        "linkinfo": {"info_kind": "wireguard"}, "inet6_addr_gen_mode": "none",
    }  # fmt: skip
    plain = OLD.network("net")
    wg0 = Tunnel("keys", (), ())
    facts = replace(plain, links=[*plain.links, link], tunnels={"wg0": wg0})
    assert network.unsupported(facts) == []
    described = network.describe(facts)
    assert described.tunnels == {"wg0": wg0}
    lines = described.batch.splitlines()
    assert "link set dev wg0 mtu 1420 addrgenmode none up" in lines
    # It is there by then, with its keys.
    assert not [line for line in lines if line.startswith("link add name wg0")]
    assert "wg0" not in [item.name for item in described.links]
    with pytest.raises(BlockedError, match="wg0 cannot be read any more"):
        network.describe(replace(facts, tunnels={}))


def test_without_rules_of_its_own(recorded: Recorded = OLD) -> None:
    facts = recorded.network("net")
    defaults = [
        {"priority": priority, "src": "all", "table": table, "protocol": "kernel"}
        for priority, table in ((0, "local"), (32766, "main"), (32767, "default"))
    ]
    rules = {"-4": defaults, "-6": defaults[:2]}
    described = network.describe(replace(facts, rules=rules))
    assert described.rules == {"-4": "", "-6": ""}


CONTAINERS = Path(__file__).parents[3] / "fixtures" / "podman"


def test_what_podman_makes_again_is_left_to_it() -> None:
    facts = NetworkFacts(
        links=json.loads((CONTAINERS / "link.json").read_text()),
        addresses=[{"ifname": "podman0", "addr_info": [{"local": "10.88.0.1", "prefixlen": 16}]}],
        routes=[],
        neighbours=[],
        filter=PacketFilter(),
        namespaces={0: "netns-1c4ab884-b9a2-a182-be30-46e3a1a8182f"},
    )
    assert network.unsupported(facts) == []
    described = network.describe(facts)
    assert "podman0" not in described.batch
    assert "veth0" not in described.batch
    # Somebody else's namespace does not come back by itself.
    theirs = replace(facts, namespaces={0: "blue"})
    assert "veth0 (veth)" in network.unsupported(theirs)
    # Nor does a bridge with anything else in it.
    plain = {"ifname": "enp0s3", "address": "52:54:00:4c:41:43", "mtu": 1500, "flags": ["UP"]}
    shared = replace(facts, links=[*facts.links, plain | {"master": "podman0"}])
    own = [link["ifname"] for link in network._own_links(shared)]
    assert own == ["lo", "enp0s2", "podman0", "enp0s3"]


# As NetworkManager and systemd-networkd leave it, on two interfaces: no route to an address is the
# kernel's own, and some are only known from a router.
_LENT = """
import sys
sys.path.insert(0, sys.argv[1])
from rekernel import syscalls
from rekernel.carry.network import observe as network
from rekernel.run import run
LINKS = (
    "link add d0 address 02:00:00:00:00:01 type veth peer name d1 address 02:00:00:00:00:02",
    *(f"link set dev {name} addrgenmode none up" for name in ("d0", "d1")),
)
BY_HAND = (
    "address add 10.9.0.2/24 dev d0 noprefixroute valid_lft 1200 preferred_lft 1200",
    "route add 10.9.0.0/24 dev d0 proto kernel scope link src 10.9.0.2 metric 100",
    "route add default via 10.9.0.1 dev d0 proto dhcp metric 100 src 10.9.0.2",
    # The kernel's own.
    "address add 10.8.0.2/24 dev d1",
    "address add 2001:db8::5/64 dev d0 nodad noprefixroute valid_lft 5000 preferred_lft 4000",
    "route add 2001:db8::/64 dev d0 proto ra metric 100 expires 5000",
    *(f"address add fe80::{name}/64 dev {name} nodad noprefixroute" for name in ("d0", "d1")),
    *(f"route append fe80::/64 dev {name} proto kernel metric 1024" for name in ("d0", "d1")),
    "route add ::/0 via fe80::1 dev d0 proto ra metric 1024 expires 1800 hoplimit 64 pref high",
)
syscalls.unshare(syscalls.CLONE_NEWNET)
run(["ip", "-batch", "-"], stdin="\\n".join((*LINKS, *BY_HAND)))
facts = network.observe()
for link in facts.links:
    link.pop("linkinfo", None)
assert network.unsupported(facts) == [], network.unsupported(facts)
described = network.describe(facts)
syscalls.unshare(syscalls.CLONE_NEWNET)
run(["ip", "-batch", "-"], stdin="\\n".join(LINKS))
run(["ip", "-batch", "-"], stdin=described.batch)
def told(facts, behind=0):
    # What a router has announced comes behind what it announces again, for the rest of its time.
    return sorted(
        sorted(
            (key, str(value + behind if (key, route["protocol"]) == ("metric", "ra") else value))
            for key, value in route.items()
            if key != "expires"
        )
        for route in facts.routes
    )
again = network.observe()
assert told(again) == told(facts, behind=1), (told(again), told(facts))
expiring = [route["dst"] for route in again.routes if "expires" in route]
assert expiring == ["2001:db8::/64", "default"], expiring
"""


@pytest.mark.skipif(not _can_make_namespaces(), reason="needs root and network namespaces")
def test_what_the_kernel_did_not_make() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LENT, str(SOURCE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_several_routers() -> None:
    hops = [{"gateway": f"fe80::{n}", "dev": "enp0s2", "weight": 1, "flags": []} for n in (1, 2)]
    heard = {"dst": "default", "protocol": "ra", "metric": 1024, "nexthops": hops}
    facts = replace(OLD.network("net"), routes=[heard | {"family": "-6"}])
    assert network.unsupported(facts) == []
    assert "route append unicast ::/0 via fe80::1 dev enp0s2 proto ra metric 1025 expires 1800" in (
        network.describe(facts).batch.splitlines()
    )
    by_hand = replace(facts, routes=[heard | {"family": "-6", "protocol": "static"}])
    assert network.unsupported(by_hand) == [
        "route to default (several next hops or an encapsulation)"
    ]


def heard(gateway: str, **more: object) -> dict[str, object]:
    route = {"dst": "default", "protocol": "ra", "metric": 1024, "family": "-6", "dev": "enp0s2"}
    return route | {"gateway": gateway, "expires": 600, **more}


def test_one_router_after_the_other() -> None:
    """With one metric they would share what is sent."""
    routes = [heard("fe80::1", pref="low"), heard("fe80::2"), heard("fe80::3", pref="high")]
    facts = replace(OLD.network("net"), routes=routes)
    lines = [
        line for line in network.describe(facts).batch.splitlines() if line.startswith("route")
    ]
    way = "route append unicast ::/0 via fe80::{} dev enp0s2 proto ra metric {} expires 600"
    assert lines == [
        f"{way.format(1, 1027)} pref low",
        way.format(2, 1026),
        f"{way.format(3, 1025)} pref high",
    ]


def test_what_is_over() -> None:
    """It stays listed for a while, and ip would end at it."""
    facts = replace(OLD.network("net"), routes=[heard("fe80::1", expires=-2)])
    assert "\nroute" not in network.describe(facts).batch


def test_the_same_way_by_two_interfaces() -> None:
    one = {"dst": "10.5.0.0/16", "dev": "enp0s2", "family": "-4", "scope": "link", "metric": 5}
    other = one | {"dev": "lo"}
    facts = replace(OLD.network("net"), routes=[one, other])
    lines = [
        line for line in network.describe(facts).batch.splitlines() if line.startswith("route")
    ]
    assert [line.split()[:2] for line in lines] == [["route", "replace"], ["route", "append"]]


def test_from_some_only() -> None:
    route = {"dst": "default", "from": "2001:db8::/48", "dev": "enp0s2", "family": "-6"}
    facts = replace(OLD.network("net"), routes=[route | {"metric": 7}])
    assert "route append unicast ::/0 from 2001:db8::/48 dev enp0s2 metric 7" in (
        network.describe(facts).batch.splitlines()
    )


def test_what_an_interface_does_by_itself(tmp_path: Path) -> None:
    for name, value in (("accept_ra", "0"), ("autoconf", "1"), ("disable_ipv6", "0")):
        for link in ("enp0s2", "gone"):
            (tmp_path / link).mkdir(exist_ok=True)
            (tmp_path / link / name).write_text(f"{value}\n")
    (tmp_path / "gone/autoconf").unlink()
    found = dict(network._observe_ipv6(tmp_path))
    assert found == {"enp0s2": {"accept_ra": "0", "autoconf": "1", "disable_ipv6": "0"}}
    (made,) = network.describe(replace(OLD.network("net"), ipv6=found)).links
    assert made.ipv6 == found["enp0s2"]
