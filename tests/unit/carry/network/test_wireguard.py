"""Tunnels, as wg tells of them."""

from __future__ import annotations

from typing import Any

import pytest

from rekernel.carry.network import observe as network
from rekernel.carry.network import wireguard
from rekernel.errors import RekernelError
from rekernel.records import replace

SHOWN = """\
[Interface]
ListenPort = 51820
FwMark = 0xca6c
PrivateKey = YAnz5TF+lXXJte14tji3zlMNftf3cTXDhEFAiAdzg14=

[Peer]
PublicKey = far
PresharedKey = shared=
AllowedIPs = 10.0.0.1/32, fd00::/64
Endpoint = [2001:db8::1]:51820

[Peer]
PublicKey = kept
AllowedIPs = 10.0.0.2/32
Endpoint = 192.0.2.1:7
PersistentKeepalive = 15

[Peer]
PublicKey = roaming
AllowedIPs = 10.0.0.3/32
"""


def test_nothing_is_sent_before_the_commit_and_then_to_whom_it_can_be() -> None:
    tunnel = wireguard.parse(SHOWN)
    assert tunnel.config == SHOWN.replace("PersistentKeepalive = 15\n", "")
    assert " ".join(tunnel.wake) == (
        "peer far persistent-keepalive 25 peer kept persistent-keepalive 15"
    )
    assert " ".join(tunnel.settle) == "peer far persistent-keepalive off"


def test_one_that_keeps_alive_nobody_knows_where() -> None:
    tunnel = wireguard.parse("[Interface]\n[Peer]\nPublicKey = a\nPersistentKeepalive = 5\n")
    assert " ".join(tunnel.wake) == "peer a persistent-keepalive 5"
    assert tunnel.settle == ()


def test_what_cannot_be_read_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str]) -> str:
        if argv[-1] == "wg0":
            return SHOWN
        raise RekernelError("wg is not installed")

    monkeypatch.setattr(wireguard, "run", run)
    links: list[dict[str, Any]] = [
        {"ifname": name, "flags": ["NOARP"], "linkinfo": {"info_kind": "wireguard"}}
        for name in ("wg0", "wg1")
    ]
    found, unread = network._observe_tunnels([{"ifname": "eth0"}, *links])
    assert found == {"wg0": replace(wireguard.parse(SHOWN), up=False)}
    assert unread == ["wg1 (wireguard, which cannot be read: wg is not installed)"]
