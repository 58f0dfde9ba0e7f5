"""Units as systemd sees them, by way of ``systemctl show``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rekernel.run import run

_PROPERTIES = (
    "Id", "ActiveState", "SubState", "Type", "MainPID", "ControlGroup", "InvocationID",
    "ActiveEnterTimestamp", "StateChangeTimestamp", "InactiveExitTimestamp", "NRestarts",
    "FragmentPath", "DropInPaths", "PrivateUsers", "Slice", "Delegate", "NFileDescriptorStore",
    "StatusText", "WatchdogUSec", "TriggeredBy", "PrivateIPC", "SyslogIdentifier", "SyslogPriority",
    "SyslogLevelPrefix", "RuntimeDirectory", "Description", "ExecStart",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unit:
    """A service unit with running processes."""

    name: str
    active: str
    sub: str
    type: str
    main_pid: int
    cgroup: str
    description: str
    properties: dict[str, str]

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


def running_services() -> list[Unit]:
    """Every service that is active in any way."""
    text = run(
        ["systemctl", "list-units", "--type=service", "--no-legend", "--plain", "--full",
         "--state=active,activating,deactivating,reloading,refreshing"]
    )  # fmt: skip
    return show([line.split()[0] for line in text.splitlines() if line.strip()])


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
