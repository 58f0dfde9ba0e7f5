"""Every service with its verdict: carried, restarted, plumbing, or blocking; and why."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import resources
from pathlib import Path

from rekernel.census import obstacles, sharing
from rekernel.checkpoint import unixsockets
from rekernel.checkpoint.options import roots_of
from rekernel.checkpoint.unixsockets import JOURNAL_STDOUT, holders, leading_out
from rekernel.host.mounts import RUN_SYSTEMD_CARRIED
from rekernel.policy import Policy
from rekernel.systemd import unitfiles
from rekernel.systemd.units import Unit, processes_of


class Verdict(StrEnum):
    """What an upgrade does with a unit."""

    CARRIED = "carried"
    RESTARTED = "restarted"
    PLUMBING = "plumbing"
    BLOCKS = "blocks"


@dataclass(frozen=True, slots=True)
class UnitVerdict:
    """One unit with everything known about it."""

    unit: Unit
    verdict: Verdict
    reason: str
    remedy: str = ""
    # PID -> control group.
    processes: dict[int, str] = field(default_factory=dict)
    root_pid: int = 0


def plumbing_reason(name: str) -> str | None:
    """Why this unit boots afresh, or None if it does not."""
    text = resources.files("rekernel.census").joinpath("plumbing.toml").read_text()
    for pattern, reason in tomllib.loads(text)["units"].items():
        if fnmatch.fnmatch(name, pattern):
            return str(reason)
    return None


def _nested_namespaces(pids: Sequence[int]) -> str:
    for pid in pids:
        for name, words in (("user", "user"), ("pid", "PID"), ("net", "network")):
            try:
                own = os.readlink(f"/proc/{pid}/ns/{name}")
            except OSError:
                continue
            if own != os.readlink(f"/proc/1/ns/{name}"):
                return f"process {pid} is in a {words} namespace of its own"
    return ""


def _session(pid: int) -> int:
    """The leader of its session; its own PID if it is gone, as what follows finds out."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return pid


def _volatile_definition(unit: Unit) -> str:
    """Whether the next systemd would not know this unit, in words: it would end its processes."""
    path = unit.properties.get("FragmentPath", "")
    for directory, words in (("transient", "transient"), ("system", "defined at run time only")):
        if path.startswith(f"/run/systemd/{directory}/") and directory not in RUN_SYSTEMD_CARRIED:
            return f"it is {words} ({path}): it ends with this kernel"
    return ""


def _judge(
    unit: Unit,
    processes: dict[int, str],
    parents: dict[int, int],
    shared: sharing.Shared | None,
) -> tuple[Verdict, str, str]:
    if unit.sub != "running":
        return Verdict.RESTARTED, f"it is {unit.sub}, not running", "wait until it is running"
    volatile = _volatile_definition(unit)
    if volatile:
        return Verdict.RESTARTED, volatile, "install it as a unit file below /etc/systemd/system"
    roots = roots_of(list(processes), parents)
    if len(roots) != 1:
        return (
            Verdict.RESTARTED,
            f"its processes form {len(roots)} separate trees",
            "only units with one process tree are carried so far",
        )
    leader = _session(roots[0])
    if leader != roots[0]:
        return (
            Verdict.RESTARTED,
            f"process {roots[0]} belongs to the session of process {leader}",
            "criu needs the leader of a session on top: let the service stay in the foreground",
        )
    stored = unit.properties.get("NFileDescriptorStore", "0")
    if stored not in ("", "0"):
        return (
            Verdict.RESTARTED,
            f"systemd keeps {stored} of its descriptors in store",
            "they cannot be given to the next systemd yet",
        )
    if unit.private_users:
        return (
            Verdict.RESTARTED,
            "PrivateUsers= gives it a user namespace that criu cannot dump",
            "let `rekernel setup` write a drop-in with PrivateUsers=no, then restart the unit",
        )
    namespaces = _nested_namespaces(list(processes))
    if namespaces:
        return Verdict.RESTARTED, namespaces, "units with such a name space are not carried yet"
    if any(path != unit.cgroup for path in processes.values()):
        return (
            Verdict.RESTARTED,
            "it has control groups below its own",
            "units with delegated control groups are not carried yet",
        )
    obstacle = obstacles.find(list(processes))
    if obstacle is not None:
        return Verdict.RESTARTED, obstacle.what, obstacle.remedy
    if shared is not None:
        return (
            Verdict.RESTARTED,
            f"process {shared.pid} shares {shared.what} with process {shared.other} outside of it",
            "criu dumps one tree at a time: what they share would be torn apart",
        )
    return Verdict.CARRIED, "", ""


def judge(units: Sequence[Unit], policy: Policy, parents: dict[int, int]) -> list[UnitVerdict]:
    """One verdict per unit with processes, in the order of their names.

    A unit that policy says must be carried and cannot be blocks the upgrade.
    """
    found = []
    members = {unit.name: processes_of(unit.cgroup) if unit.cgroup else {} for unit in units}
    shared = sharing.find(members, parents)
    for unit in sorted(units, key=lambda item: item.name):
        processes = members[unit.name]
        if not processes:
            continue
        reason = plumbing_reason(unit.name)
        # Whoever runs the machine comes before whoever wrote the unit.
        wish = policy.wish(unit.name) or unitfiles.wish(unit)
        roots = roots_of(list(processes), parents)
        root = roots[0] if len(roots) == 1 else 0
        if reason is not None and wish != "carry":
            found.append(UnitVerdict(unit, Verdict.PLUMBING, reason, "", processes, root))
            continue
        if wish == "restart":
            text = "policy says so" if policy.wish(unit.name) else "its unit file says so"
            found.append(UnitVerdict(unit, Verdict.RESTARTED, text, "", processes, root))
            continue
        verdict, why, remedy = _judge(unit, processes, parents, shared.get(unit.name))
        if verdict is not Verdict.CARRIED and wish in ("carry", "block"):
            verdict = Verdict.BLOCKS
        found.append(UnitVerdict(unit, verdict, why, remedy, processes, root))
    return _with_broken_connections(found)


def _with_broken_connections(units: Sequence[UnitVerdict]) -> list[UnitVerdict]:
    """Say of carried units which of their connections over unix sockets will not go along."""
    sockets = unixsockets.observe()
    own = [holders(item.processes) for item in units]
    owner = {inode: item for item, inodes in zip(units, own, strict=True) for inode in inodes}
    found = []
    for item, inodes in zip(units, own, strict=True):
        broken: dict[str, None] = {}
        for near, far in leading_out(inodes, sockets):
            other = owner.get(near.peer)
            if far is not None and far.name == JOURNAL_STDOUT:
                continue
            if other is None or other.verdict is not Verdict.CARRIED:
                broken[other.unit.name if other else (far and far.name) or "a process"] = None
        if item.verdict is Verdict.CARRIED and broken:
            reason = f"its connection to {', '.join(broken)} ends, as when that starts again"
            item = dataclasses.replace(item, reason=reason)
        found.append(item)
    return found


def sessions() -> list[str]:
    """Scopes of logged-in users: they end with an upgrade so far."""
    top = Path("/sys/fs/cgroup/user.slice")
    return sorted(
        path.parent.name
        for path in top.glob("user-*.slice/session-*.scope/cgroup.procs")
        if path.read_text().strip()
    )
