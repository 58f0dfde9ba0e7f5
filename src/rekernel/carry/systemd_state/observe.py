"""The state with which a starting systemd takes carried services as its own.

A system manager that follows an initrd is started as ``--switched-root --deserialize FD`` and
reads there which units run already: ``key=value`` lines, a section per unit, keys that it does not
know are skipped (src/core/manager-serialize.c, unit-serialize.c, service.c of systemd). We play the
initrd: the services "it" started are the ones that were carried.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from rekernel.carry.mounts.observe import MountInfo
from rekernel.systemd.units import Unit


def header(private_tmps: dict[str, tuple[str, str]]) -> str:
    """Manager-level lines and the journal's sockets; {stdout}, … are filled in by the agent.

    ``private_tmps``: unit -> its private /tmp and /var/tmp directories.
    """
    lines = [
        f"exec-runtime={unit} tmp-dir={tmp} var-tmp-dir={var_tmp}"
        for unit, (tmp, var_tmp) in private_tmps.items()
    ]
    lines += [
        "",
        # Opened by the agent: what services write before the journal runs waits in it.
        "systemd-journald.socket",
        "state=dead",
        "socket={stdout} 1 /run/systemd/journal/stdout",
        "socket={native} 2 /run/systemd/journal/socket",
        "",
        "systemd-journald-dev-log.socket",
        "state=dead",
        "socket={syslog} 2 /run/systemd/journal/dev-log",
        "",
    ]
    return "\n".join(lines) + "\n"


def _timestamp(realtime: str) -> str | None:
    """µs of real time as systemd's "realtime monotonic" pair; None for never."""
    # The monotonic clock starts anew; the smallest valid value says "before this boot".
    return f"{realtime} 1" if realtime not in ("", "0") else None


def _escape(text: str) -> str:
    """For values that systemd unescapes: the service's own words must stay one line."""
    return "".join(
        f"\\x{ord(char):02x}" if char == "\\" or ord(char) < 32 or ord(char) == 127 else char
        for char in text
    )


def section(unit: Unit) -> str:
    """The section of one active unit, running or not, or of a slice."""
    properties = unit.properties
    lines = [unit.name]
    if properties.get("FragmentPath", "").startswith("/run/systemd/transient/"):
        lines.append("transient=yes")
    for key, name in (
        ("state-change-timestamp", "StateChangeTimestamp"),
        ("inactive-exit-timestamp", "InactiveExitTimestamp"),
        ("active-enter-timestamp", "ActiveEnterTimestamp"),
    ):
        stamp = _timestamp(properties.get(name, ""))
        if stamp is not None:
            lines.append(f"{key}={stamp}")
    lines += ["condition-result=yes", "assert-result=yes"]
    if unit.cgroup:
        lines += [f"cgroup={unit.cgroup}", "cgroup-realized=yes"]
    if properties.get("InvocationID"):
        lines.append(f"invocation-id={properties['InvocationID']}")
    lines += [f"state={unit.sub}", "result=success"]
    if unit.main_pid:
        lines += [f"main-pid={unit.main_pid}", "main-pid-known=yes"]
    if properties.get("NRestarts", "0") != "0":
        lines.append(f"n-restarts={properties['NRestarts']}")
    if properties.get("StatusText"):
        lines.append(f"status-text={_escape(properties['StatusText'])}")
    return "\n".join(lines) + "\n\n"


def private_tmp(mounts: Sequence[MountInfo]) -> tuple[str, str] | None:
    """The directories behind a unit's private /tmp and /var/tmp, from its own mounts."""
    found = {}
    for mount in mounts:
        marker = "/systemd-private-"
        if mount.target in ("/tmp", "/var/tmp") and marker in mount.root:
            # The root is relative to its file system: on a tmpfs it lacks the mount point.
            inner = mount.root[mount.root.index(marker) :]
            found[mount.target] = os.path.dirname(f"{mount.target}{inner}")
    if "/tmp" in found and "/var/tmp" in found:
        return found["/tmp"], found["/var/tmp"]
    return None


TMPFILES_OVERRIDE = "/run/tmpfiles.d/systemd-tmp.conf"


def keep_private_tmps(private_tmps: dict[str, tuple[str, str]]) -> str:
    """A tmpfiles.d file that stands in for systemd's own systemd-tmp.conf for one boot.

    That one removes every unit's private /tmp at boot; carried units still use theirs. What
    belongs to other units of this boot is removed as ever.
    """
    kept = {path for pair in private_tmps.values() for path in pair}
    lines = []
    for top in ("/tmp", "/var/tmp"):
        lines += [f"x {top}/systemd-private-*", f"X {top}/systemd-private-*/tmp"]
        lines += [
            f"R! {path}"
            for path in sorted(glob.glob(f"{top}/systemd-private-*"))
            if path not in kept
        ]
    return "\n".join(lines) + "\n"
