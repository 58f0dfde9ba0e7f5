"""The network as it stands, written out as input for ``ip -batch``.

Facts come from iproute2's JSON. What is not a link with addresses, routes and
neighbours is named by :func:`unsupported`, never left out silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from rekernel.carry.conntrack import observe as conntrack
from rekernel.carry.network import packetfilter, virtual_links, wireguard
from rekernel.carry.network.entry import Link, Network, Tunnel
from rekernel.carry.network.packetfilter import PacketFilter
from rekernel.containers import docker, podman
from rekernel.errors import BlockedError, RekernelError
from rekernel.records import field, record, replace
from rekernel.run import run, run_json

TABLE = "rekernel_lock"

# What a peer has half closed criu brings into that state with a FIN that it sends in its name, from
# here to here, with this mark (SOCCR_MARK in its soccr/soccr.h).
_CRIU_MARK = 0xC114
# All other packets, loopback included: two carried ends of one connection must not acknowledge
# data to each other while one of them is already written down.
LOCK_RULES = f"""
table inet {TABLE} {{
    chain input {{
        type filter hook input priority -400; policy drop;
        iifname "lo" meta mark {_CRIU_MARK:#x} accept
    }}
    chain output {{
        type filter hook output priority -400; policy drop;
        oifname "lo" meta mark {_CRIU_MARK:#x} accept
    }}
    chain forward {{ type filter hook forward priority -400; policy drop; }}
}}
"""
UNLOCK_RULES = f"delete table inet {TABLE}\n"

_FAMILIES = ("-4", "-6")
_ASKED = {
    "links": ["ip", "-json", "-details", "link", "show"],
    "addresses": ["ip", "-json", "address", "show"],
    **{f"routes {it}": ["ip", "-json", it, "route", "show", "table", "all"] for it in _FAMILIES},
    "neighbours": ["ip", "-json", "neighbour", "show"],
    "proxies": ["ip", "-json", "neighbour", "show", "proxy"],
    **{f"rules {it}": ["ip", "-json", it, "rule", "show"] for it in _FAMILIES},
    "qdiscs": ["tc", "-json", "qdisc", "show"],
    "namespaces": ["ip", "-json", "netns", "list-id"],
}
# What every network namespace starts with: priority -> table (ip-rule(8)).
_DEFAULT_RULES = {
    "-4": {0: "local", 32766: "main", 32767: "default"},
    "-6": {0: "local", 32766: "main"},
}
# What iproute2 shows of a rule -> how it takes it. Its own JSON is the only list of these.
_RULE_WORDS = {
    "priority": "priority",
    "src": "from",
    "dst": "to",
    "tos": "tos",
    "fwmark": "fwmark",
    "iif": "iif",
    "oif": "oif",
    "uid_start": "uidrange",
    "ipproto": "ipproto",
    "sport": "sport",
    "sport_start": "sport",
    "dport": "dport",
    "dport_start": "dport",
    "table": "lookup",
    "protocol": "protocol",
    "suppress_prefixlen": "suppress_prefixlength",
}
_RULE_RANGES = (
    ("uid_start", "uid_end"), ("sport_start", "sport_end"), ("dport_start", "dport_end"),
)  # fmt: skip
_RULE_PARTS = {
    "not", "action", "srclen", "dstlen", "fwmask", *(last for _, last in _RULE_RANGES),
}  # fmt: skip
# What an interface gets by itself (net.core.default_qdisc).
_DEFAULT_QDISCS = ("noqueue", "mq", "pfifo_fast", "fq_codel", "fq", "pfifo")

# What an interface does by itself once it is up: the kernel would make addresses of what it hears
# from a router, where who configures the network does so.
_IPV6 = ("accept_ra", "autoconf", "disable_ipv6")
# Which family a route is of where its destination does not tell.
_EVERYTHING = {"-4": "0.0.0.0/0", "-6": "::/0"}
# Of routers (RFC 4191), as iproute2 calls them; and how long one is good for that did not tell.
_PREFERENCES = ("high", "medium", "low")
_INTERIM_S = 1800


@record
class NetworkFacts:
    """What iproute2 says; the lists are its JSON. And the packet filter."""

    links: list[dict[str, Any]]
    addresses: list[dict[str, Any]]
    routes: list[dict[str, Any]]
    neighbours: list[dict[str, Any]]
    filter: PacketFilter
    # Policy routing of each family, and what else would be missed.
    rules: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    qdiscs: list[dict[str, Any]] = field(default_factory=list)
    others: tuple[str, ...] = ()
    conntrack_max: int = 0
    # Names of network namespaces by their number here (ip-netns(8)).
    namespaces: dict[int, str] = field(default_factory=dict)
    # Of each interface (_IPV6).
    ipv6: dict[str, dict[str, str]] = field(default_factory=dict)
    # Of WireGuard; one that cannot be read is among the others.
    tunnels: dict[str, Tunnel] = field(default_factory=dict)


def kinds() -> list[str]:
    """Kinds of interfaces here that the kernel makes on top of others."""
    shown = run_json(["ip", "-json", "-details", "link", "show"])
    return sorted({kind for link in shown if (kind := virtual_links.kind_of(link))})


def observe() -> NetworkFacts:
    """Read everything that :func:`describe` needs. Changes nothing."""
    # A dozen programs, each of which mostly begins and ends.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        filtering = pool.submit(packetfilter.observe)
        others = pool.submit(lambda: [*_observe_others()])
        shown = dict(zip(_ASKED, pool.map(run_json, _ASKED.values()), strict=True))
    tunnels, unread = _observe_tunnels(shown["links"])
    return NetworkFacts(
        links=shown["links"],
        addresses=shown["addresses"],
        routes=[
            route | {"family": family}
            for family in _FAMILIES
            for route in shown[f"routes {family}"]
        ],
        neighbours=[*shown["neighbours"], *shown["proxies"]],
        filter=filtering.result(),
        rules={family: shown[f"rules {family}"] for family in _FAMILIES},
        qdiscs=shown["qdiscs"],
        others=(*unread, *others.result()),
        conntrack_max=conntrack.maximum(),
        namespaces={item["nsid"]: item["name"] for item in shown["namespaces"] if "name" in item},
        ipv6=dict(_observe_ipv6()),
        tunnels=tunnels,
    )


def _observe_tunnels(links: list[dict[str, Any]]) -> tuple[dict[str, Tunnel], list[str]]:
    """All that can be read, and why the others cannot."""
    found: dict[str, Tunnel] = {}
    unread = []
    for link in links:
        if virtual_links.kind_of(link) == wireguard.KIND:
            name = link["ifname"]
            try:
                found[name] = replace(wireguard.observe(name), up="UP" in link["flags"])
            except RekernelError as error:
                unread.append(f"{name} ({wireguard.KIND}, which cannot be read: {error.message})")
    return found, unread


def _observe_ipv6(
    conf: Path = Path("/proc/sys/net/ipv6/conf"),
) -> Iterator[tuple[str, dict[str, str]]]:
    for path in sorted(conf.glob("*/")):
        # An interface may go meanwhile.
        with suppress(FileNotFoundError):
            yield path.name, {name: (path / name).read_text().strip() for name in _IPV6}


def _observe_others() -> Iterator[str]:
    """What has no place in the handover, in words."""
    for name in ("ip_tables_names", "ip6_tables_names"):
        try:
            tables = Path("/proc/net", name).read_text().split()
        except OSError:
            continue
        if tables:
            yield f"legacy iptables ({', '.join(tables)})"
    for kind in ("policy", "state"):
        if run(["ip", "xfrm", kind, "list"], check=False).strip():
            yield f"IPsec (ip xfrm {kind})"


def unsupported(facts: NetworkFacts) -> list[str]:
    """Interfaces (with their kind) and routes that :func:`describe` cannot make again."""
    found = []
    for link in _own_links(facts):
        if virtual_links.kind_of(link) and (why := virtual_links.unsupported(link)):
            found.append(f"{link['ifname']} ({why})")
    for route in _own_routes(facts):
        if "nexthops" in route or "encap" in route:
            found.append(f"route to {route['dst']} (several next hops or an encapsulation)")
    for family, rules in facts.rules.items():
        for rule in rules:
            strange = sorted(rule.keys() - _RULE_WORDS.keys() - _RULE_PARTS)
            if strange:
                found.append(f"routing rule {rule['priority']} of {family} ({', '.join(strange)})")
    for qdisc in facts.qdiscs:
        if qdisc["kind"] not in _DEFAULT_QDISCS:
            found.append(f"traffic control on {qdisc['dev']} ({qdisc['kind']})")
    return [*found, *facts.filter.problems, *facts.others]


def describe(facts: NetworkFacts) -> Network:
    """The settings as scripts. Loopback comes first, then links, addresses, routes.

    Raises BlockedError if a tunnel could not be read.
    """
    own = _own_links(facts)
    for name in (link["ifname"] for link in own if virtual_links.kind_of(link) == wireguard.KIND):
        if name not in facts.tunnels:
            raise BlockedError(f"the tunnel {name} cannot be read any more", "try again")
    devices = [link for link in own if not virtual_links.kind_of(link)]
    made = virtual_links.ordered(
        link for link in own if virtual_links.kind_of(link) in virtual_links.KINDS
    )
    # By the address that a device has by itself: a bond gives it another one.
    links = [
        Link(
            link["ifname"],
            link.get("permaddr", link["address"]),
            facts.ipv6.get(link["ifname"], {}),
        )
        for link in devices
        if link["ifname"] != "lo"
    ]
    lines = [line for link in made for line in virtual_links.making(link)]
    for link in (*devices, *made):
        lines += virtual_links.joining(link, facts.links)
    # A disabled queue or flag follows from "up"; MTU does not.
    for link in (*devices, *made):
        words = [f"link set dev {link['ifname']} mtu {link['mtu']}"]
        if "permaddr" in link and "master" not in link:
            words.append(f"address {link['address']}")
        # Before it is up: an address would be there already.
        if link.get("inet6_addr_gen_mode", "eui64") != "eui64":
            words.append(f"addrgenmode {link['inet6_addr_gen_mode']}")
        lines.append(" ".join([*words, "up" if "UP" in link["flags"] else "down"]))
    known = {link["ifname"] for link in (*devices, *made)}
    for entry in facts.addresses:
        if entry["ifname"] in known:
            lines += [
                line
                for info in entry.get("addr_info", [])
                if (line := _address(entry["ifname"], info)) is not None
            ]
    routes = [route for route in _own_routes(facts) if route.get("dev") in {*known, None}]
    # A gateway is taken only if there is a way to it.
    routes.sort(key=lambda route: "gateway" in route or "via" in route)
    lines += _route_lines([route for route in routes if not {"nexthops", "encap"} & route.keys()])
    for neighbour in facts.neighbours:
        if "proxy" in neighbour and neighbour.get("dev") in known:
            lines.append(f"neighbour replace proxy {neighbour['dst']} dev {neighbour['dev']}")
        states = neighbour.get("state", [])
        if neighbour.get("dev") in known and "lladdr" in neighbour and "FAILED" not in states:
            state = "permanent" if "PERMANENT" in states else "stale"
            lines.append(
                f"neighbour replace {neighbour['dst']} lladdr {neighbour['lladdr']} "
                f"dev {neighbour['dev']} nud {state}"
            )
    return Network(
        lock_rules=LOCK_RULES,
        unlock_rules=UNLOCK_RULES,
        tables=facts.filter.tables,
        saved=facts.filter.saved,
        links=tuple(links),
        batch="\n".join(lines) + "\n",
        rules={family: _rules(family, rules) for family, rules in facts.rules.items()},
        conntrack_max=facts.conntrack_max,
        tunnels=facts.tunnels,
    )


def _own_links(facts: NetworkFacts) -> list[dict[str, Any]]:
    """All but what engines make again: the ends of containers' interfaces, and their bridges."""
    ends = {
        link["ifname"]
        for link in facts.links
        if virtual_links.kind_of(link) == "veth"
        and (
            podman.is_namespace(facts.namespaces.get(link.get("link_netnsid", -1), ""))
            or docker.is_bridge(link.get("master", ""))
        )
    }
    masters = {link["ifname"]: link.get("master") for link in facts.links}
    bridges = {
        master
        for master in masters.values()
        if master and {name for name in masters if masters[name] == master} <= ends
    }
    return [link for link in facts.links if link["ifname"] not in ends | bridges]


def _rules(family: str, rules: list[dict[str, Any]]) -> str:
    defaults = [
        {"priority": priority, "src": "all", "table": table}
        for priority, table in _DEFAULT_RULES[family].items()
    ]
    wanted = [{key: rule[key] for key in rule if rule[key] != "kernel"} for rule in rules]
    lines = [_rule(rule) for rule in wanted if rule not in defaults]
    lines += [f"rule del priority {rule['priority']}" for rule in defaults if rule not in wanted]
    return "".join(f"{line}\n" for line in lines)


def _rule(rule: dict[str, Any]) -> str:
    words = ["rule add"]
    if "not" in rule:
        words.append("not")
    for key, word in _RULE_WORDS.items():
        if key in rule and word:
            words.append(f"{word} {rule[key]}" + _rule_part(rule, key))
    words += [rule["action"]] if "action" in rule else []
    return " ".join(words)


def _rule_part(rule: dict[str, Any], key: str) -> str:
    """The second half of a value that iproute2 shows in two."""
    if key in ("src", "dst") and f"{key}len" in rule:
        return f"/{rule[f'{key}len']}"
    if key == "fwmark" and "fwmask" in rule:
        return f"/{rule['fwmask']}"
    for first, last in _RULE_RANGES:
        if key == first:
            return f"-{rule.get(last, rule[first])}"
    return ""


def _address(device: str, info: dict[str, Any]) -> str | None:
    # The kernel makes an interface's own IPv6 link-local address again by itself.
    if info.get("protocol") == "kernel_ll":
        return None
    local = info["local"]
    if "address" in info:
        local += f" peer {info['address']}"
    words = [f"address replace {local}/{info['prefixlen']} dev {device}"]
    if info.get("label", device) != device:
        words.append(f"label {info['label']}")
    if "broadcast" in info:
        words.append(f"broadcast {info['broadcast']}")
    if info.get("scope") not in (None, "global"):
        words.append(f"scope {info['scope']}")
    if info["family"] == "inet6" and device != "lo":
        # Duplicate detection would hold the address back for a second.
        words.append("nodad")
    lifetime = info.get("valid_life_time", 2**32 - 1)
    if lifetime != 2**32 - 1:
        words.append(f"valid_lft {lifetime} preferred_lft {info['preferred_life_time']}")
    if info.get("noprefixroute"):
        words.append("noprefixroute")
    return " ".join(words)


def _own_routes(facts: NetworkFacts) -> list[dict[str, Any]]:
    """All but those that the kernel makes by itself when an address appears, and what it was told
    by routers in passing.

    To some addresses it makes none (noprefixroute): NetworkManager does, and calls it the kernel's.
    """
    bare = {
        (entry["ifname"], _network(text))
        for entry in facts.addresses
        for info in entry.get("addr_info", [])
        if info.get("noprefixroute")
        for text in (f"{info.get('address', info['local'])}/{info['prefixlen']}", info["local"])
    }
    found: list[dict[str, Any]] = []
    for route in facts.routes:
        protocol = route.get("protocol")
        # One whose time is over stays listed for a while.
        over = route.get("expires", 1) <= 0
        if protocol == "redirect" or over or route.get("table") in ("local", "255"):
            continue
        if protocol == "kernel" and (route.get("dev"), _network(_destination(route))) not in bare:
            continue
        if protocol == "ra" and "nexthops" in route:
            # Of several hops one will do, until the routers are heard again.
            route = {key: value for key, value in route.items() if key != "nexthops"} | {
                key: value for key, value in route["nexthops"][0].items() if key != "weight"
            }
        found.append(route)
    return [route | _interim(route, found) for route in found]


def _interim(route: dict[str, Any], routes: list[dict[str, Any]]) -> dict[str, Any]:
    """What is changed of what a router announced, so that it serves until that is heard again.

    In the place of the kernel's own it would keep that out, and with it what else is announced;
    beside one of the same metric it would become a second hop. So it comes behind, the preferred
    ones first.
    """
    if route.get("protocol") != "ra":
        return {}
    alike = [
        other
        for other in routes
        if other.get("protocol") == "ra"
        and all(other.get(key) == route.get(key) for key in ("family", "dst", "metric", "table"))
    ]
    alike.sort(key=lambda other: _PREFERENCES.index(other.get("pref", "medium")))
    metric = route.get("metric", 1024) + 1 + alike.index(route)
    return {"metric": metric, "expires": route.get("expires", _INTERIM_S)}


def _network(text: str) -> str:
    # Nearly never wanted, and slow to import.
    import ipaddress

    return str(ipaddress.ip_interface(text).network)


def _destination(route: dict[str, Any]) -> str:
    # A line of a batch has no -6: the family must show in what it names.
    return _EVERYTHING[route["family"]] if route["dst"] == "default" else str(route["dst"])


def _route_lines(routes: list[dict[str, Any]]) -> list[str]:
    """In their order. One of IPv4 may take the place of what the kernel made; to replace one of
    IPv6 takes that of one by way of another interface.
    """
    lines = []
    before: set[tuple[Any, ...]] = set()
    for route in routes:
        key = tuple(route.get(name) for name in ("family", "dst", "metric", "table"))
        first = key not in before and route["family"] == "-4"
        before.add(key)
        lines.append(_route("replace" if first else "append", route))
    return lines


def _route(verb: str, route: dict[str, Any]) -> str:
    words = [f"route {verb} {route.get('type', 'unicast')} {_destination(route)}"]
    if "via" in route:
        words.append(f"via {route['via']['family']} {route['via']['host']}")
    for key, word in (
        ("from", "from"),
        ("gateway", "via"),
        ("dev", "dev"),
        ("protocol", "proto"),
        ("scope", "scope"),
        ("prefsrc", "src"),
        ("metric", "metric"),
        ("table", "table"),
    ):
        if key in route:
            words.append(f"{word} {route[key]}")
    if "onlink" in route.get("flags", []):
        words.append("onlink")
    if "expires" in route:
        words.append(f"expires {route['expires']}")
    if route.get("pref", "medium") != "medium":
        words.append(f"pref {route['pref']}")
    for metric in route.get("metrics", []):
        words += [f"{name} {value}" for name, value in metric.items()]
    return " ".join(words)


def lock() -> None:
    """Drop every packet from now on."""
    run(["nft", "-f", "-"], stdin=LOCK_RULES)


def unlock() -> None:
    """Undo :func:`lock`; no lock is no error. Raises RekernelError if it may still be there."""
    # In one transaction: to delete what is not there fails, and nothing but words tells why.
    run(["nft", "-f", "-"], stdin=f"table inet {TABLE}\n{UNLOCK_RULES}")
