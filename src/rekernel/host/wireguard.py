"""Tunnels of WireGuard: port, keys and peers, as wg(8) writes them out and takes them again.

What the two ends agree on for some minutes does not travel: whoever has something to send first
agrees on it anew, as after two minutes of traffic in any case.
"""

from __future__ import annotations

from collections.abc import Iterable

from rekernel.errors import RekernelError
from rekernel.run import run

KIND = "wireguard"
# They have made an interface and are done; started again, they would find it there and fail.
SERVICES = "wg-quick@*.service"


def observe(names: Iterable[str]) -> dict[str, str]:
    """Name of an interface -> input for ``wg setconf``. One that cannot be read is left out.

    The private key is in it: this must not get into a report.
    """
    found = {}
    for name in names:
        try:
            found[name] = run(["wg", "showconf", name])
        except RekernelError:
            continue
    return found
