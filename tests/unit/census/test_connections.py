"""Connections from real ss output (iproute2 6.15 on Linux 6.12)."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekernel.census import connections

SS = (Path(__file__).parent / "data" / "ss-tunHp.txt").read_text()


def test_only_the_sockets_of_these_processes() -> None:
    assert connections.parse_ss(SS, [351]) == [
        ["tcp", "127.0.0.1:6379", "127.0.0.1:36762"],
        ["tcp", "[::1]:6379", "[::1]:55934"],
    ]


def test_a_socket_that_two_processes_share_counts_once() -> None:
    assert connections.parse_ss(SS, [650, 643]) == [["tcp", "10.77.0.2:22", "10.77.0.1:54442"]]


def test_udp_and_mapped_addresses() -> None:
    found = connections.parse_ss(SS, [652])
    assert ["udp", "127.0.0.1:43196", "127.0.0.1:5353"] in found
    assert ["tcp", "[::ffff:127.0.0.1]:42482", "[::ffff:127.0.0.1]:80"] in found
    assert len(found) == 5


def test_other_states_and_ownerless_sockets_are_left_out() -> None:
    text = (
        'tcp TIME-WAIT 0 0 127.0.0.1:80 127.0.0.1:1 users:(("x",pid=7,fd=1))\n'
        "tcp ESTAB 0 0 127.0.0.1:80 127.0.0.1:2\n"
    )
    assert connections.parse_ss(text, [7]) == []


def test_without_processes_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "run", lambda argv: pytest.fail("ss was run"))
    assert connections.established([]) == []
