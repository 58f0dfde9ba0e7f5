"""Handles of init in real processes, and what becomes of them in an image."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from imagefiles import image, message

from rekernel.carry.pidfd import observe as pidfd
from rekernel.carry.pidfd.observe import StandIn, can_be_replaced, put_back, target
from rekernel.criu.descriptors import Descriptor, descriptors
from rekernel.criu.images import ImageError
from rekernel.transition.amend import Wanted, amend

GONE = (1 << 64) - 1


@contextmanager
def holder(flags: int) -> Iterator[tuple[int, int]]:
    """A process with a handle of init, and its number."""
    program = f"import os, sys; print(os.pidfd_open(1, {flags}), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())


def opened(pid: int, number: int) -> Descriptor:
    (found,) = [item for item in descriptors(pid) if item.number == number]
    return found


def test_a_stand_in_takes_the_place_of_init_for_a_while() -> None:
    with holder(os.O_NONBLOCK) as (pid, number):
        before = opened(pid, number)
        assert target(before) == 1
        stand_in = StandIn([pid, 2**22 + 1])
        (handle,) = stand_in.handles
        assert (handle.pid, handle.number) == (pid, number)
        stand_in.take_place()
        now = opened(pid, number)
        assert target(now) not in (None, 1, -1)
        assert now.flags == before.flags
        assert now.inode == handle.inode
        stand_in.end()
        assert target(opened(pid, number)) == -1
        # As the undo list does it, twice.
        put_back(str(handle))
        put_back(str(handle))
        after = opened(pid, number)
        assert target(after) == 1
        assert after.flags == before.flags


def test_nobody_has_a_handle_of_init() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        stand_in = StandIn([process.pid])
        assert stand_in.handles == []
        stand_in.take_place()
        stand_in.end()
        process.kill()


def test_who_ended_or_closed_it_is_left_alone() -> None:
    with holder(0) as (pid, _):
        stand_in = StandIn([pid])
    stand_in.take_place()
    stand_in.end()
    put_back(str(stand_in.handles[0]))
    with subprocess.Popen(["sleep", "60"]) as other:
        put_back(f"{other.pid} 0 77")
        assert target(opened(other.pid, 0)) is None
        other.kill()


def test_whether_it_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(0) as (pid, number):
        item = opened(pid, number)
        monkeypatch.setattr(pidfd, "_inodes_tell_apart", lambda: True)
        assert can_be_replaced(item)
        monkeypatch.setattr(pidfd, "_inodes_tell_apart", lambda: False)
        assert not can_be_replaced(item)


def entry(inode: int, process: int) -> bytes:
    return message(f1=21, f2=7, f22=message(f1=7, f2=inode, f3=0, f4=process, f5=b""))


def test_in_an_image_it_is_one_of_init() -> None:
    data = image(entry(0x1_0000_0005 & 0xFFFFFFFF, GONE), entry(6, GONE), entry(5, 300))
    changed, _ = amend(data, Wanted(stand_ins={0x1_0000_0005}), {})
    assert changed == 2
    # In as many bytes as the number before.
    one = bytes([0x81, *[0x80] * 8, 0])
    expected = entry(5, GONE).replace(b"\xff" * 9 + b"\x01", one)
    assert bytes(expected) in data
    assert entry(6, GONE) in data


def test_an_image_of_something_else() -> None:
    with pytest.raises(ImageError, match="no inode"):
        amend(image(message(f22=message(f1=7))), Wanted(), {})
