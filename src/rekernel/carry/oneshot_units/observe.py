"""Services that have set something up in the kernel and are done with it.

What they set up is carried. Started again, nftables.service would flush what others have added
since, and wg-quick would fail, as its interface is there. So systemd is told that they are done,
but for those whose part the next kernel did not take.
"""

from __future__ import annotations

from collections.abc import Collection

from rekernel.carry.network.entry import FILTER
from rekernel.records import record
from rekernel.systemd.units import Unit, exited

_OF_FILTER = ("netfilter-persistent.service", "nftables.service", "ufw.service")
_TUNNEL, _SUFFIX = "wg-quick@", ".service"


@record
class Settled:
    """A service, and which part of the network it has set up."""

    unit: Unit
    part: str


def observe(tunnels: Collection[str]) -> list[Settled]:
    """Services that are active and done. ``tunnels``: names of the interfaces that are carried."""
    found = [Settled(unit, FILTER) for unit in exited(*_OF_FILTER)]
    for unit in exited(f"{_TUNNEL}*{_SUFFIX}"):
        name = unit.name.removeprefix(_TUNNEL).removesuffix(_SUFFIX)
        if name in tunnels:
            found.append(Settled(unit, name))
    return found
