"""What carried processes may need of a kernel, and how it is known of one that does not run.

A table of features: by an option of the kernel's build, in its configuration below /boot, or by an
alias that one of its modules has, or something that is built in. What the running kernel does not
show in that way either cannot be told, and is taken for there.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from rekernel.kernel.fitness import options_of, unknown
from rekernel.kernel.installed import Kernel


class Feature(Enum):
    """``words``: as in "process 7 uses …"; ``option`` without CONFIG_; ``alias`` of modprobe(8)."""

    # UDP-Lite was removed from kernels in 2026, and had no option of its own; what lists its
    # sockets names it (net/ipv4/udp_diag.c: NETLINK_SOCK_DIAG, AF_INET, IPPROTO_UDPLITE).
    UDPLITE = "UDP-Lite sockets", "", "net-pf-16-proto-4-type-2-136"
    PACKET = "packet sockets", "PACKET", ""
    INOTIFY = "inotify", "INOTIFY_USER", ""
    FANOTIFY = "fanotify", "FANOTIFY", ""
    SIGNALFD = "signalfd", "SIGNALFD", ""
    TIMERFD = "timerfd", "TIMERFD", ""
    EVENTFD = "eventfd", "EVENTFD", ""
    EPOLL = "epoll", "EPOLL", ""
    MEMFD = "memfd_create", "MEMFD_CREATE", ""
    HUGETLB = "huge pages (hugetlbfs)", "HUGETLBFS", ""
    SECCOMP = "filters of system calls (seccomp)", "SECCOMP_FILTER", ""
    PRESSURE = "pressure stall information", "PSI", ""
    SYSV = "System V IPC", "SYSVIPC", ""
    IPC_NAMESPACE = "a name space for IPC", "IPC_NS", ""
    UTS_NAMESPACE = "a name space for the host's name", "UTS_NS", ""
    NET_NAMESPACE = "a name space for the network", "NET_NS", ""
    NETLINK_AUDIT = "netlink sockets of the audit system", "AUDIT", ""
    NETLINK_NETFILTER = "netlink sockets of netfilter", "", "net-pf-16-proto-12"
    NETLINK_XFRM = "netlink sockets of IPsec", "", "net-pf-16-proto-6"
    NETLINK_CONNECTOR = "netlink sockets of the connector", "CONNECTOR", ""
    MEMORY_CONTROLLER = "limits of memory (control group)", "MEMCG", ""
    PIDS_CONTROLLER = "limits of tasks (control group)", "CGROUP_PIDS", ""
    CPUSET_CONTROLLER = "sets of processors (control group)", "CPUSETS", ""
    IO_CONTROLLER = "limits of I/O (control group)", "BLK_CGROUP", ""
    CPU_CONTROLLER = "shares of processors (control group)", "CGROUP_SCHED", ""

    @property
    def words(self) -> str:
        """What people call it."""
        return self.value[0]

    @property
    def option(self) -> str:
        """An option of the kernel's build, "" for none."""
        return self.value[1]

    @property
    def alias(self) -> str:
        """An alias of a module, "" for none."""
        return self.value[2]


def lacking(kernel: Kernel, running: str, wanted: Collection[Feature]) -> set[Feature]:
    """Features that the running kernel has, and ``kernel`` has not."""
    if kernel.release == running or not wanted:
        return set()
    here, there = options_of(running), options_of(kernel.release)
    found = {
        item
        for item in wanted
        if item.option and here and there and item.option in here and item.option not in there
    }
    aliases = {item.alias: item for item in wanted if item.alias}
    if aliases:
        not_here = unknown(running, list(aliases))
        found |= {aliases[name] for name in unknown(kernel.release, list(aliases))} - {
            aliases[name] for name in not_here
        }
    return found
