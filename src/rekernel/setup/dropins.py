"""What a unit's own settings must give up so that criu can carry it."""

from __future__ import annotations

from collections.abc import Sequence

from rekernel.census import obstacles
from rekernel.census.obstacles import Curable
from rekernel.census.verdicts import plumbing_reason
from rekernel.policy import Policy
from rekernel.records import record
from rekernel.systemd import unitfiles
from rekernel.systemd.units import Unit, processes_of

_HEAD = "# Written by `rekernel setup`; taken back by `rekernel setup --undo`.\n"
UNIT_DIRECTORY = "/etc/systemd/system"


@record
class Remedy:
    """A line of a drop-in's [Service] section. ``why``: its comment."""

    line: str
    why: str


PRIVATE_USERS = Remedy(
    "PrivateUsers=no", "A user namespace of its own is what criu cannot carry to another kernel."
)
NO_JIT_BUFFER = Remedy(
    # Nothing before the colon: after the directory that PHP was built with.
    "Environment=PHP_INI_SCAN_DIR=:/usr/share/rekernel/php",
    "PHP's buffer for compiled code is what criu cannot carry; Debian's PHP does not use it.",
)
PRIVATE_IPC = Remedy(
    "PrivateIPC=yes", "System V memory criu carries with the whole name space that it is in."
)
NO_RING = Remedy(
    "SystemCallFilter=~io_uring_setup:ENOSYS",
    "io_uring is what criu cannot carry; this program does without where the kernel has none.",
)
_CURES = {
    Curable.HOST_IPC: PRIVATE_IPC,
    Curable.SHARED_CODE: NO_JIT_BUFFER,
    Curable.RING: NO_RING,
}
REMEDIES = (PRIVATE_USERS, *_CURES.values())


def path_of(unit: str) -> str:
    """The drop-in file for a unit."""
    return f"{UNIT_DIRECTORY}/{unit}.d/50-rekernel.conf"


def content(remedies: Sequence[Remedy]) -> bytes:
    """The drop-in with these remedies."""
    chosen = [item for item in REMEDIES if item in remedies]
    why = "".join(f"# {item.why}\n" for item in chosen)
    return (_HEAD + why + "[Service]\n" + "".join(f"{item.line}\n" for item in chosen)).encode()


def in_effect(data: bytes) -> list[Remedy]:
    """The remedies that a drop-in of ours holds already."""
    lines = data.decode(errors="replace").splitlines()
    return [item for item in REMEDIES if item.line in lines]


def needed(units: Sequence[Unit], policy: Policy) -> dict[str, list[Remedy]]:
    """Running units that can be carried only with a drop-in, by name, and what it must say."""
    found = {}
    for unit in sorted(units, key=lambda item: item.name):
        wish = policy.wish(unit.name) or unitfiles.wish(unit)
        # A transient unit is gone before its drop-in is read.
        transient = unit.properties.get("FragmentPath", "").startswith("/run/")
        if wish == "restart" or transient or (plumbing_reason(unit.name) and wish != "carry"):
            continue
        # One would be for everything that the user runs.
        if unit.is_manager:
            continue
        remedies = [PRIVATE_USERS] if unit.private_users else []
        pids = list(processes_of(unit.cgroup)) if unit.cgroup else []
        curable = obstacles.curable(pids)
        remedies += [cure for found, cure in _CURES.items() if found in curable]
        if remedies:
            found[unit.name] = remedies
    return found
