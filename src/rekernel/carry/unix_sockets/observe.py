"""Connections over unix sockets that lead out of a tree: taken at the cut, made again by the agent.

criu dumps one tree at a time and cannot follow a connection into another. Such an end is external
for it: it asks for a socket on restore and touches neither what waits in it nor its settings, so
these are read here. Datagram sockets it restores alone, unconnected (carry/unix_sockets/images.py).
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress

from rekernel.carry.unix_sockets import socket_queues
from rekernel.carry.unix_sockets.entry import DatagramConnection, UnixConnection, UnixEnd
from rekernel.carry.unix_sockets.sockets import (
    JOURNAL_STDOUT,
    UnixSocket,
    holders,
    journal_streams,
    leading_out,
    observe,
    sent_to_init,
    unaccepted,
)
from rekernel.criu.descriptors import External, socket_of
from rekernel.criu.entry import Inherited
from rekernel.errors import RekernelError
from rekernel.records import record
from rekernel.systemd import journal

# include/uapi/asm-generic/socket.h; sizes are doubled when set.
_SO_PASSCRED, _SO_RCVTIMEO, _SO_SNDTIMEO, _SO_PASSSEC, _SO_PEEK_OFF = 16, 20, 21, 34, 42
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_LARGEST_MESSAGE = 1 << 20


class UnsettledError(RekernelError):
    """Something is on its way between two trees that criu cannot dump there; an instant later it
    will have arrived: a connection that is not accepted yet, a descriptor, credentials.
    """


@record
class Member:
    """A tree as far as connections are concerned."""

    name: str
    pids: Sequence[int]


@record
class Taken:
    """``externals``: of each tree, in their order. ``queues``: blob -> contents.
    ``disconnected``: inodes of the sockets behind ``datagrams``.
    """

    connections: tuple[UnixConnection, ...]
    datagrams: tuple[DatagramConnection, ...]
    disconnected: frozenset[int]
    externals: tuple[tuple[External, ...], ...]
    queues: dict[str, bytes]


def take(trees: Sequence[Member]) -> Taken:
    """Connections that lead out of these frozen trees, and what waits in them.

    Raises UnsettledError if an instant more is needed, RekernelError for what cannot be carried.
    """
    sockets = observe()
    own = [holders(tree.pids) for tree in trees]
    owner = _owners(trees, own, {*journal_streams(sockets), *sent_to_init(sockets)})
    _assert_accepted(trees, own, owner, sockets)
    maker = _Maker([[] for _ in trees])
    done: set[int] = set()
    for index, inodes in enumerate(own):
        for near, far in leading_out(inodes, sockets):
            if near.inode in done:
                continue
            other = owner.get(near.peer)
            end = (index, near.inode, *inodes[near.inode])
            if near.kind == socket.SOCK_DGRAM:
                maker.datagram(end, own[other][near.peer] if other is not None else (0, 0))
            elif other is not None:
                maker.link(near.kind, [end, (other, near.peer, *own[other][near.peer])])
                done.add(near.peer)
            elif far is not None and far.name == JOURNAL_STDOUT:
                maker.journal(end, far.inode)
            else:
                maker.link(near.kind, [end])
    return Taken(
        tuple(maker.connections),
        tuple(maker.datagrams),
        frozenset(maker.disconnected),
        tuple(map(tuple, maker.externals)),
        maker.queues,
    )


def _owners(
    trees: Sequence[Member], own: Sequence[dict[int, tuple[int, int]]], harmless: Collection[int]
) -> dict[int, int]:
    owner: dict[int, int] = {}
    for index, inodes in enumerate(own):
        for inode in inodes:
            # Of one to the journal or to init each gets one of its own: nobody can tell.
            if inode in owner and inode not in harmless:
                raise RekernelError(
                    f"{trees[owner[inode]].name} and {trees[index].name} share a socket",
                    "restart one of them, or let policy restart it",
                )
            owner[inode] = index
    return owner


def _assert_accepted(
    trees: Sequence[Member],
    own: Sequence[dict[int, tuple[int, int]]],
    owner: dict[int, int],
    sockets: Sequence[UnixSocket],
) -> None:
    listeners = {inode: item for item in sockets for inode in item.waiting}
    for item in sockets:
        # A client that went away again before it was let in: criu refuses its listener.
        if item.inode in owner and 0 in item.waiting:
            raise UnsettledError(
                f"somebody knocked at {item.name} of {trees[owner[item.inode]].name} and left",
                "see why nobody accepts connections there",
            )
    for tree, inodes in zip(trees, own, strict=True):
        for item in unaccepted(inodes, sockets):
            listener = listeners[item.inode]
            if listener.inode not in inodes:
                raise UnsettledError(
                    f"{tree.name} waits to be let in at {listener.name}",
                    "see why nobody accepts connections there",
                )


class _Maker:
    def __init__(self, externals: list[list[External]]) -> None:
        self.externals = externals
        self.connections: list[UnixConnection] = []
        self.datagrams: list[DatagramConnection] = []
        self.disconnected: set[int] = set()
        self.queues: dict[str, bytes] = {}

    def journal(self, end: tuple[int, int, int, int], far: int) -> None:
        """A connection to the journal's stdout socket, and the inode of the journal's end."""
        tree, inode, pid, number = end
        # All sockets are of one file system.
        device = os.stat(f"/proc/{pid}/fd/{number}").st_dev
        given = Inherited("journal", _argument(inode), header=journal.header_of(device, far))
        self.externals[tree].append(External(f"unix[{inode}]", given))

    def link(self, kind: int, ends: Sequence[tuple[int, int, int, int]]) -> None:
        """A connection with these (tree, inode, process, descriptor) as its ends."""
        found = []
        for end, (tree, inode, pid, number) in enumerate(ends):
            with socket_of(pid, number) as opened:
                found.append(self._read(opened, inode, pid))
            given = Inherited("unix", _argument(inode), connection=len(self.connections), end=end)
            self.externals[tree].append(External(f"unix[{inode}]", given))
        self.connections.append(UnixConnection(kind, tuple(found)))

    def datagram(self, end: tuple[int, int, int, int], target: tuple[int, int]) -> None:
        """A datagram socket, and the process and descriptor that it is connected with."""
        tree, inode, pid, number = end
        self.externals[tree].append(External(f"unix[{inode}]", None))
        self.disconnected.add(inode)
        self.datagrams.append(DatagramConnection(pid, number, *target))

    def _read(self, opened: socket.socket, inode: int, pid: int) -> UnixEnd:
        messages = list(waiting(opened))
        name = f"unix/{inode}" if messages else ""
        if messages:
            self.queues[name] = socket_queues.pack(messages)
        return UnixEnd(
            pid=pid,
            queue=name,
            closed=_receives_no_more(opened),
            flags=fcntl.fcntl(opened, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_ASYNC),
            options=dict(_options(opened)),
        )


def _argument(inode: int) -> str:
    return f"fd[{{fd}}]:socket:[{inode}]"


def waiting(opened: socket.socket) -> Iterator[bytes]:
    """What a unix socket has received and nobody has read; leaves it there.

    Of a stream the pieces are as the kernel keeps them. Raises UnsettledError for a descriptor or
    credentials that are on their way.
    """
    before = opened.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    opened.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    try:
        # Reset: by somebody who is not frozen, and has gone since.
        with suppress(BlockingIOError, ConnectionResetError):
            empty = False
            while True:
                data, extra, flags, _ = opened.recvmsg(
                    _LARGEST_MESSAGE,
                    socket.CMSG_SPACE(1024),
                    socket.MSG_PEEK | socket.MSG_DONTWAIT,
                )
                _assert_only_data(extra)
                if flags & socket.MSG_TRUNC:
                    raise RekernelError("a message in a unix socket is larger than 1 MiB")
                if not data and (empty or opened.type != socket.SOCK_SEQPACKET):
                    return
                # The end looks like an empty packet, but comes again and again.
                empty = not data
                if data:
                    yield data
    finally:
        opened.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, before)


def _assert_only_data(extra: Iterable[tuple[int, int, bytes]]) -> None:
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            for (number,) in struct.iter_unpack("i", data[: len(data) // 4 * 4]):
                os.close(number)
            what = "a descriptor is"
        else:
            what = "credentials are"
        raise UnsettledError(f"{what} on the way between two services", "try again in a moment")


def _receives_no_more(opened: socket.socket) -> bool:
    poll = select.poll()
    poll.register(opened, select.POLLRDHUP)
    return bool(poll.poll(0))


def _options(opened: socket.socket) -> Iterator[tuple[str, str]]:
    for name, forced in ((socket.SO_SNDBUF, _SO_SNDBUFFORCE), (socket.SO_RCVBUF, _SO_RCVBUFFORCE)):
        size = opened.getsockopt(socket.SOL_SOCKET, name) // 2
        yield str(forced), struct.pack("i", size).hex()
    for name in (_SO_PASSCRED, _SO_PASSSEC, _SO_RCVTIMEO, _SO_SNDTIMEO):
        value = opened.getsockopt(socket.SOL_SOCKET, name, 16)
        if any(value):
            yield str(name), value.hex()
