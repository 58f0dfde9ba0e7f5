"""What each carried unit needs of the next kernel, and what becomes of those that it fails.

Who uses a feature is read from /proc while everything runs: links of descriptors, the kernel's own
lists of sockets, name spaces, controllers of control groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rekernel import smallfiles
from rekernel.carry.runtime_units.observe import is_transient
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.kernel.features import Feature, lacking
from rekernel.kernel.installed import Kernel
from rekernel.records import replace

_PROC = Path("/proc")
_BY_LINK = (
    ("anon_inode:inotify", Feature.INOTIFY),
    ("anon_inode:[fanotify]", Feature.FANOTIFY),
    ("anon_inode:[signalfd]", Feature.SIGNALFD),
    ("anon_inode:[timerfd]", Feature.TIMERFD),
    ("anon_inode:[eventfd]", Feature.EVENTFD),
    ("anon_inode:[eventpoll]", Feature.EPOLL),
    ("/memfd:", Feature.MEMFD),
    ("/proc/pressure/", Feature.PRESSURE),
)
_BY_MAPPING = ((" /memfd:", Feature.MEMFD), (" /anon_hugepage", Feature.HUGETLB))
# Lists of sockets below /proc/PID/net; the inode's column.
_LISTS = (("udplite", 9, Feature.UDPLITE), ("udplite6", 9, Feature.UDPLITE))
_PACKETS, _PACKET_INODE = "packet", 8
# Protocols of netlink (include/uapi/linux/netlink.h).
_NETLINK = {
    6: Feature.NETLINK_XFRM,
    9: Feature.NETLINK_AUDIT,
    11: Feature.NETLINK_CONNECTOR,
    12: Feature.NETLINK_NETFILTER,
}
_NETLINK_PROTOCOL, _NETLINK_INODE = 1, 9
_NAMESPACES = (
    ("ipc", Feature.IPC_NAMESPACE),
    ("uts", Feature.UTS_NAMESPACE),
    ("net", Feature.NET_NAMESPACE),
)
_CONTROLLERS = {
    "memory": Feature.MEMORY_CONTROLLER,
    "pids": Feature.PIDS_CONTROLLER,
    "cpuset": Feature.CPUSET_CONTROLLER,
    "io": Feature.IO_CONTROLLER,
    "cpu": Feature.CPU_CONTROLLER,
}
_CGROUPS = Path("/sys/fs/cgroup")


class Observer:
    """Looks at the processes of several units; what they have in common it reads once."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._spaces = {name: os.readlink(f"{proc}/self/ns/{name}") for name, _ in _NAMESPACES}
        # By network namespace.
        self._sockets: dict[str, dict[str, Feature]] = {}

    def observe(self, pids: Iterable[int]) -> dict[Feature, int]:
        """What these processes use, with the first that does; one that is gone uses nothing."""
        found: dict[Feature, int] = {}
        for pid in pids:
            with suppress(OSError):
                for item in self._of_process(pid):
                    found.setdefault(item, pid)
        return found

    def _of_process(self, pid: int) -> Iterator[Feature]:
        own = f"{self._proc}/{pid}"
        network = os.readlink(f"{own}/ns/net")
        if network not in self._sockets:
            self._sockets[network] = dict(_sockets(Path(own, "net")))
        sockets = self._sockets[network]
        for name in os.listdir(f"{own}/fd"):
            with suppress(FileNotFoundError):
                link = os.readlink(f"{own}/fd/{name}")
                yield from (item for start, item in _BY_LINK if link.startswith(start))
                if link in sockets:
                    yield sockets[link]
        yield from _of_memory(own)
        for name, item in _NAMESPACES:
            if os.readlink(f"{own}/ns/{name}") != self._spaces[name]:
                yield item


def _of_memory(own: str) -> Iterator[Feature]:
    maps = os.fsdecode(smallfiles.read(f"{own}/maps"))
    yield from (item for words, item in _BY_MAPPING if words in maps)
    if " /SYSV" in maps:
        yield Feature.SYSV
    # A name that was cut to its length may be no text.
    if b"\nSeccomp:\t2\n" in smallfiles.read(f"{own}/status"):
        yield Feature.SECCOMP


def _sockets(net: Path) -> Iterator[tuple[str, Feature]]:
    """Link of a descriptor -> what its socket is, for those that not every kernel has."""
    for name, column, feature in (*_LISTS, (_PACKETS, _PACKET_INODE, Feature.PACKET)):
        for fields in _lines(net / name):
            yield f"socket:[{fields[column]}]", feature
    for fields in _lines(net / "netlink"):
        item = _NETLINK.get(int(fields[_NETLINK_PROTOCOL]))
        if item is not None:
            yield f"socket:[{fields[_NETLINK_INODE]}]", item


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines()[1:]]
    except OSError:
        # A kernel without it has no such file.
        return []


def _of_groups(unit: UnitVerdict) -> dict[Feature, int]:
    """Controllers that a unit has turned on for control groups of its own, as the agent must."""
    found: dict[Feature, int] = {}
    for pid, group in unit.processes.items():
        inner = group.removeprefix(unit.unit.cgroup).count("/")
        parents = [group.rsplit("/", count)[0] for count in range(1, inner + 1)]
        for path in parents:
            with suppress(OSError):
                text = (_CGROUPS / path.lstrip("/") / "cgroup.subtree_control").read_text()
                for name in text.split():
                    if name in _CONTROLLERS:
                        found.setdefault(_CONTROLLERS[name], pid)
    return found


def judge(units: Sequence[UnitVerdict], kernel: Kernel, running: str) -> list[UnitVerdict]:
    """Verdicts with a kernel in mind: worse for units that it lacks something for."""
    if kernel.release == running:
        return list(units)
    observer = Observer()
    wanted = {
        item.unit.name: {**_of_groups(item), **observer.observe(item.processes)}
        for item in units
        if item.verdict is Verdict.CARRIED and not item.container
    }
    missing = lacking(kernel, running, {feature for own in wanted.values() for feature in own})
    if not missing:
        return list(units)
    return [_judge(item, wanted.get(item.unit.name, {}), missing, kernel.release) for item in units]


def _judge(
    item: UnitVerdict, wanted: dict[Feature, int], missing: set[Feature], release: str
) -> UnitVerdict:
    failing = [feature for feature in wanted if feature in missing]
    if not failing:
        return item
    verdict = Verdict.RESTARTED
    if item.wish in ("carry", "block"):
        verdict = Verdict.BLOCKS
    elif item.unit.is_login or item.unit.is_manager or is_transient(item.unit):
        verdict = Verdict.ENDS
    reason = f"process {wanted[failing[0]]} uses {failing[0].words}, which {release} does not have"
    return replace(item, verdict=verdict, reason=reason, remedy="change to another kernel")
