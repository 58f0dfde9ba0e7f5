"""What the packet filter remembers of connections, set again from requests in the handover."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from rekernel.netlink import ERROR, error_number, messages
from rekernel.pid1.console import miss, say

_MAXIMUM = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_NETLINK_NETFILTER = 12
# Of requests sent at once: their refusals must find room in the socket.
_AT_ONCE = 64


def restore(requests: bytes, maximum: int) -> None:
    """Set all of it, once the rules stand that need it; what is refused is counted and said.

    ``maximum``: how many it may remember. Raises OSError if nothing can be set at all.
    """
    refused: dict[int, int] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        for chunk in _chunks(requests):
            sock.send(chunk)
            for number in _refusals(sock):
                refused[number] = refused.get(number, 0) + 1
            if maximum and _MAXIMUM.exists():
                # The first request may have loaded the module.
                _allow(maximum)
                maximum = 0
    for number, count in refused.items():
        miss(f"connection tracking: {count} entries refused, error {number}")


def _allow(maximum: int) -> None:
    try:
        _MAXIMUM.write_text(str(maximum))
    except OSError as error:
        say(f"{_MAXIMUM}: {error.strerror}")


def _chunks(requests: bytes) -> Iterator[bytes]:
    ends = [end for _, _, end in messages(requests)]
    begin = 0
    for end in (*ends[_AT_ONCE - 1 :: _AT_ONCE], *ends[-1:]):
        if end > begin:
            yield requests[begin:end]
        begin = end


def _refusals(sock: socket.socket) -> Iterator[int]:
    """Error numbers; the kernel has dealt with all that was sent."""
    while True:
        try:
            data = sock.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        for kind, start, _ in messages(data):
            if kind == ERROR and (number := error_number(data, start)):
                yield number
