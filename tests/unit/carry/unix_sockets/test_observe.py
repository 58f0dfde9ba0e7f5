"""Unix sockets between trees: taken from real processes, made again as the agent does it."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from holding import Hold, holding

from rekernel.carry.unix_sockets import observe as unix_sockets
from rekernel.carry.unix_sockets import restore as agent_links
from rekernel.carry.unix_sockets import sockets as unixsockets
from rekernel.carry.unix_sockets.entry import DatagramConnection
from rekernel.carry.unix_sockets.observe import Member, Taken, UnsettledError, take
from rekernel.carry.unix_sockets.restore import UnixConnections, connect_datagrams
from rekernel.criu.descriptors import External
from rekernel.errors import RekernelError


@pytest.fixture
def hold() -> Iterator[Hold]:
    with holding() as start:
        yield start


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the agent says."""
    lines: list[str] = []
    monkeypatch.setattr(agent_links, "miss", lines.append)
    return lines


def make(taken: Taken) -> UnixConnections:
    return UnixConnections(taken.connections, lambda name: taken.queues[name])


def opened(made: UnixConnections, link: int, end: int) -> socket.socket:
    return socket.socket(fileno=made.take(link, end))


def member(name: str, *pids: int) -> Member:
    return Member(name, pids)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_between_two_trees(hold: Hold, kind: int) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    messages = [b"one", b"x" * 20000, b"three"]
    for message in messages:
        left.sendall(message)
    right.sendall(b"back")
    right.setblocking(False)
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50000)
    size = right.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    before = os.fstat(left.fileno()).st_ino, os.fstat(right.fileno()).st_ino
    with left, right:
        taken = take([member("a", hold(left)), member("b", hold(right))])
        # Looked at, not taken away.
        assert right.recv(3) == b"one"
    assert {external.dump for tree in taken.externals for external in tree} == {
        f"unix[{inode}]" for inode in before
    }
    first, second = (tree[0].inherited for tree in taken.externals)
    assert first is not None
    assert second is not None
    assert first.argument == f"fd[{{fd}}]:socket:[{before[0]}]"
    made = make(taken)
    new_left = opened(made, first.connection, first.end)
    new_right = opened(made, second.connection, second.end)
    made.close()
    with new_left, new_right:
        if kind == socket.SOCK_STREAM:
            assert new_right.recv(1 << 16) == b"".join(messages)
        else:
            assert [new_right.recv(1 << 16) for _ in messages] == messages
        assert new_left.recv(10) == b"back"
        assert fcntl.fcntl(new_right, fcntl.F_GETFL) & os.O_NONBLOCK
        assert not fcntl.fcntl(new_left, fcntl.F_GETFL) & os.O_NONBLOCK
        assert new_right.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
        new_left.sendall(b"on")
        assert new_right.recv(10) == b"on"
        new_left.close()
        assert new_right.recv(10) == b""


def test_settings_and_an_empty_packet(hold: Hold) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.send(b"one")
    left.send(b"")
    left.send(b"two")
    left.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with left, right:
        taken = take([member("a", hold(left)), member("b", hold(right))])
    made = make(taken)
    with opened(made, 0, 0) as new_left, opened(made, 0, 1) as new_right:
        made.close()
        assert new_left.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1
        assert new_right.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 0
        # The empty one is lost, what comes after it is not.
        assert [new_right.recv(10), new_right.recv(10)] == [b"one", b"two"]


def test_more_than_the_usual_room(hold: Hold) -> None:
    left, right = socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, 32, 1 << 26)  # SO_SNDBUFFORCE
    left.sendall(bytes(30 << 20))
    with left, right:
        taken = take([member("a", hold(left)), member("b", hold(right))])
    made = make(taken)
    with opened(made, 0, 1) as new_right:
        made.close()
        assert len(new_right.recv(30 << 20, socket.MSG_WAITALL)) == 30 << 20


def test_credentials_on_their_way(hold: Hold) -> None:
    left, right = socket.socketpair()
    right.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    left.send(b"x")
    with left, right, pytest.raises(UnsettledError, match="credentials are on the way"):
        take([member("a", hold(left)), member("b", hold(right))])


def test_somebody_who_knocked_and_left(hold: Hold, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "listener"))
        server.listen(3)
        trees = [member("a", hold(server))]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "listener"))
            assert take(trees).connections == ()
        with pytest.raises(UnsettledError, match="somebody knocked"):
            take(trees)


def test_half_closed(hold: Hold) -> None:
    left, right = socket.socketpair()
    left.sendall(b"last words")
    left.shutdown(socket.SHUT_WR)
    with left, right:
        taken = take([member("a", hold(left)), member("b", hold(right))])
    made = make(taken)
    with closing(opened(made, 0, 0)) as new_left, closing(opened(made, 0, 1)) as new_right:
        made.close()
        assert new_right.recv(20) == b"last words"
        assert new_right.recv(20) == b""
        new_right.sendall(b"answer")
        assert new_left.recv(20) == b"answer"
        with pytest.raises(BrokenPipeError):
            new_left.sendall(b"more")


def test_to_somebody_who_starts_again(hold: Hold) -> None:
    left, right = socket.socketpair()
    right.send(b"unread")
    with left, right:
        taken = take([member("a", hold(left))])
        assert [len(link.ends) for link in taken.connections] == [1]
        made = make(taken)
    with opened(made, 0, 0) as alone:
        made.close()
        assert alone.recv(10) == b"unread"
        assert alone.recv(10) == b""
        with pytest.raises(BrokenPipeError):
            alone.send(b"x")


