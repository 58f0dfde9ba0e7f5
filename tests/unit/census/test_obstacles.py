"""What criu cannot dump, with real descriptors where this kernel has them."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rekernel.census import obstacles
from rekernel.census.obstacle import Obstacle
from rekernel.census.obstacles import of_descriptor, of_mapping, of_socket
from rekernel.criu.descriptors import Descriptor, descriptors, socket_of

QUEUES = 77


def descriptor(
    link: str, mode: int = 0, *, number: int = 0, flags: int = 0, device: int = 1
) -> Descriptor:
    return Descriptor(7, 3, link, 1, flags, 1, mode, device, number)


def what(item: Descriptor) -> str:
    found = of_descriptor(item, QUEUES, socket_of)
    return found.what if found else ""


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("anon_inode:[io_uring]", "an io_uring instance"),
        ("anon_inode:bpf-map", "a BPF object"),
        ("anon_inode:kvm-vm", "a KVM virtual machine"),
        ("anon_inode:[fanotify]", ""),
        ("anon_inode:[fscontext]", "a [fscontext]"),
        ("anon_inode:sync_file", "a sync_file"),
        ("anon_inode:[eventfd]", ""),
        ("/dev/pts/123456 (deleted)", ""),
        ("/run/utmp", "/run/utmp, which stays with this kernel,"),
        ("anon_inode:[eventpoll]", ""),
        ("anon_inode:inotify", ""),
        ("anon_inode:[pidfd]", ""),
        ("/var/lib/data", ""),
        ("pipe:[77]", ""),
        ("/memfd:x (deleted)", ""),
    ],
)
def test_by_its_link(link: str, words: str) -> None:
    assert what(descriptor(link)) == words


@pytest.mark.parametrize(
    ("number", "known"),
    [((1, 3), True), ((1, 9), True), ((1, 1), True), ((1, 11), True), ((5, 0), True),
     ((5, 3), False), ((136, 4), True), ((128, 4), True), ((4, 0), False), ((4, 1), True),
     ((4, 64), False), ((204, 64), True), ((229, 0), False), ((226, 0), False), ((10, 229), False),
     ((10, 200), False), ((10, 235), True)],
)  # fmt: skip
def test_devices(number: tuple[int, int], known: bool) -> None:
    item = descriptor("/dev/x", stat.S_IFCHR, number=os.makedev(*number))
    assert what(item) == ("" if known else "the device /dev/x")


def test_files_of_other_kinds() -> None:
    assert what(descriptor("/dev/vda", stat.S_IFBLK)) == "the disk /dev/vda"
    packets = descriptor("pipe:[1]", stat.S_IFIFO, flags=os.O_DIRECT)
    assert what(packets) == "a pipe in packet mode"
    queue = descriptor("/jobs", stat.S_IFREG, device=QUEUES)
    assert what(queue) == "the POSIX message queue /jobs"


@pytest.fixture
def open_here() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_nothing_of_what_is_common(open_here: ExitStack, tmp_path: Path) -> None:
    left, right = socket.socketpair()
    for item in (left, right, socket.socket(), socket.socket(socket.AF_INET6), select.epoll(),
                 socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
                 socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
                 (tmp_path / "file").open("w")):  # fmt: skip
        open_here.enter_context(item)
    os.close(os.dup(0))
    mine = [item for item in descriptors(os.getpid()) if "/dev/" not in item.link]
    assert {of_descriptor(item, QUEUES, socket_of) for item in mine} == {None}


@dataclass
class Socket:
    """What is asked of one: not every kernel has all of these."""

    family: int
    type: int = socket.SOCK_STREAM
    proto: int = 0
    # What is between it and TCP, or whether it holds back what is sent.
    option: bytes = b""
    filtered: bool = False

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        if level == socket.SOL_SOCKET and self.filtered:
            raise PermissionError
        return self.option


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (Socket(socket.AF_INET, proto=262), "a multipath TCP socket"),
        (Socket(socket.AF_INET6, proto=132), "a socket of IP protocol 132"),
        (Socket(socket.AF_VSOCK), "a socket of AF_VSOCK"),
        (Socket(99), "a socket of address family 99"),
        (Socket(socket.AF_INET, proto=6, option=b"tls\0"), "a TCP socket with tls in the kernel"),
        (Socket(socket.AF_INET, proto=6), ""),
        (
            Socket(socket.AF_INET6, socket.SOCK_DGRAM, 17, b"\1\0\0\0"),
            "a UDP socket that holds back what is sent (UDP_CORK)",
        ),
        (Socket(socket.AF_INET, socket.SOCK_DGRAM, 136, b"\0\0\0\0"), ""),
        (Socket(socket.AF_UNIX, filtered=True), "a socket with a BPF program as its filter"),
        (Socket(socket.AF_INET, socket.SOCK_RAW, 89), ""),
        (Socket(socket.AF_PACKET, socket.SOCK_RAW, 3), ""),
    ],
)
def test_sockets(item: Any, words: str) -> None:
    found = of_socket(item)
    assert (found.what if found else "") == words
    assert not words or (found and found.remedy)


@pytest.mark.parametrize(
    ("name", "own_ipc", "words"),
    [
        ("/SYSV00000000 (deleted)", False, "System V shared memory of the host"),
        ("/SYSV00000000 (deleted)", True, ""),
        ("/dev/dri/renderD128", False, "the device /dev/dri/renderD128"),
        ("/dev/zero (deleted)", False, ""),
        ("/dev/shm/PostgreSQL.1", False, ""),
        ("/secretmem (deleted)", False, "memory that not even the kernel reads (memfd_secret)"),
        ("/usr/lib/libc.so.6", False, ""),
        ("/memfd:x (deleted)", False, ""),
    ],
)
def test_mappings(name: str, own_ipc: bool, words: str) -> None:
    found = of_mapping(name, own_ipc=own_ipc)
    assert (found.what if found else "") == words


def test_a_process_with_shared_memory_of_system_v() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0, mmap.PAGESIZE, 0o600)
    if segment < 0:
        pytest.skip("this kernel has none")
    address = libc.shmat(segment, None, 0)
    libc.shmctl(segment, 0, None)
    try:
        found = list(obstacles._of_mappings(os.getpid()))
    finally:
        libc.shmdt(ctypes.c_void_p(address))
    assert [item.what for item in found] == [
        f"process {os.getpid()} has System V shared memory of the host mapped"
    ]
    assert obstacles.find([1 << 30]) is None


def test_a_sleep_that_ends_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [*["D (disk sleep)"] * 3, "R (running)"]
    monkeypatch.setattr(obstacles, "_status", lambda pid: {"State": states.pop(0)})
    assert list(obstacles._of_process(7)) == []
    assert states == []
    monkeypatch.setattr(obstacles, "_DISK_WAIT_S", 0.05)
    monkeypatch.setattr(obstacles, "_status", lambda pid: {"State": "D (disk sleep)"})
    (found,) = obstacles._of_process(7)
    assert found.what == "process 7 is in uninterruptible sleep"


def test_a_traced_process() -> None:
    program = (
        "import ctypes, time; ctypes.CDLL(None).ptrace(0, 0, 0, 0);"
        "print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        try:
            found = obstacles.find([child.pid])
        finally:
            child.kill()
    assert found == Obstacle(
        f"process {child.pid} is traced by process {os.getpid()}", "end that debugger"
    )


def test_handles_of_processes() -> None:
    child = subprocess.Popen(["sleep", "600"])
    handle = os.pidfd_open(child.pid)
    try:
        found = obstacles.find([os.getpid()])
        assert found is not None
        assert f"a handle (pidfd) of process {child.pid}, which is not of its unit" in found.what
        assert obstacles.find([os.getpid(), child.pid]) is None
        child.kill()
        child.wait()
        assert obstacles.find([os.getpid()]) is None
    finally:
        child.kill()
        child.wait()
        os.close(handle)


def test_a_terminal_that_is_gone_and_whose_number_is_not() -> None:
    master, slave = os.openpty()
    name = os.ttyname(slave)
    words = (
        f"terminal {name.rpartition('/')[2]}, which is gone and whose number somebody else has got,"
    )
    assert what(descriptor(f"{name} (deleted)")) == words
    os.close(master)
    os.close(slave)


def test_a_trap_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    status = {"State": "S (sleeping)", "ShdPnd": "0000000000000010"}
    monkeypatch.setattr(obstacles, "_status", lambda pid: status)
    (found,) = obstacles._of_process(7)
    assert found.what == "process 7 has a SIGTRAP waiting"


def test_filters_of_sockets() -> None:
    """Those of the older kind can be read back, and are carried."""
    program = ctypes.create_string_buffer(b"\x06\0\0\0\xff\xff\0\0" * 2, 16)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        assert of_socket(plain) is None
        attach = Program(2, ctypes.addressof(program))
        plain.setsockopt(socket.SOL_SOCKET, 26, bytes(attach))
        assert of_socket(plain) is None
