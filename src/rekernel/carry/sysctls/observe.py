"""Settings below /proc/sys: what carried programs rely on, and what somebody changed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rekernel import smallfiles

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
    "net/ipv4/conf/all/src_valid_mark",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv6/conf/all/forwarding",
    "net/unix/max_dgram_qlen",
    "fs/file-max",
    "fs/nr_open",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "kernel/pid_max",
    "kernel/shmmax",
    "kernel/shmall",
)
# Groups that may open sockets for echo requests: "LOWEST HIGHEST". criu opens them as root.
_PING = "net/ipv4/ping_group_range"
# What they were when this kernel had started, and the files for them had been applied: a line
# "PATH:VALUE" each (packaging/systemd/rekernel-settings.service). Whatever is another by now was
# changed by somebody, and comes from no file; all else is the next kernel's own choice.
_AT_BOOT = Path("/run/rekernel/settings")
# Those that the kernel changes by itself, a secret, and the host's name, which travels anyway.
_OWN_WILL = (
    "kernel/domainname",
    "kernel/hostname",
    "kernel/hung_task_warnings",
    "kernel/ns_last_pid",
    "kernel/perf_event_max_sample_rate",
    "kernel/tainted",
    "net/ipv4/tcp_fastopen_key",
    "vm/min_free_kbytes",
)
_FOR_GOOD = ("kernel/kexec_load_disabled", "kernel/modules_disabled")


def values() -> dict[str, str]:
    """Name -> value of what must be set before the restore, of what exists here."""
    return _read(_NAMES) | _for_ping_sockets()


def _for_ping_sockets() -> dict[str, str]:
    """With root among the groups that may open one: until all is restored.

    Nobody lists those sockets that have not sent anything yet, so it is always so.
    """
    return {name: f"0 {value.split()[1]}" for name, value in _read([_PING]).items()}


def are_noted() -> bool:
    """Whether it is known what the settings were when this kernel had started."""
    return _AT_BOOT.exists()


def changed() -> dict[str, str]:
    """Settings that somebody changed since boot, and that can wait until systemd runs.

    Without a note of what they were there is nothing to tell them by.
    """
    if not are_noted():
        return {}
    then: dict[str, list[str]] = {}
    for line in _AT_BOOT.read_text(errors="surrogateescape").splitlines():
        path, _, value = line.partition(":")
        then.setdefault(os.path.relpath(path, _PROC_SYS), []).append(value)
    now = _read(then.keys() - {*_NAMES, *_OWN_WILL})
    # Those of all interfaces are written before those of one, what cannot be taken back at the end.
    return {
        name: now[name]
        for name in sorted(now, key=lambda name: (name in _FOR_GOOD, "/all/" not in name, name))
        if now[name] != "\n".join(then[name]).strip()
    }


def to_set_again() -> dict[str, str]:
    """Settings to make again once systemd runs: the changed ones, and what values() leaves out."""
    exactly = _read([_PING]).items()
    return changed() | {name: value for name, value in exactly if value.split()[0] != "0"}


def set_again(wanted: Mapping[str, str]) -> list[str]:
    """Set those that are not as wanted; returns which could not be, in words."""
    problems: dict[str, str] = {}
    # One may change another, or be taken only when another is set.
    for _ in range(2):
        problems.clear()
        for name, value in wanted.items():
            if _read([name]).get(name, value) != value:
                try:
                    (_PROC_SYS / name).write_text(value, errors="surrogateescape")
                except OSError as error:
                    problems[name] = f"{name} is not {value} as before: {error.strerror}"
    return list(problems.values())


def _read(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        # An interface may be gone, and some have no value yet.
        with contextlib.suppress(OSError):
            found[name] = os.fsdecode(smallfiles.read(f"{_PROC_SYS}/{name}")).strip()
    return found
