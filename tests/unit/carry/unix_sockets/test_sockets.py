"""The kernel's list of unix sockets: as recorded, and of sockets of this process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from recorded import Recorded, on_each_kernel

from rekernel import netlink
from rekernel.carry.unix_sockets import sockets as unixsockets
from rekernel.carry.unix_sockets.sockets import UnixSocket


def inode(item: socket.socket) -> int:
    return os.fstat(item.fileno()).st_ino


def by_inode() -> dict[int, UnixSocket]:
    return {item.inode: item for item in unixsockets.observe()}


@on_each_kernel
def test_recorded(recorded: Recorded) -> None:
    data = (recorded.directory / "unix-diag").read_bytes()
    *bodies, end = netlink.replies(data, "sock_diag")
    assert end is None
    found = [unixsockets.parse(body[netlink.HEADER.size :]) for body in bodies if body]
    assert len(found) > 50
    names = {item.name for item in found if not item.peer}
    assert {"/run/systemd/private", "/run/dbus/system_bus_socket"} <= names
    # The services' ends of established connections, not the listening socket's nobody.
    streams = unixsockets.journal_streams(found)
    assert len(streams) >= 4
    journal = {item.inode for item in found if item.name == unixsockets.JOURNAL_STDOUT}
    assert not streams & {0, *journal}


def test_names_states_and_peers(tmp_path: Path) -> None:
    path = str(tmp_path / "with blank")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen(4)
        client.connect(path)
        found = by_inode()
        # Not accepted: the client has no peer yet, the listener knows it.
        assert found[inode(server)] == UnixSocket(
            socket.SOCK_STREAM, inode(server), path, waiting=(inode(client),)
        )
        assert found[inode(client)].peer == 0
        own = {inode(client)}
        assert [item.inode for item in unixsockets.unaccepted(own, list(found.values()))] == [*own]
        with server.accept()[0] as accepted:
            found = by_inode()
            assert found[inode(client)] == UnixSocket(
                socket.SOCK_STREAM, inode(client), peer=inode(accepted)
            )
            assert found[inode(accepted)].name == path
            assert unixsockets.unaccepted(own, list(found.values())) == []


def test_an_abstract_name() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as item:
        item.bind("\0rekernel test\0odd")
        found = by_inode()[inode(item)]
        assert (found.name, found.kind) == ("\0rekernel test\0odd", socket.SOCK_DGRAM)


def test_who_has_them_open() -> None:
    left, right = socket.socketpair()
    with left, right, left.dup():
        found = unixsockets.holders([os.getpid(), 2**22 + 1])
        assert found[inode(left)][0] == os.getpid()
        assert {inode(left), inode(right)} <= set(found)


def test_what_leads_out() -> None:
    log = unixsockets.JOURNAL_DATAGRAM[0]
    sockets = [
        UnixSocket(1, 1, peer=2),
        UnixSocket(1, 2, "/run/far", peer=1),
        UnixSocket(1, 3, peer=4),
        UnixSocket(1, 4, peer=3),
        UnixSocket(2, 5, peer=6),
        UnixSocket(2, 6, log),
        UnixSocket(1, 7, peer=99),
    ]
    assert unixsockets.leading_out([1, 3, 4, 5, 7], sockets) == [
        (sockets[0], sockets[1]),
        (sockets[6], None),
    ]
