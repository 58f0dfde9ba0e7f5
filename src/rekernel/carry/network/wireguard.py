"""Tunnels of WireGuard: port, keys and peers, as wg(8) writes them out and takes them again."""

from __future__ import annotations

from rekernel.carry.network.entry import Tunnel
from rekernel.run import run

KIND = "wireguard"
_KEY, _ENDPOINT, _KEEPALIVE = "PublicKey", "Endpoint", "PersistentKeepalive"
# Seconds; set where there was none, so that something is sent at once, and taken back.
_FOR_A_MOMENT = "25"


def observe(name: str) -> Tunnel:
    """A tunnel as wg(8) writes it out. Raises RekernelError if it cannot be read.

    Its private key is in it: this must not get into a report.
    """
    return parse(run(["wg", "showconf", name]))


def parse(config: str) -> Tunnel:
    """From what ``wg showconf`` prints.

    Nothing may be sent before the commit, as the lock would drop it and the kernel would not try
    again for 5 s. Afterwards something must be: until it hears from us, a peer keeps on sending
    with the keys that were agreed on before, and gives those up after 15 s only.
    """
    lines = config.splitlines()
    wake: list[str] = []
    settle: list[str] = []
    for peer in _peers(lines):
        if _ENDPOINT in peer:
            words = ["peer", peer[_KEY], "persistent-keepalive"]
            wake += [*words, peer.get(_KEEPALIVE, _FOR_A_MOMENT)]
            if _KEEPALIVE not in peer:
                settle += [*words, "off"]
        elif _KEEPALIVE in peer:
            wake += ["peer", peer[_KEY], "persistent-keepalive", peer[_KEEPALIVE]]
    kept = [line for line in lines if not line.startswith(_KEEPALIVE)]
    return Tunnel("\n".join(kept) + "\n", tuple(wake), tuple(settle))


def _peers(lines: list[str]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for line in lines:
        if line == "[Peer]":
            found.append({})
        elif found and " = " in line:
            name, _, value = line.partition(" = ")
            found[-1][name] = value
    return found