def datagram(name: str = "") -> socket.socket:
    item = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if name:
        item.bind(name)
    return item


def test_datagrams(hold: Hold, tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    with datagram(path) as server, datagram() as client:
        client.connect(path)
        inode = os.fstat(client.fileno()).st_ino
        serving, sending = hold(server), hold(client)
        taken = take([member("a", serving), member("b", sending)])
        link = DatagramConnection(sending, client.fileno(), serving, server.fileno())
    # criu brings both back; the one that many may send to is nothing special for it.
    assert taken.externals == ((), (External(f"unix[{inode}]", None),))
    assert (taken.connections, taken.datagrams) == ((), (link,))
    assert taken.disconnected == {inode}


def test_datagram_sockets_are_connected_once_all_are_back(hold: Hold, tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    with datagram(path) as server, datagram() as client, datagram() as left, datagram() as right:
        serving, sending = hold(server, left), hold(client, right)
        connect_datagrams(
            [
                DatagramConnection(sending, client.fileno(), serving, server.fileno()),
                DatagramConnection(serving, left.fileno(), sending, right.fileno()),
                DatagramConnection(sending, right.fileno(), serving, left.fileno()),
            ]
        )
        client.send(b"hello")
        assert server.recv(10) == b"hello"
        left.send(b"there")
        assert right.recv(10) == b"there"
        right.send(b"back")
        assert left.recv(10) == b"back"


def test_datagrams_to_somebody_who_starts_again(hold: Hold, said: list[str]) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        sending = hold(left)
        taken = take([member("a", sending)])
        assert taken.datagrams == (DatagramConnection(sending, left.fileno()),)
    with datagram() as alone:
        connect_datagrams([DatagramConnection(hold(alone), alone.fileno())])
        with pytest.raises(ConnectionRefusedError):
            alone.send(b"x")
    connect_datagrams([DatagramConnection(2**22 + 1, 3)])
    assert "stays alone" in said[0]


def test_within_a_tree_is_left_to_criu(hold: Hold) -> None:
    left, right = socket.socketpair()
    with left, right:
        taken = take([member("a", hold(left), hold(right))])
    assert taken == Taken((), (), frozenset(), ((),), {})


def test_a_connection_that_nobody_accepted(hold: Hold, tmp_path: Path) -> None:
    path = str(tmp_path / "listener")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen(1)
        client.connect(path)
        trees = [member("a", hold(server)), member("b", hold(client))]
        with pytest.raises(UnsettledError, match=f"b waits to be let in at {path}"):
            take(trees)
        # Both ends in one tree: criu knows how.
        assert take([member("a", *trees[0].pids, *trees[1].pids)]).connections == ()
        with server.accept()[0] as accepted:
            trees[0] = member("a", *trees[0].pids, hold(accepted))
            assert len(take(trees).connections[0].ends) == 2


def test_what_cannot_be_taken(hold: Hold) -> None:
    left, right = socket.socketpair()
    with left, right:
        socket.send_fds(left, [b"x"], [0])
        trees = [member("a", hold(left)), member("b", hold(right))]
        with pytest.raises(RekernelError, match="a descriptor is on the way"):
            take(trees)
    left, right = socket.socketpair()
    with left, right, pytest.raises(RekernelError, match="a and b share a socket"):
        take([member("a", hold(left)), member("b", hold(left))])


def test_the_journal(monkeypatch: pytest.MonkeyPatch, hold: Hold, tmp_path: Path) -> None:
    path = str(tmp_path / "stdout")
    monkeypatch.setattr(unix_sockets, "JOURNAL_STDOUT", path)
    monkeypatch.setattr(unixsockets, "JOURNAL_STDOUT", path)
    with socket.socket(socket.AF_UNIX) as journal, socket.socket(socket.AF_UNIX) as client:
        journal.bind(path)
        journal.listen(1)
        client.connect(path)
        with journal.accept()[0]:
            # Two trees of a unit have the same one: each gets one of its own.
            taken = take([member("a", hold(client)), member("b", hold(client))])
    assert len(taken.externals) == 2
    for externals in taken.externals:
        (external,) = externals
        assert external.inherited is not None
        assert external.inherited.kind == "journal"
        # The journal has no note of it.
        assert external.inherited.header == "\n\n30\n1\n0\n0\n0\n"


def test_a_lost_queue_does_not_lose_the_connection(said: list[str]) -> None:
    left, right = socket.socketpair()
    right.send(b"unread")
    with left, right:
        maker = unix_sockets._Maker([[]])
        maker.link(socket.SOCK_STREAM, [(0, 1, os.getpid(), left.fileno())])

    def damaged(name: str) -> bytes:
        raise OSError(f"{name} is damaged")

    made = UnixConnections(maker.connections, damaged)
    assert "what waits in a unix socket" in said[0]
    with opened(made, 0, 0) as alone:
        made.close()
        assert alone.recv(10) == b""


def test_the_format_of_queues() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        left.send(b"ab")
        left.send(b"c")
        maker = unix_sockets._Maker([[]])
        maker.link(socket.SOCK_SEQPACKET, [(0, 7, os.getpid(), right.fileno())])
    assert maker.queues == {
        "unix/7": struct.pack("<I2sI1s", 2, b"ab", 1, b"c").replace(b"\0\0", b"\0\0")
    }
