"""Units as systemd sees them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rekernel import smallfiles
from rekernel.containers.model import is_container
from rekernel.records import record
from rekernel.systemd import bus

_OF_ALL = (
    "Id", "ActiveState", "SubState", "Description", "InvocationID", "ActiveEnterTimestamp",
    "StateChangeTimestamp", "InactiveExitTimestamp", "FragmentPath", "DropInPaths",
)  # fmt: skip
_OF_SERVICES = (
    "Type", "MainPID", "NRestarts", "PrivateUsers", "NFileDescriptorStore", "StatusText",
)  # fmt: skip
_WITH_CGROUP = ("ControlGroup", "Slice")
_HAVE_CGROUP = (".service", ".scope", ".slice", ".socket")
# Of a unit that something is done for.
ACTIVE = ("active", "activating", "deactivating", "reloading", "refreshing")


_CGROUPS = Path("/sys/fs/cgroup")
_LOGIN = re.compile(r"session-[^/]+\.scope$")
_MANAGER = re.compile(r"user@(\d+)\.service$")


def is_login(unit: str) -> bool:
    """Whether a unit is what somebody runs who has logged in (pam_systemd(8))."""
    return bool(_LOGIN.match(unit))


def manager_of(unit: str) -> int | None:
    """UID of the user whose manager (``systemd --user``) a unit is; None of any other unit."""
    match = _MANAGER.match(unit)
    return int(match[1]) if match else None


@record
class Unit:
    """A service, or the scope of a login, with running processes."""

    name: str
    active: str
    sub: str
    type: str
    main_pid: int
    cgroup: str
    description: str
    properties: dict[str, str]

    @property
    def is_login(self) -> bool:
        """Whether it is a login: see :func:`is_login`."""
        return is_login(self.name)

    @property
    def is_manager(self) -> bool:
        """Whether it is the manager of a user's own services, with those."""
        return manager_of(self.name) is not None

    @property
    def is_container(self) -> bool:
        """Whether it is the scope of a container."""
        return is_container(self.name)

    @property
    def private_users(self) -> bool:
        """Whether its processes sit in a user namespace of their own."""
        return self.properties.get("PrivateUsers", "no") not in ("", "no")


def _wanted(name: str) -> list[tuple[str, str, str]]:
    own = (
        *(_OF_SERVICES if name.endswith(".service") else ()),
        *(_WITH_CGROUP if name.endswith(_HAVE_CGROUP) else ()),
    )
    return [
        *((name, bus.UNIT, key) for key in _OF_ALL),
        *((name, bus.interface_of(name), key) for key in own),
    ]


def show(names: Sequence[str]) -> list[Unit]:
    """Show these units, in this order; one that is not there is inactive. Raises NoSystemdError."""
    if not names:
        return []
    wanted = [_wanted(name) for name in names]
    with bus.Bus() as systemd:
        answers = iter(systemd.get([item for items in wanted for item in items]))
    return [
        _unit(name, {key: bus.text(next(answers)) for _, _, key in items})
        for name, items in zip(names, wanted, strict=True)
    ]


def _unit(name: str, properties: dict[str, str]) -> Unit:
    return Unit(
        # Which may have been asked for by an alias.
        name=properties["Id"] or name,
        active=properties["ActiveState"] or "inactive",
        sub=properties["SubState"],
        type=properties.get("Type", ""),
        main_pid=int(properties.get("MainPID") or 0),
        cgroup=properties.get("ControlGroup", ""),
        description=properties["Description"],
        properties=properties,
    )


def state_of(name: str) -> str:
    """ "active", "inactive" and so on. Raises NoSystemdError."""
    with bus.Bus() as systemd:
        (state,) = systemd.get([(name, bus.UNIT, "ActiveState")])
    return state or "inactive"


def booted() -> list[int]:
    """When the initrd's systemd and this one began, in µs since the kernel's start; 0 if not."""
    names = ("InitRDTimestampMonotonic", "UserspaceTimestampMonotonic")
    with bus.Bus() as systemd:
        return [stamp or 0 for stamp in systemd.get([("", bus.MANAGER, name) for name in names])]


def exited(*patterns: str) -> list[Unit]:
    """Services that have done what they are for, and count as active (RemainAfterExit=)."""
    return show(active(".service", states=["exited"], patterns=patterns))


def running_services() -> list[Unit]:
    """Every service that is active in any way."""
    return show(active(".service"))


def running_units() -> list[Unit]:
    """Every service that is active in any way, every login, every container, and its monitor.

    Only those with processes: most services of a machine have done what they are for.
    """
    names = [name for name in active(".service", ".scope") if may_travel(name)]
    with bus.Bus() as systemd:
        groups = systemd.get([(name, bus.interface_of(name), "ControlGroup") for name in names])
    return show([name for name, path in zip(names, groups, strict=True) if _is_populated(path)])


def _is_populated(cgroup: str | None) -> bool:
    """Whether there are processes at or below this control group (admin-guide/cgroup-v2.rst)."""
    if not cgroup:
        return False
    try:
        return b"populated 1" in smallfiles.read(f"{_CGROUPS}/{cgroup.lstrip('/')}/cgroup.events")
    except OSError:
        return False


def may_travel(name: str) -> bool:
    """Whether units with such a name can be carried or restarted: no other scopes."""
    is_service = name.endswith(".service")
    return is_service or is_login(name) or is_container(name) or name.startswith("libpod-conmon-")


def active(*types: str, states: Sequence[str] = ACTIVE, patterns: Sequence[str] = ()) -> list[str]:
    """Names of the units of these types (".service", …) in these states, sorted.

    Raises NoSystemdError.
    """
    with bus.Bus() as systemd:
        return sorted(name for name in systemd.units(states, patterns) if name.endswith(types))


def members(units: Iterable[Unit], parents: Mapping[int, int]) -> dict[str, dict[int, str]]:
    """Processes of each unit: PID -> control group. A unit without one has none.

    Those in control groups are its own, but for what a user's manager has taken over at the wish of
    who started it, a window of tmux say: that belongs to whom its parent belongs to, be it none of
    these.
    """
    listed = list(units)
    found = {unit.name: processes_of(unit.cgroup) if unit.cgroup else {} for unit in listed}
    owners = {pid: name for name, pids in found.items() for pid in pids}
    for unit in listed:
        for pid in [*found[unit.name]] if unit.is_manager else ():
            above = parents.get(pid)
            while above is not None and owners.get(above) == unit.name:
                above = parents.get(above)
            # What init has become the parent of stays.
            if above in (None, 0, 1):
                continue
            path = found[unit.name].pop(pid)
            home = owners.get(above)
            if home is not None:
                found[home][pid] = path
    return found


def processes_of(cgroup: str) -> dict[int, str]:
    """PID -> control group, for everything at or below this control group."""
    found = {}
    top = f"{_CGROUPS}/{cgroup.lstrip('/')}"
    for directory, _, _ in os.walk(top):
        with suppress(OSError):
            path = directory.removeprefix(str(_CGROUPS))
            for pid in smallfiles.read(f"{directory}/cgroup.procs").split():
                found[int(pid)] = path
    return found
