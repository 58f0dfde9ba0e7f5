"""Units as systemd sees them, by way of ``systemctl show``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rekernel.containers.model import is_container
from rekernel.records import record
from rekernel.run import run

_PROPERTIES = (
    "Id", "ActiveState", "SubState", "Type", "MainPID", "ControlGroup", "InvocationID",
    "ActiveEnterTimestamp", "StateChangeTimestamp", "InactiveExitTimestamp", "NRestarts",
    "FragmentPath", "DropInPaths", "PrivateUsers", "Slice", "Delegate", "NFileDescriptorStore",
    "StatusText", "WatchdogUSec", "TriggeredBy", "PrivateIPC", "SyslogIdentifier", "SyslogPriority",
    "SyslogLevelPrefix", "RuntimeDirectory", "Description", "ExecStart",
)  # fmt: skip


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
        """As :func:`is_login`."""
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


def parse_show(text: str) -> list[dict[str, str]]:
    """Blocks of ``systemctl show`` for several units."""
    blocks = []
    for block in text.split("\n\n"):
        # Not splitlines(): a service chooses its StatusText, vertical tabs and all.
        properties = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
        if properties:
            blocks.append(properties)
    return blocks


def show(names: Sequence[str]) -> list[Unit]:
    """These units. Raises CommandFailedError."""
    if not names:
        return []
    text = run(
        ["systemctl", "show", "--timestamp=us+utc", f"--property={','.join(_PROPERTIES)}", "--",
         *names]
    )  # fmt: skip
    return [
        Unit(
            name=properties["Id"],
            active=properties.get("ActiveState", ""),
            sub=properties.get("SubState", ""),
            type=properties.get("Type", ""),
            main_pid=int(properties.get("MainPID") or 0),
            cgroup=properties.get("ControlGroup", ""),
            description=properties.get("Description", ""),
            properties=properties,
        )
        for properties in parse_show(text)
    ]


def exited(*patterns: str) -> list[Unit]:
    """Services that have done what they are for, and count as active (RemainAfterExit=)."""
    return show(active("service", "exited", *patterns))


def running_services() -> list[Unit]:
    """Every service that is active in any way."""
    return show(active("service"))


def running_units() -> list[Unit]:
    """Every service that is active in any way, every login, every container, and its monitor."""
    names = active("service,scope")
    own = [name for name in names if name.endswith(".service") or is_login(name)]
    of_containers = [
        name for name in names if is_container(name) or name.startswith("libpod-conmon-")
    ]
    return show([*own, *of_containers])


def active(
    types: str, states: str = "active,activating,deactivating,reloading,refreshing", *patterns: str
) -> list[str]:
    """Names of the units of these types in these states. Raises CommandFailedError."""
    text = run(
        ["systemctl", "list-units", f"--type={types}", "--no-legend", "--plain", "--full",
         f"--state={states}", *patterns]
    )  # fmt: skip
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def members(units: Iterable[Unit], parents: Mapping[int, int]) -> dict[str, dict[int, str]]:
    """Of each unit its processes: PID -> control group. Without one it has none.

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
    top = Path("/sys/fs/cgroup", cgroup.lstrip("/"))
    for procs in [top / "cgroup.procs", *top.glob("**/cgroup.procs")]:
        try:
            text = procs.read_text()
        except OSError:
            continue
        path = "/" + str(procs.parent.relative_to("/sys/fs/cgroup"))
        for line in text.split():
            found[int(line)] = path
    return found
