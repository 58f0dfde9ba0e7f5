"""What criu cannot dump, recognised while everything runs, in words that name it.

criu 4.2 knows a short list of descriptors, sockets and mappings (criu/files.c, dump_one_file;
criu/sk-inet.c; criu/proc_parse.c). What is not on it would end an upgrade in its blackout.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from enum import Enum, auto

from rekernel import smallfiles
from rekernel.carry.apparmor import observe as apparmor
from rekernel.carry.mounts.observe import stays_behind
from rekernel.carry.pidfd import observe as pidfd
from rekernel.carry.pressure import observe as pressure
from rekernel.carry.terminals.observe import HUNG
from rekernel.census import inotify as watched
from rekernel.census.obstacle import Obstacle
from rekernel.criu.descriptors import Descriptor, descriptors, socket_of


class Curable(Enum):
    """What a setting of the unit takes away."""

    SHARED_CODE = auto()
    HOST_IPC = auto()
    RING = auto()


# Anonymous inodes that criu makes again; of the others those that have a name among people.
_ANONYMOUS = re.compile(
    r"^anon_inode:(\[(eventfd|eventpoll|signalfd|timerfd|pidfd|fanotify)\]|inotify)$"
)
_RING = "[io_uring]"
# Of those who use one, these do without where the kernel has none: MariaDB; Node.js and all else
# that is built on libuv.
_NEEDS_NO_RING = re.compile(r"/(mariadbd|node|libuv\.so[.\d]*)$", re.MULTILINE)
_NAMES = (
    (re.compile(re.escape(_RING)), "an io_uring instance"),
    (re.compile(r"\[perf_event\]"), "a perf event"),
    (re.compile(r"kvm-"), "a KVM virtual machine"),
    (re.compile(r"landlock-ruleset"), "a landlock rule set"),
    (re.compile(r"seccomp notify"), "a seccomp notification descriptor"),
    (re.compile(r"bpf"), "a BPF object"),
    (re.compile(r"\[userfaultfd\]"), "a userfaultfd"),
)

# Documentation/admin-guide/devices.txt. Of memory criu opens all again: null, zero, kmsg, mem, and
# so on; of what is at 10 only autofs.
_MEM_MAJOR = 1
_AUTOFS = (10, 235)
# Terminals by major number, and the minors that criu takes (criu/tty.c, get_tty_driver): of 4 the
# consoles of the screen but not serial lines; /dev/tty and its kin; pseudo terminals; serial ones.
_TERMINALS = {
    4: range(1, 64),
    5: range(3),
    **dict.fromkeys((*range(128, 137), 188, 204)),
}

_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET)
_FAMILY_NAMES = {int(item): item.name for item in socket.AddressFamily}
# include/uapi/linux/in.h
_UDPLITE = 136
_MPTCP = 262
_PROTOCOLS = (
    0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, _UDPLITE, socket.IPPROTO_ICMP,
    socket.IPPROTO_ICMPV6,
)  # fmt: skip
# include/uapi/linux/tcp.h, udp.h; include/uapi/asm-generic/socket.h
_TCP_ULP = 31
_UDP_CORK = 1
_SO_GET_FILTER = 26

_SYSV = re.compile(r"/SYSV[0-9a-f]{8}")
# Whoever reads from a disk sleeps like that for an instant; who waits for a dead one, for good.
_DISK_WAIT_S = 2.0

_HARMLESS_MAPPINGS = ("/dev/zero", "/dev/null", "/dev/shm/", "/dev/hugepages/")


def find(pids: Sequence[int]) -> Obstacle | None:
    """The first thing that cannot be dumped; a process that is gone has none."""
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            for obstacle in (*_of_descriptors(pid, pids), *_of_mappings(pid), *_of_process(pid)):
                return obstacle
    return None


def _of_descriptors(pid: int, own: Collection[int]) -> Iterator[Obstacle]:
    queues = _device_of("/dev/mqueue")
    for item in descriptors(pid):
        what = of_descriptor(item, queues, socket_of)
        what = what or _of_handle(item, own) or _of_pressure(item)
        what = what or watched.of_watches(item, own)
        if what is not None:
            remedy = what.remedy
            if _RING in item.link and _needs_no_ring(pid):
                remedy = (
                    "let `rekernel setup` write a drop-in that takes it away, then restart the unit"
                )
            yield Obstacle(f"process {pid} has {what.what} open (descriptor {item.number})", remedy)


def of_descriptor(
    item: Descriptor, queues: int, open_socket: Callable[[int, int], socket.socket]
) -> Obstacle | None:
    """What stands in the way of one descriptor. ``queues``: device of POSIX message queues."""
    if item.link.startswith("anon_inode:"):
        if _ANONYMOUS.match(item.link):
            return None
        names = [words for pattern, words in _NAMES if pattern.search(item.link)]
        return Obstacle(names[0] if names else f"a {item.link.removeprefix('anon_inode:')}")
    if stat.S_ISSOCK(item.mode):
        with suppress(OSError), open_socket(item.pid, item.number) as opened:
            return of_socket(opened)
        return None
    if stat.S_ISCHR(item.mode):
        return None if _known_device(item.device_number) else Obstacle(f"the device {item.link}")
    if stat.S_ISBLK(item.mode):
        return Obstacle(f"the disk {item.link}")
    if stat.S_ISFIFO(item.mode) and item.flags & os.O_DIRECT:
        return Obstacle("a pipe in packet mode")
    hung = HUNG.match(item.link)
    if hung and os.path.exists(f"/dev/pts/{hung[1]}"):
        return Obstacle(
            f"terminal {hung[1]}, which is gone and whose number somebody else has got,"
        )
    if stays_behind(item.link):
        return Obstacle(f"{item.link}, which stays with this kernel,")
    if item.device == queues:
        return Obstacle(f"the POSIX message queue {item.link}")
    return None


def _of_handle(item: Descriptor, own: Collection[int]) -> Obstacle | None:
    """A pidfd: one of the same unit, of init, or of who is gone (-1) is made again."""
    of = None
    with suppress(OSError):
        of = pidfd.target(item)
    if of is None or of < 0 or of in own:
        return None
    if of == pidfd.INIT and pidfd.can_be_replaced(item):
        return None
    return Obstacle(f"a handle (pidfd) of process {of}, which is not of its unit,")


def _of_pressure(item: Descriptor) -> Obstacle | None:
    if (
        not pressure.is_watch(item.link, item.flags)
        or pressure.told(item.pid, item.number) is not None
    ):
        return None
    return Obstacle(f"{item.link}, which nobody tells what it watches for,")


def _known_device(number: int) -> bool:
    major, minor = os.major(number), os.minor(number)
    if major in _TERMINALS:
        minors = _TERMINALS[major]
        return minors is None or minor in minors
    return major == _MEM_MAJOR or (major, minor) == _AUTOFS


def of_socket(item: socket.socket) -> Obstacle | None:
    """What stands in the way of a socket."""
    family = int(item.family)
    if family not in _FAMILIES:
        name = _FAMILY_NAMES.get(family, f"address family {family}")
        return Obstacle(f"a socket of {name}")
    if _filtered_by_bpf(item):
        return Obstacle("a socket with a BPF program as its filter")
    if family not in (socket.AF_INET, socket.AF_INET6) or item.type == socket.SOCK_RAW:
        return None
    if item.proto == _MPTCP:
        return Obstacle("a multipath TCP socket", "for Go programs set GODEBUG=multipathtcp=0")
    if item.proto not in _PROTOCOLS:
        return Obstacle(f"a socket of IP protocol {item.proto}")
    if item.type == socket.SOCK_STREAM:
        upper = item.getsockopt(socket.IPPROTO_TCP, _TCP_ULP, 16).rstrip(b"\0").decode()
        if upper:
            return Obstacle(f"a TCP socket with {upper} in the kernel")
    if item.proto in (socket.IPPROTO_UDP, _UDPLITE) and any(
        item.getsockopt(socket.IPPROTO_UDP, _UDP_CORK, 4)
    ):
        return Obstacle("a UDP socket that holds back what is sent (UDP_CORK)")
    return None


def _filtered_by_bpf(item: socket.socket) -> bool:
    """By a program that cannot be read back, as one of the older kind can."""
    try:
        # With room for nothing it answers how many instructions there are.
        item.getsockopt(socket.SOL_SOCKET, _SO_GET_FILTER, 1)
    except PermissionError:
        return True
    except OSError:
        # One of the older kind, which has more.
        return False
    return False


def _device_of(path: str) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


def _maps(pid: int) -> str:
    return os.fsdecode(smallfiles.read(f"/proc/{pid}/maps"))


def _injects_into_shared_code(maps: str) -> bool:
    """Whether criu would put its code where it cannot write: into the first executable mapping."""
    for line in maps.splitlines():
        permissions = line.split(None, 2)[1]
        if permissions[2] == "x":
            return permissions[3] == "s" and permissions[1] != "w"
    return False


def _own_ipc(pid: int) -> bool:
    return os.readlink(f"/proc/{pid}/ns/ipc") != os.readlink("/proc/self/ns/ipc")


def curable(pids: Sequence[int]) -> set[Curable]:
    """What of these processes a setting of their unit would take away."""
    found = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            maps = _maps(pid)
            if _injects_into_shared_code(maps):
                found.add(Curable.SHARED_CODE)
            if not _own_ipc(pid) and re.search(rf" {_SYSV.pattern}", maps):
                found.add(Curable.HOST_IPC)
            if any(_RING in item.link for item in descriptors(pid)) and _needs_no_ring(pid):
                found.add(Curable.RING)
    return found


def _needs_no_ring(pid: int) -> bool:
    """Whether a filter of system calls would keep it from its io_uring, and it ran on."""
    # With one of its own the two could add up to something else.
    return _status(pid).get("Seccomp") == "0" and bool(_NEEDS_NO_RING.search(_maps(pid)))


def _of_mappings(pid: int) -> Iterator[Obstacle]:
    own_ipc = _own_ipc(pid)
    maps = _maps(pid)
    if _injects_into_shared_code(maps):
        yield Obstacle(
            f"process {pid} maps code in shared memory (PHP's just-in-time compiler does)",
            "let `rekernel setup` write a drop-in that takes PHP's buffer for it away, then "
            "restart the unit",
        )
    for name in dict.fromkeys(line.split(None, 5)[5] for line in maps.splitlines() if "/" in line):
        what = of_mapping(name, own_ipc=own_ipc)
        if what is not None:
            yield Obstacle(f"process {pid} has {what.what} mapped", what.remedy)


def of_mapping(name: str, *, own_ipc: bool) -> Obstacle | None:
    """What stands in the way of a mapping of this name (proc(5), /proc/PID/maps)."""
    if _SYSV.match(name) and not own_ipc:
        return Obstacle(
            "System V shared memory of the host",
            "let `rekernel setup` write a drop-in with PrivateIPC=yes, then restart the unit",
        )
    if name.startswith("/secretmem"):
        return Obstacle("memory that not even the kernel reads (memfd_secret)")
    if name.startswith("/dev/") and not name.startswith(_HARMLESS_MAPPINGS):
        return Obstacle(f"the device {name}")
    return None


def _status(pid: int) -> dict[str, str]:
    text = os.fsdecode(smallfiles.read(f"/proc/{pid}/status"))
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def _of_process(pid: int) -> Iterator[Obstacle]:
    status = _status(pid)
    tracer = status.get("TracerPid", "0")
    if tracer != "0":
        yield Obstacle(f"process {pid} is traced by process {tracer}", "end that debugger")
    waiting = (int(status.get(name, "0"), 16) for name in ("SigPnd", "ShdPnd"))
    if any(signals & 1 << signal.SIGTRAP - 1 for signals in waiting):
        yield Obstacle(f"process {pid} has a SIGTRAP waiting")
    confined = apparmor.label(pid)
    if confined and not apparmor.is_simple(confined):
        yield Obstacle(f"process {pid} is confined by several AppArmor profiles ({confined})")
    elif confined and apparmor.policy(confined) is None:
        yield Obstacle(
            f"process {pid} is confined by {confined}, and this kernel does not keep the policy",
            "reload that AppArmor profile",
        )
    deadline = time.monotonic() + _DISK_WAIT_S
    while status.get("State", "").startswith("D"):
        if time.monotonic() < deadline:
            time.sleep(0.02)
            status = _status(pid)
            continue
        yield Obstacle(
            f"process {pid} is in uninterruptible sleep", "see which device or mount it waits for"
        )
        return
