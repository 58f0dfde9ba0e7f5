"""Settings below /proc/sys that carried programs rely on."""

from __future__ import annotations

from pathlib import Path

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


def values() -> dict[str, str]:
    """Name -> value of what exists here."""
    found = {}
    for name in _NAMES:
        path = Path("/proc/sys", name)
        if path.exists():
            found[name] = path.read_text().strip()
    return found
