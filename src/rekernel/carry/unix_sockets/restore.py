"""Connections over unix sockets between trees, made before the restore and given to each criu."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Sequence

from rekernel import syscalls
from rekernel.carry.unix_sockets import socket_queues
from rekernel.carry.unix_sockets.entry import DatagramConnection, UnixConnection, UnixEnd
from rekernel.pid1.background import Background
from rekernel.pid1.console import miss

# include/uapi/asm-generic/socket.h; nobody but us sends so much at once.
_SO_SNDBUFFORCE = 32
_ROOM_TO_FILL = 1 << 23
# Seconds for a connection, which takes no time.
_LIMIT_S = 5.0


class UnixConnections:
    """Connections made again; one that cannot be looks like one whose other side is gone."""

    def __init__(self, connections: Sequence[UnixConnection], read: Callable[[str], bytes]) -> None:
        """``read``: gives the blob with the queue of an end."""
        self._read = read
        self._sockets: dict[tuple[int, int], socket.socket] = {}
        for index, connection in enumerate(connections):
            self._make(index, connection)

    def take(self, connection: int, end: int) -> int:
        """A descriptor for one end; the caller closes it."""
        return os.dup(self._sockets[connection, end].fileno())

    def close(self) -> None:
        """What the trees hold is theirs alone from here on."""
        for opened in self._sockets.values():
            opened.close()

    def _make(self, index: int, connection: UnixConnection) -> None:
        pair = socket.socketpair(socket.AF_UNIX, connection.kind)
        for number, _ in enumerate(connection.ends):
            self._sockets[index, number] = pair[number]
        try:
            for end, sender in zip(connection.ends, reversed(pair), strict=False):
                self._fill(sender, self._read(end.queue) if end.queue else b"")
                if end.closed:
                    sender.shutdown(socket.SHUT_WR)
            for number, end in enumerate(connection.ends):
                _set_up(pair[number], end)
        except Exception as error:
            miss(
                f"what waits in a unix socket of process {connection.ends[0].pid} is lost: {error}"
            )
        if len(connection.ends) == 1:
            pair[1].close()

    def _fill(self, sender: socket.socket, queue: bytes) -> None:
        if not queue:
            return
        # The kernel counts more than the bytes; nobody reads yet, so nothing may wait here.
        sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 4 * len(queue) + _ROOM_TO_FILL)
        sender.setblocking(False)
        for message in socket_queues.unpack(queue):
            sender.sendall(message)
        sender.setblocking(True)


def _set_up(opened: socket.socket, end: UnixEnd) -> None:
    for name, value in end.options.items():
        opened.setsockopt(socket.SOL_SOCKET, int(name), bytes.fromhex(value))
    flags = fcntl.fcntl(opened, fcntl.F_GETFL)
    fcntl.fcntl(opened, fcntl.F_SETFL, flags | end.flags)


def connect_datagrams(connections: Sequence[DatagramConnection]) -> None:
    """Connect the datagram sockets of all trees, which are held."""
    for connection in connections:
        try:
            with _socket_of(connection.pid, connection.number) as near:
                _connect_one(near, connection)
        # All trees are held: nothing here is worth losing them.
        except Exception as error:
            miss(f"a datagram socket of process {connection.pid} stays alone: {error}")


def _connect_one(near: socket.socket, connection: DatagramConnection) -> None:
    if connection.target_pid:
        try:
            _connect(near, connection)
            return
        except OSError as error:
            far, pid = connection.target_pid, connection.pid
            miss(f"process {far}, which {pid} sends to, is not there: {error}")
    _connect_to_nobody(near)


def _socket_of(pid: int, number: int) -> socket.socket:
    return socket.socket(fileno=syscalls.take_descriptor(pid, number))


def _connect(near: socket.socket, connection: DatagramConnection) -> None:
    with _socket_of(connection.target_pid, connection.target_number) as target:
        if not target.getsockname():
            # One of a pair: the kernel chooses an abstract name.
            target.bind("")
        name = target.getsockname()

    def connect() -> None:
        syscalls.unshare(syscalls.CLONE_FS)
        # For a relative name.
        os.chdir(f"/proc/{connection.target_pid}/cwd")
        os.chroot(f"/proc/{connection.target_pid}/root")
        near.connect(name)

    # Its directory may lie on a disk that does not answer.
    Background(connect).finish(_LIMIT_S)


def _connect_to_nobody(near: socket.socket) -> None:
    """As after the other side was closed: the next datagram is refused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as target:
        target.bind("")
        near.connect(target.getsockname())
