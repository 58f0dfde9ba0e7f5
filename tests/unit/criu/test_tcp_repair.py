"""Connections that were left in repair mode."""

from __future__ import annotations

import os
import socket

import pytest

from rekernel.criu import tcp_repair

_TCP_REPAIR = 19


def test_a_connection_can_be_read_again() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
    ):
        far, _ = listener.accept()
        with far:
            far.sendall(b"x")
            try:
                near.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
            except PermissionError:
                pytest.skip("needs CAP_NET_ADMIN")
            with pytest.raises(PermissionError):
                near.recv(1)
            assert tcp_repair.end([os.getpid()]) == 1
            assert near.recv(1) == b"x"
            assert tcp_repair.end([os.getpid()]) == 0
            near.sendall(b"y")
            assert far.recv(1) == b"y"


def test_a_process_that_is_gone() -> None:
    assert tcp_repair.end([1 << 30]) == 0
