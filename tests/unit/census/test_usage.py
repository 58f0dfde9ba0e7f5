"""What a dump writes into files is found with the processes that have it."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rekernel.census import usage
from rekernel.census.pages import Survey
from rekernel.census.usage import Usage
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.records import replace
from rekernel.systemd.units import Unit

MIB = 1 << 20
# Five MiB of shared memory, three in a memfd that is not mapped, two in a file that has no name any
# more, and one that has: 10 in all are in no file system.
PROGRAM = """
import mmap, os, sys, tempfile
shared = mmap.mmap(-1, 5 << 20); shared[:] = b"s" * len(shared)
memfd = os.memfd_create("m"); os.write(memfd, b"m" * (3 << 20))
deleted = tempfile.TemporaryFile(); deleted.write(b"d" * (2 << 20)); deleted.flush()
os.fsync(deleted.fileno())
named = open(sys.argv[1], "w+b"); named.write(b"n" * (1 << 20)); named.flush()
also = mmap.mmap(named.fileno(), 1 << 20)
private = mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
private[:] = b"p" * (4 << 20)
if os.fork() == 0:
    sys.stdin.read(); os._exit(0)
print("ready", flush=True); sys.stdin.read()
"""

MAPS = """\
55d0c9a00000-55d0c9a21000 rw-p 00000000 00:00 0                          [heap]
07f2c000000-07f2c100000 rw-s 00000000 00:01 103                        /dev/zero (deleted)
7f2d00000000-7f2d00100000 rw-s 00000000 00:01 14                         /SYSV00000000 (deleted)
7f2d10000000-7f2d10001000 rw-s 00000000 00:01 1051                       /memfd:x y (deleted)
7f2d10001000-7f2d10002000 rw-s 00001000 00:01 1051                       /memfd:x y (deleted)
7f2d20000000-7f2d20001000 r-xp 00000000 fe:00 998      /usr/lib/libold.so (deleted)
7f2d30000000-7f2d30001000 rw-s 00000000 00:1a 7                          /dev/shm/named
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[list[int]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "named")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        pid = process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        yield [pid, *map(int, children)]
        assert process.stdin is not None
        process.stdin.close()


def test_mapped_without_a_name() -> None:
    assert usage.mapped(MAPS) == [
        "7f2c000000-7f2c100000",
        "7f2d00000000-7f2d00100000",
        "7f2d10001000-7f2d10002000",
        "7f2d20000000-7f2d20001000",
    ]


def test_each_is_counted_once(service: list[int]) -> None:
    assert usage.unnamed(service) == 10 * MIB
    assert usage.unnamed([]) == 0


def test_of_a_unit(service: list[int]) -> None:
    facts = Unit("x.service", "active", "running", "simple", service[0], "/nowhere", "", {})
    verdict = UnitVerdict(facts, Verdict.CARRIED, "", "", dict.fromkeys(service, "/nowhere"))
    # One of them has four MiB that are locked, and nobody left in place.
    in_place = {pid: anonymous(pid) for pid in service}
    in_place[service[0]] -= 4 * MIB
    (found,) = usage.of_units([verdict], Survey(0, 0, 0, in_place))
    assert (found.unit, found.processes, found.container) == ("x.service", 2, False)
    assert found.shared == 10 * MIB
    assert found.written == 4 * MIB
    assert found.anonymous > 4 * MIB
    # The memfd that nobody maps as well.
    assert found.resident >= found.anonymous + found.shared


def anonymous(pid: int) -> int:
    """Private pages of a process in bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("\nAnonymous:")[2].split()[0]) << 10


def test_what_is_written_down() -> None:
    found = Usage("x.service", False, 4, 100 * MIB, 60 * MIB, 30 * MIB, 8 * MIB)
    assert found.images == 38 * MIB + 4 * (48 << 10)
    assert found.all_images == 90 * MIB + 4 * (48 << 10)


def test_one_that_is_gone() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert usage.resident([gone.pid]) == usage.Resident(0, 0, 0, 0)
    assert usage.resident([os.getpid()]).total > mmap.PAGESIZE
    assert usage.unnamed([gone.pid]) == 0


def test_resident_bytes_by_kind() -> None:
    with mmap.mmap(-1, 8 << 20) as shared:
        shared.write(b"x" * len(shared))
        found = usage.resident([os.getpid()])
    assert found.shared >= 8 << 20
    assert found.anonymous > 1 << 20
    assert found.total >= found.anonymous + found.shared


def test_what_waits_in_connections() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0] as far,
        # Not accepted: that is one connection that waits, not one byte.
        socket.create_connection(listener.getsockname()),
    ):
        near.sendall(b"x" * 50_000)
        deadline = time.monotonic() + 10
        link = f"socket:[{os.fstat(far.fileno()).st_ino}]"
        while (queues := usage.tcp_queues()).get(link) != 50_000:
            assert time.monotonic() < deadline
        assert f"socket:[{os.fstat(listener.fileno()).st_ino}]" not in queues
        ours = {link: queues[link]}
        # Twice the same process: each connection counts once.
        assert usage.queued([os.getpid()] * 2, ours) == 50_000
        assert usage.queued([os.getpid()], {}) == 0
    found = Usage("x.service", False, 1, 0, 0, 0, 0, queued=50_000)
    assert found.images - replace(found, queued=0).images == 50_000
    assert found.all_images - replace(found, queued=0).all_images == 50_000
