"""Connections between trees: what is lost of one is a fact of the report."""

from __future__ import annotations

import os
import socket

from rekernel.carry.unix_sockets import restore as unix_sockets
from rekernel.carry.unix_sockets.entry import DatagramConnection, UnixConnection, UnixEnd
from rekernel.pid1 import console


def test_a_queue_that_cannot_be_read_is_missing() -> None:
    def read(blob: str) -> bytes:
        raise OSError(f"no blob {blob}")

    link = UnixConnection(socket.SOCK_STREAM, (UnixEnd(4711, "queues/1"), UnixEnd(4712)))
    unix_sockets.UnixConnections([link], read).close()
    lost = "what waits in a unix socket of process 4711 is lost: no blob queues/1"
    assert console.missing == [lost]


def test_a_link_that_is_whole_is_not() -> None:
    link = UnixConnection(socket.SOCK_STREAM, (UnixEnd(4711), UnixEnd(4712)))
    unix_sockets.UnixConnections([link], lambda blob: b"").close()
    assert console.missing == []


def test_a_datagram_socket_that_is_not_there_is_missing() -> None:
    unix_sockets.connect_datagrams([DatagramConnection(os.getpid(), 1 << 20)])
    (lost,) = console.missing
    assert lost.startswith(f"a datagram socket of process {os.getpid()} stays alone: ")
