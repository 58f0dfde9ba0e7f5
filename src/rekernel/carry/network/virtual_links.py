"""Interfaces that the kernel makes: VLANs, bridges, bonds, dummies and tunnels of WireGuard.

As lines for ``ip -batch``. What is set on one of them and differs from a fresh one of its kind is
set again; where there is no word for it :func:`unsupported` names it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rekernel.carry.network import wireguard
from rekernel.run import run_json

# What iproute2 shows of an interface -> how it takes it. Its own JSON is the only list of these.
_BRIDGE_WORDS = {
    "forward_delay": "forward_delay",
    "hello_time": "hello_time",
    "max_age": "max_age",
    "ageing_time": "ageing_time",
    "priority": "priority",
    "group_fwd_mask": "group_fwd_mask",
    "no_linklocal_learn": "no_linklocal_learn",
    "fdb_max_learned": "fdb_max_learned",
    "mcast_snooping": "mcast_snooping",
    "mcast_router": "mcast_router",
    "mcast_query_use_ifaddr": "mcast_query_use_ifaddr",
    "mcast_querier": "mcast_querier",
    "mcast_hash_max": "mcast_hash_max",
    "mcast_last_member_cnt": "mcast_last_member_count",
    "mcast_startup_query_cnt": "mcast_startup_query_count",
    "mcast_last_member_intvl": "mcast_last_member_interval",
    "mcast_membership_intvl": "mcast_membership_interval",
    "mcast_querier_intvl": "mcast_querier_interval",
    "mcast_query_intvl": "mcast_query_interval",
    "mcast_query_response_intvl": "mcast_query_response_interval",
    "mcast_startup_query_intvl": "mcast_startup_query_interval",
    "mcast_stats_enabled": "mcast_stats_enabled",
    "mcast_igmp_version": "mcast_igmp_version",
    "mcast_mld_version": "mcast_mld_version",
    "nf_call_iptables": "nf_call_iptables",
    "nf_call_ip6tables": "nf_call_ip6tables",
    "nf_call_arptables": "nf_call_arptables",
}
# In the order in which the kernel wants them.
_BOND_WORDS = {
    word: word
    for word in (
        "mode", "miimon", "updelay", "downdelay", "use_carrier", "arp_interval", "arp_validate",
        "arp_all_targets", "arp_ip_target", "primary_reselect", "fail_over_mac",
        "xmit_hash_policy", "resend_igmp", "num_peer_notif", "all_slaves_active", "min_links",
        "lp_interval", "packets_per_slave", "ad_lacp_rate", "ad_select", "tlb_dynamic_lb",
        "peer_notify_delay", "ad_lacp_active",
    )
}  # fmt: skip
_WORDS: dict[str, dict[str, str]] = {
    "bridge": _BRIDGE_WORDS,
    "bond": _BOND_WORDS,
    "dummy": {},
    wireguard.KIND: {},
}
# State, not settings; or set with the ports.
_STATE = {
    "bridge_id", "root_id", "root_port", "root_path_cost", "topology_change",
    "topology_change_detected", "hello_timer", "tcn_timer", "topology_change_timer", "gc_timer",
    "group_addr", "mcast_hash_elasticity", "fdb_n_learned",
    "active_slave", "primary", "ad_info", "ad_actor_sys_prio", "ad_user_port_key",
    "ad_actor_system",
}  # fmt: skip
# Of a bridge's port: the setting, and whether it is on at first.
_PORT = {
    "hairpin": False, "guard": False, "root_block": False, "fastleave": False, "learning": True,
    "flood": True, "mcast_flood": True, "bcast_flood": True, "mcast_to_unicast": False,
    "neigh_suppress": False, "isolated": False, "locked": False, "mab": False,
}  # fmt: skip
KINDS = (*_WORDS, "vlan")


def kind_of(link: Mapping[str, Any]) -> str:
    """ "" for an interface of a device."""
    return str(link.get("linkinfo", {}).get("info_kind", ""))


@functools.cache
def _fresh(kind: str, *words: str) -> dict[str, Any]:
    """The settings that an interface of this kind has at first; made where nobody sees it."""
    make = " ".join(["ip link add fresh type", kind, *words])
    shown = run_json(["unshare", "--net", "sh", "-c", f"{make} && ip -json -d link show fresh"])
    found: dict[str, Any] = shown[0]["linkinfo"].get("info_data", {})
    return found


def _changed(link: Mapping[str, Any]) -> dict[str, Any]:
    """What is set on a bridge, bond or dummy and is not so from the beginning."""
    kind = kind_of(link)
    data = link["linkinfo"].get("info_data", {})
    if not data:
        return {}
    mode = ("mode", data["mode"]) if kind == "bond" else ()
    fresh = _fresh(kind, *mode)
    found = {
        name: value
        for name, value in data.items()
        if name not in _STATE and value != fresh.get(name)
    }
    return found | {"mode": data["mode"]} if kind == "bond" else found


def unsupported(link: Mapping[str, Any]) -> str:
    """Why this interface cannot be made again, "" if it can."""
    kind = kind_of(link)
    if kind not in KINDS:
        return kind
    data = link["linkinfo"].get("info_data", {})
    if kind == "vlan":
        strange = sorted(data.keys() - {"protocol", "id", "flags"})
    elif data.get("stp_state"):
        # Its ports would wait for half a minute.
        strange = ["stp_state"]
    else:
        strange = sorted(_changed(link).keys() - _WORDS[kind].keys())
    return f"{kind} with {', '.join(strange)}" if strange else ""


def ordered(links: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each after what it stands on."""
    left = {link["ifname"]: link for link in links}
    found: list[Mapping[str, Any]] = []
    while left:
        ready = [link for link in left.values() if link.get("link") not in left]
        # A circle cannot be made, but must not end in one of ours.
        for link in ready or list(left.values()):
            found.append(left.pop(link["ifname"]))
    return found


