"""Every service and login with its verdict: carried, restarted, plumbing, …; and why."""

from __future__ import annotations

import fnmatch
import functools
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from rekernel.carry.logins import observe as logins
from rekernel.carry.logins.observe import Login
from rekernel.carry.runtime_units.observe import is_transient
from rekernel.carry.unix_sockets import sockets as unixsockets
from rekernel.carry.unix_sockets.sockets import (
    JOURNAL_STDOUT,
    UnixSocket,
    holders,
    journal_streams,
    leading_out,
    sent_to_init,
)
from rekernel.census import obstacles, sharing, strangers
from rekernel.containers import docker, podman
from rekernel.containers.model import Container
from rekernel.criu.options import trees_of
from rekernel.policy import Policy
from rekernel.records import field, record, replace
from rekernel.systemd import unitfiles
from rekernel.systemd.units import Unit, members


class Verdict(StrEnum):
    """What an upgrade does with a unit."""

    CARRIED = "carried"
    RESTARTED = "restarted"
    # A login, a transient unit: nobody could start it anew. It runs until the kexec.
    ENDS = "ends"
    PLUMBING = "plumbing"
    BLOCKS = "blocks"


@record
class UnitVerdict:
    """One unit with everything known about it."""

    unit: Unit
    verdict: Verdict
    reason: str
    remedy: str = ""
    # PID -> control group.
    processes: dict[int, str] = field(default_factory=dict)
    # Of its process trees.
    roots: tuple[int, ...] = ()
    # If it is one.
    container: Container | None = None
    # What policy or its unit file wishes for it: "carry", "block", "restart".
    wish: str | None = None


def plumbing_reason(name: str, of: str = "units") -> str | None:
    """Why this unit boots afresh, or None if it does not; ``of``: section of the table."""
    for pattern, reason in _plumbing()[of].items():
        # Most are told by their beginning, and patterns are slow to make.
        if name.startswith(pattern.partition("*")[0]) and fnmatch.fnmatchcase(name, pattern):
            return str(reason)
    return None


@functools.cache
def _plumbing() -> dict[str, dict[str, str]]:
    return tomllib.loads(Path(__file__).with_name("plumbing.toml").read_text())


def _runs_nothing(manager: Unit, groups: Iterable[str]) -> bool:
    """Whether a user's manager could as well start afresh. ``groups``: of all processes."""
    below = f"{manager.cgroup}/"
    names = {path.rpartition("/")[2] for path in groups if path.startswith(below)}
    return all(
        name == "init.scope" or plumbing_reason(name, "user-units") is not None for name in names
    )


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


def _setting(group: str, name: str) -> str:
    """What a file of a control group holds; "" if that is gone."""
    try:
        return Path("/sys/fs/cgroup", group.lstrip("/"), name).read_text().strip()
    except OSError:
        return ""


def _of_login(
    login: Login | None, verdict: Verdict, why: str, remedy: str
) -> tuple[Verdict, str, str]:
    """The same for a login: one that cannot be carried ends."""
    if login is None:
        return Verdict.ENDS, "systemd-logind does not know this login", "log out and in again"
    if verdict is not Verdict.CARRIED:
        return Verdict.ENDS, f"{login.words}: {why}", remedy
    if login.service != "sshd":
        return Verdict.ENDS, f"{login.words}: only logins over ssh are carried yet", "use ssh"
    return verdict, login.words, ""


def _of_manager(unit: Unit, verdict: Verdict, why: str) -> tuple[Verdict, str]:
    """The same for a user's manager: to stop it would take the user's logins their /run/user/."""
    words = f"{logins.user_of(unit.name)}'s own services"
    if verdict is Verdict.CARRIED:
        return verdict, words
    return Verdict.ENDS, f"{words}: {why}"


