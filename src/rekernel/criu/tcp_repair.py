"""TCP sockets that a criu left in repair mode when it was killed.

criu switches a connection to repair mode to read its state, and back when it lets the process go
(tcp(7), TCP_REPAIR). In that mode every read fails with EPERM, which no program expects.
"""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterable
from contextlib import suppress

from rekernel.criu.descriptors import descriptors, socket_of

# include/uapi/linux/tcp.h
_TCP_REPAIR = 19


def end(pids: Iterable[int]) -> int:
    """Switch every connection of these processes back; returns how many it was.

    A process that is gone has none.
    """
    ended = 0
    for pid in pids:
        with suppress(OSError):
            for item in descriptors(pid):
                if stat.S_ISSOCK(item.mode):
                    with suppress(OSError), socket_of(pid, item.number) as opened:
                        ended += _end(opened)
    return ended


def _end(item: socket.socket) -> bool:
    inet = item.family in (socket.AF_INET, socket.AF_INET6)
    if not inet or item.type != socket.SOCK_STREAM:
        return False
    if not item.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR):
        return False
    item.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
    return True