def making(link: Mapping[str, Any]) -> list[str]:
    """Lines that make an interface that is not there yet. Tunnels are, as their keys come first."""
    kind = kind_of(link)
    if kind == wireguard.KIND:
        return []
    data = link["linkinfo"].get("info_data", {})
    name = link["ifname"]
    if kind == "vlan":
        flags = " ".join(f"{word} on" for word in _vlan_flags(data.get("flags", [])))
        return [
            f"link add link {link['link']} name {name} address {link['address']} type vlan "
            f"protocol {data.get('protocol', '802.1Q')} id {data['id']} {flags}".rstrip()
        ]
    words = [
        f"{_WORDS[kind][key]} {_value(value)}"
        for key, value in sorted(
            _changed(link).items(), key=lambda item: list(_WORDS[kind]).index(item[0])
        )
    ]
    return [" ".join([f"link add name {name} address {link['address']} type {kind}", *words])]


def _vlan_flags(flags: Sequence[str]) -> list[str]:
    known = {"GVRP": "gvrp", "MVRP": "mvrp", "LOOSE_BINDING": "loose_binding"}
    return [known[flag] for flag in flags if flag in known]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def joining(link: Mapping[str, Any], links: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines that put an interface, which is down, below its master."""
    if "master" not in link:
        return []
    name = link["ifname"]
    lines = [f"link set dev {name} master {link['master']}"]
    info = link.get("linkinfo", {})
    data = info.get("info_slave_data", {})
    if info.get("info_slave_kind") == "bridge":
        words = [
            f"{setting} {'on' if data[setting] else 'off'}"
            for setting, at_first in _PORT.items()
            if data.get(setting, at_first) != at_first
        ]
        if words:
            lines.append(" ".join([f"link set dev {name} type bridge_slave", *words]))
    for other in links:
        bond = other.get("linkinfo", {}).get("info_data", {})
        if other["ifname"] == link["master"] and bond.get("primary") == name:
            lines.append(f"link set dev {other['ifname']} type bond primary {name}")
    return lines
