"""The network, as the agent sets it up again."""

from __future__ import annotations

from rekernel.records import field, record


@record
class Link:
    """A network interface: found by MAC address, given this name, then configured.

    ``ipv6``: values below /proc/sys/net/ipv6/conf/NAME.
    """

    name: str
    mac: str
    ipv6: dict[str, str] = field(default_factory=dict)


# The part of the network that is not a tunnel, for Network.settled.
FILTER = "packet filter"


@record
class Tunnel:
    """A tunnel of WireGuard: ``config`` is input for ``wg setconf``; ``wake`` and ``settle`` follow
    ``wg set NAME``, after the commit, in this order.
    """

    config: str
    wake: tuple[str, ...]
    settle: tuple[str, ...]
    up: bool = True


@record
class Network:
    """How to set up the network: rules and ``tables`` ("FAMILY NAME" -> text) are input for
    ``nft -f``, ``batch`` is for ``ip -batch``, ``saved`` ("PROGRAM TABLE" -> text) for the program.
    """

    lock_rules: str
    unlock_rules: str
    tables: dict[str, str]
    links: tuple[Link, ...]
    batch: str
    saved: dict[str, str] = field(default_factory=dict)
    # Routing rules: "-4" or "-6" -> input for ``ip FAMILY -batch``, which knows no other way.
    rules: dict[str, str] = field(default_factory=dict)
    # How many connections the packet filter may remember; 0 if it remembers none.
    conntrack_max: int = 0
    # By the names of their interfaces.
    tunnels: dict[str, Tunnel] = field(default_factory=dict)
    # Services that do not start again, unless the part that they have set up is missing: unit ->
    # part, which is the packet filter or a tunnel (carry/oneshot_units/observe.py).
    settled: dict[str, str] = field(default_factory=dict)
