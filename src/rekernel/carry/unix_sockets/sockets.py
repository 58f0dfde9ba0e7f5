"""The unix sockets of this machine and who is connected with whom."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Sequence

from rekernel import netlink
from rekernel.records import record

JOURNAL_STDOUT = "/run/systemd/journal/stdout"
# Datagram sockets that the agent opens again before the restore; criu connects to them by path.
JOURNAL_DATAGRAM = ("/run/systemd/journal/dev-log", "/run/systemd/journal/socket")

# include/uapi/linux/sock_diag.h, include/uapi/linux/unix_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
# family, protocol, pad, states, inode, show (name, peer, pending connections), cookie
_REQUEST = struct.Struct("=BBHIIIQ")
_SHOW = 0x01 | 0x04 | 0x08
# family, type, state, pad, inode, cookie
_MESSAGE = struct.Struct("=BBxxIQ")
_NAME, _PEER, _ICONS = 0, 2, 3


@record
class UnixSocket:
    """One unix socket. ``peer`` is 0 without one, and for a connection that waits for accept(2).

    ``kind``: SOCK_STREAM and so on. ``name``: what it is bound to, "" if it is not; an abstract
    one begins with a NUL. ``waiting``: of a listener, the clients that it has not accepted; 0 for
    one that left again.
    """

    kind: int
    inode: int
    name: str = ""
    peer: int = 0
    waiting: tuple[int, ...] = ()


def parse(body: bytes) -> UnixSocket:
    """From what the kernel sends for a unix_diag_req, without the header."""
    _, kind, inode, _ = _MESSAGE.unpack_from(body)
    values = netlink.attributes(body, _MESSAGE.size)
    name = values.get(_NAME, b"")
    waiting = values.get(_ICONS, b"")
    return UnixSocket(
        kind,
        inode,
        # An abstract name may hold anything; a path ends before its terminator.
        os.fsdecode(name if name[:1] == b"\0" else name.rstrip(b"\0")),
        int.from_bytes(values.get(_PEER, b""), "little"),
        tuple(item for (item,) in struct.iter_unpack("=I", waiting)),
    )


def observe() -> list[UnixSocket]:
    """Every unix socket of this network namespace. Raises OSError."""
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW, 0)
    found = netlink.dump(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request, "sock_diag")
    return [parse(reply[netlink.HEADER.size :]) for reply in found]


def journal_streams(sockets: Iterable[UnixSocket]) -> set[int]:
    """Inodes of the services' ends of connections to the journal's stdout socket."""
    return {item.peer for item in sockets if item.name == JOURNAL_STDOUT and item.peer}


def sent_to_init(sockets: Iterable[UnixSocket]) -> set[int]:
    """Inodes of sockets that are connected with one of init, which boots afresh.

    What init starts may have got some that init has as well.
    """
    of_init = holders([1])
    return {item.inode for item in sockets if item.peer in of_init}


def holders(pids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Inode -> process and descriptor, of all sockets that these processes have open.

    The first that has it counts; a process that is gone has none.
    """
    found: dict[int, tuple[int, int]] = {}
    for pid in pids:
        try:
            entries = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for entry in entries:
            try:
                link = os.readlink(f"/proc/{pid}/fd/{entry}")
            except OSError:
                continue
            if link.startswith("socket:["):
                found.setdefault(int(link[8:-1]), (pid, int(entry)))
    return found


def leading_out(
    own: Iterable[int], sockets: Sequence[UnixSocket]
) -> list[tuple[UnixSocket, UnixSocket | None]]:
    """Connections that leave a tree with these socket inodes: the near end and the far one.

    The far end is None if it is not of this network namespace. Left out is what needs nothing:
    datagrams to the journal, where criu connects again by path.
    """
    inside = set(own)
    by_inode = {item.inode: item for item in sockets}
    found = []
    for item in sockets:
        if item.inode not in inside or not item.peer or item.peer in inside:
            continue
        far = by_inode.get(item.peer)
        if far is None or far.name not in JOURNAL_DATAGRAM:
            found.append((item, far))
    return found


def unaccepted(own: Iterable[int], sockets: Sequence[UnixSocket]) -> list[UnixSocket]:
    """Sockets among these that connect to somebody who has not accepted yet."""
    inside = set(own)
    waiting = {inode for item in sockets for inode in item.waiting}
    return [item for item in sockets if item.inode in inside and item.inode in waiting]
