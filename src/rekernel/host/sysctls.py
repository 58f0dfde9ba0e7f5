"""Settings below /proc/sys: what carried programs rely on, and what an administrator tunes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

_PROC_SYS = Path("/proc/sys")

# Applied by systemd-sysctl only after the commit, so what counts for sockets and memory at the
# restore travels as it is now.
_NAMES = (
    "vm/overcommit_memory",
    "vm/overcommit_ratio",
    "vm/max_map_count",
    "net/core/somaxconn",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/ip_unprivileged_port_start",
    "net/unix/max_dgram_qlen",
    "fs/file-max",
    "fs/nr_open",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "kernel/pid_max",
    "kernel/shmmax",
    "kernel/shmall",
)
# What is set by hand and in no file (sysctl -w), and for which nobody wants another kernel's own
# choice: it has time until systemd has started.
_TUNED = (
    "vm/swappiness",
    "vm/vfs_cache_pressure",
    "vm/dirty_ratio",
    "vm/dirty_background_ratio",
    "vm/dirty_expire_centisecs",
    "vm/dirty_writeback_centisecs",
    "vm/panic_on_oom",
    "net/core/default_qdisc",
    "net/core/netdev_max_backlog",
    "net/core/rmem_default",
    "net/core/wmem_default",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_fin_timeout",
    "net/ipv4/tcp_keepalive_intvl",
    "net/ipv4/tcp_keepalive_probes",
    "net/ipv4/tcp_keepalive_time",
    "net/ipv4/tcp_mtu_probing",
    "net/ipv4/tcp_retries2",
    "net/ipv4/tcp_slow_start_after_idle",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/arp_announce",
    "net/ipv4/conf/all/arp_ignore",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/all/disable_ipv6",
    "fs/aio-max-nr",
    "fs/inotify/max_queued_events",
    "fs/suid_dumpable",
    "kernel/core_pattern",
    "kernel/core_uses_pid",
    "kernel/dmesg_restrict",
    "kernel/hung_task_timeout_secs",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/perf_event_paranoid",
    "kernel/sem",
    "kernel/sysrq",
    "kernel/unprivileged_userns_clone",
)


def values() -> dict[str, str]:
    """Name -> value of what must be set before the restore, of what exists here."""
    return _read(_NAMES)


def tuned() -> dict[str, str]:
    """The same of what can be set when systemd runs."""
    return _read(_TUNED)


def set_again(wanted: Mapping[str, str]) -> list[str]:
    """Set those that are not as wanted; returns which could not be, in words."""
    problems = []
    for name, value in _read(wanted).items():
        if value != wanted[name]:
            try:
                (_PROC_SYS / name).write_text(wanted[name])
            except OSError as error:
                problems.append(f"{name} is not {wanted[name]} as before: {error.strerror}")
    return problems


def _read(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        path = _PROC_SYS / name
        if path.exists():
            found[name] = path.read_text().strip()
    return found
