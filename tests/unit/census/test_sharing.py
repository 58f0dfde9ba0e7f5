"""What processes share, seen in real ones."""

from __future__ import annotations

import mmap
import os
import pty
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from holding import Hold, holding

from rekernel.census import sharing


@pytest.fixture
def hold() -> Iterator[Hold]:
    with holding() as start:
        yield start


def pipe() -> tuple[int, int]:
    return os.pipe()


def same_socket() -> tuple[int, int]:
    left, right = socket.socketpair()
    right.close()
    return left.fileno(), os.dup(left.detach())


def terminal() -> tuple[int, int]:
    return pty.openpty()


def memfd() -> tuple[int, int]:
    number = os.memfd_create("rekernel test")
    return number, os.dup(number)


@pytest.mark.parametrize(
    ("make", "words"),
    [(pipe, "a pipe"), (same_socket, "a socket"), (terminal, "a terminal"), (memfd, "a memfd")],
)
def test_descriptors(hold: Hold, make: Callable[[], tuple[int, int]], words: str) -> None:
    ours, theirs = make()
    first, second = hold(ours), hold(theirs)
    trees = {"a": [first], "b": [second]}
    assert sharing.find(trees, [first, second]).shared == {
        "a": sharing.Shared(words, first, second),
        "b": sharing.Shared(words, second, first),
    }
    # With somebody who is in no tree it is the same; within one tree it is nobody's business.
    assert sharing.find({"a": [first]}, [first, second]).shared["a"].other == second
    assert sharing.find({"a": [first, second]}, [first, second]).shared == {}
    inode = os.fstat(ours).st_ino
    harmless = sharing.find(trees, [first, second], [inode])
    assert (harmless.shared == {}) is (words == "a socket")
    os.close(ours)
    os.close(theirs)


def test_terminals_that_are_lent(hold: Hold) -> None:
    master, slave = pty.openpty()
    first, second, third = hold(master), hold(slave), hold(slave)
    everyone = [first, second, third]
    trees = {"a": [first], "b": [second], "c": [third]}
    found = sharing.find(trees, everyone, lending=["a", "b", "c"])
    assert (found.shared, found.borrowed) == ({}, {"b": {"a"}, "c": {"a"}})
    # Not among those: its own, then, no longer counts as lent to anybody.
    found = sharing.find(trees, everyone, lending=["a", "b"])
    assert (set(found.shared), found.borrowed) == ({"a", "b", "c"}, {})
    del trees["a"]
    found = sharing.find(trees, everyone, lending=["b", "c"])
    assert (set(found.shared), found.borrowed) == ({"b", "c"}, {})
    os.close(master)
    os.close(slave)


def test_memory_that_was_inherited() -> None:
    with mmap.mmap(-1, 4096) as area:
        area[0] = 1
        child = os.fork()
        if child == 0:
            while True:
                time.sleep(60)
        try:
            ours, theirs = sharing.of_process(os.getpid()), sharing.of_process(child)
            common = [key for key in ours.keys() & theirs.keys() if key[0] == "memory"]
            assert "shared memory" in [ours[key] for key in common]
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_process_that_is_gone_shares_nothing() -> None:
    assert sharing.of_process(2**22 + 1) == {}