def _judge(
    unit: Unit,
    processes: dict[int, str],
    shared: sharing.Shared | None,
) -> tuple[Verdict, str, str]:
    # Abandoned: logged out, but something was left to run.
    if unit.sub != "running" and not (unit.is_login and unit.sub == "abandoned"):
        return Verdict.RESTARTED, f"it is {unit.sub}, not running", "wait until it is running"
    if unit.type == "dbus":
        # systemd.service(5): who loses its name there is stopped.
        return (
            Verdict.RESTARTED,
            "systemd ends it when its name on the message bus is gone (Type=dbus)",
            "the bus boots afresh, and it does with it",
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
    for path in dict.fromkeys(processes.values()):
        if _setting(path, "cgroup.freeze") == "1":
            return Verdict.RESTARTED, f"{path} is frozen", "thaw it: systemctl thaw"
        if _setting(path, "cgroup.type") == "threaded":
            return (
                Verdict.RESTARTED,
                f"{path} is a control group of threads",
                "only whole processes are put back into their control groups yet",
            )
    obstacle = obstacles.find(list(processes))
    if obstacle is not None:
        return Verdict.RESTARTED, obstacle.what, obstacle.remedy
    if shared is not None:
        group = _group_of(shared.other)
        place = group.rpartition("/")[2] or "it has ended"
        return (
            Verdict.RESTARTED,
            f"process {shared.pid} shares {shared.what} with process {shared.other} outside of "
            f"its tree ({place})",
            "criu dumps one tree at a time: what they share would be torn apart",
        )
    return Verdict.CARRIED, "", ""


def _judge_container(
    container: Container | None, processes: dict[int, str], shared: sharing.Shared | None
) -> tuple[Verdict, str, str]:
    if container is None:
        return Verdict.ENDS, "its engine does not know this container", "podman ps, docker ps"
    name = f"container {container.name}"
    why, remedy = container.obstacle, container.remedy
    if not why:
        why, remedy = podman.runtime_obstacle()
    if not why:
        obstacle = obstacles.find(list(processes))
        if obstacle is not None:
            why, remedy = obstacle.what, obstacle.remedy
    if not why and shared is not None:
        why = f"process {shared.pid} shares {shared.what} with process {shared.other} outside of it"
    if why:
        # Nobody could start again what its engine removes.
        verdict = Verdict.ENDS if container.fleeting else Verdict.RESTARTED
        return verdict, f"{name}: {why}", remedy
    return Verdict.CARRIED, f"{name}: podman restores it when systemd runs again", ""


def _group_of(pid: int) -> str:
    """The control group of a process, "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_text().strip().partition("::")[2]
    except OSError:
        return ""


def judge(units: Sequence[Unit], policy: Policy, parents: dict[int, int]) -> list[UnitVerdict]:
    """One verdict per unit with processes, in the order of their names.

    A unit that policy says must be carried and cannot be blocks the upgrade.
    """
    found = []
    processes_by_unit = members(units, parents)
    groups = {path for pids in processes_by_unit.values() for path in pids.values()}
    trees = {name: trees_of(processes, parents) for name, processes in processes_by_unit.items()}
    each = {(name, root): pids for name, own in trees.items() for root, pids in own.items()}
    sockets = unixsockets.observe()
    known = logins.observe()
    are_logins = {unit.name for unit in units if unit.is_login}
    lending = [(name, root) for name, root in each if name in are_logins]
    harmless = {*journal_streams(sockets), *sent_to_init(sockets)}
    known_containers = podman.observe(processes_by_unit) | docker.observe(processes_by_unit)
    # The monitor of a container has the other ends of its pipes, and comes back with it.
    everyone = parents.keys() - {item.monitor for item in known_containers.values()}
    common = sharing.find(each, everyone, harmless, lending)
    # The last one of a unit is as good as the first.
    shared = {name: item for (name, _), item in common.shared.items()}
    for unit in sorted(units, key=lambda item: item.name):
        processes = processes_by_unit[unit.name]
        if not processes:
            continue
        reason = plumbing_reason(unit.name)
        if unit.is_manager and _runs_nothing(unit, groups):
            reason = "it runs nothing of the user's but itself"
        # Whoever runs the machine comes before whoever wrote the unit.
        wish = policy.wish(unit.name) or unitfiles.wish(unit)
        roots = tuple(trees[unit.name])
        container = known_containers.get(unit.name)
        if reason is not None and wish != "carry":
            found.append(UnitVerdict(unit, Verdict.PLUMBING, reason, "", processes, roots))
            continue
        if wish == "restart":
            text = "policy says so" if policy.wish(unit.name) else "its unit file says so"
            fleeting = container.fleeting if container else is_transient(unit)
            lost = fleeting or unit.is_login or unit.is_manager
            verdict = Verdict.ENDS if lost else Verdict.RESTARTED
            found.append(UnitVerdict(unit, verdict, text, "", processes, roots, container))
            continue
        if unit.is_container:
            verdict, why, remedy = _judge_container(container, processes, shared.get(unit.name))
        else:
            verdict, why, remedy = _judge(unit, processes, shared.get(unit.name))
        if unit.is_login:
            verdict, why, remedy = _of_login(known.get(unit.name), verdict, why, remedy)
        elif unit.is_manager:
            verdict, why = _of_manager(unit, verdict, why)
        elif verdict is Verdict.RESTARTED and is_transient(unit) and not container:
            # Systemd forgets it when it stops; and nobody asked for its command a second time.
            verdict, why = Verdict.ENDS, f"{why}; it is transient: it is killed, not started again"
        if verdict is not Verdict.CARRIED and wish in ("carry", "block"):
            verdict = Verdict.BLOCKS
        found.append(UnitVerdict(unit, verdict, why, remedy, processes, roots, container, wish))
    lenders: dict[str, set[str]] = {}
    for (name, _), others in common.borrowed.items():
        lenders.setdefault(name, set()).update(other for other, _ in others)
    for name, managers in _managers_of(found).items():
        lenders.setdefault(name, set()).update(managers)
    found = _with_broken_connections(_with_lenders(found, lenders), sockets)
    owned = {pid for pids in processes_by_unit.values() for pid in pids}
    return [*found, *_strangers(processes_by_unit, owned, policy, parents)]


def _strangers(
    known: Iterable[str], owned: Iterable[int], policy: Policy, parents: Mapping[int, int]
) -> Iterator[UnitVerdict]:
    """What belongs to none of the units, as if it were some."""
    for item in strangers.find(set(known), set(owned), parents):
        wish = policy.wish(item.unit.name)
        verdict = Verdict.BLOCKS if wish in ("carry", "block") else Verdict.ENDS
        yield UnitVerdict(
            item.unit, verdict, item.reason, item.remedy, item.processes, item.roots, wish=wish
        )


def _managers_of(units: Sequence[UnitVerdict]) -> dict[str, set[str]]:
    """Who has processes in the control groups of a user's manager, and of which."""
    managers = [item.unit for item in units if item.unit.is_manager]
    return {
        item.unit.name: {
            unit.name
            for unit in managers
            if any(path.startswith(f"{unit.cgroup}/") for path in item.processes.values())
        }
        for item in units
        if not item.unit.is_manager
    }


def _with_lenders(
    units: Sequence[UnitVerdict], lenders: Mapping[str, Iterable[str]]
) -> list[UnitVerdict]:
    """A login goes where the one goes whose terminal it has, or the manager that runs part of it.

    ``lenders``: unit -> the units that it cannot go along without.
    """
    found = {item.unit.name: item for item in units}
    changed = True
    while changed:
        changed = False
        for name, others in lenders.items():
            item = found[name]
            lost = [other for other in others if found[other].verdict is not Verdict.CARRIED]
            if item.verdict is Verdict.CARRIED and lost:
                reason = f"{item.reason}: part of it is in {lost[0]}, which is not carried"
                verdict = Verdict.ENDS if item.unit.is_login else Verdict.RESTARTED
                found[name] = replace(item, verdict=verdict, reason=reason)
                changed = True
    return list(found.values())


def _with_broken_connections(
    units: Sequence[UnitVerdict], sockets: Sequence[UnixSocket]
) -> list[UnitVerdict]:
    """Say of carried units which of their connections over unix sockets will not go along."""
    own = [holders(item.processes) for item in units]
    owner = {inode: item for item, inodes in zip(units, own, strict=True) for inode in inodes}
    found = []
    for item, inodes in zip(units, own, strict=True):
        unit = item.unit
        broken: dict[str, None] = {}
        for near, far in leading_out(inodes, sockets):
            other = owner.get(near.peer)
            if far is not None and far.name == JOURNAL_STDOUT:
                continue
            if other is None or other.verdict is not Verdict.CARRIED:
                broken[other.unit.name if other else (far and far.name) or "a process"] = None
        if item.verdict is Verdict.CARRIED and broken and not (unit.is_login or unit.is_manager):
            reason = f"its connection to {', '.join(broken)} ends, as when that starts again"
            item = replace(item, reason=reason)
        found.append(item)
    return found
