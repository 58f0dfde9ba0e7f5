"""The handover manifest: everything the agent must know, prepared by the old side.

A versioned contract. The old side does the thinking (argument vectors, scripts, module lists are
written out here); the agent only carries out. Standard library only.
"""

from __future__ import annotations

import json
from typing import Any

from rekernel.carry.cgroups.entry import Cgroup
from rekernel.carry.loops.entry import LoopDevice
from rekernel.carry.memory.entry import Memory
from rekernel.carry.mounts.entry import Mount
from rekernel.carry.network.entry import Network
from rekernel.carry.task_attributes.entry import TaskAttributes
from rekernel.carry.unix_sockets.entry import DatagramConnection, UnixConnection
from rekernel.criu.entry import Inherited
from rekernel.records import field, fields, record
from rekernel.typed_json import ShapeError, build

SCHEMA = 1
MANIFEST_BLOB = "manifest.json"
# Prefix of the blobs with criu's images, and where the agent unpacks them, below the other.
IMAGES_DIRECTORY = "images"
RESTORE_WORK = "/run/rekernel/restore"


class ManifestError(ShapeError):
    """The manifest cannot be used here; the message says why."""


@record
class Clock:
    """One instant on both clocks; the TSC runs through the kexec, the others do not."""

    realtime_ns: int
    tsc: int
    tsc_hz: int


@record
class Phase:
    """A timed phase; nanoseconds of real time."""

    name: str
    start_ns: int
    end_ns: int
    side: str = "old"


@record
class Tree:
    """One process tree: one criu restore."""

    name: str
    unit: str
    root_pid: int
    # Prefix of its image blobs in the store, or a directory on the disk.
    images: str
    # criu command line; {images} and {work} stand for directories, --inherit-fd is appended.
    argv: tuple[str, ...]
    inherited: tuple[Inherited, ...]
    # PID -> cgroup path below /sys/fs/cgroup, for every process.
    cgroups: dict[str, str]
    task_attributes: TaskAttributes = field(default_factory=TaskAttributes)
    # Names of trees that must be there before: their terminals are open in this one.
    after: tuple[str, ...] = ()
    # Numbers of the terminals that criu makes again in it, ascending.
    terminals: tuple[int, ...] = ()
    # Signal for its first process as soon as it runs, 0 for none.
    signal: int = 0
    # Of a mount namespace of its own: mount point -> flags as mount(2) takes them.
    mounts: dict[str, int] = field(default_factory=dict)


@record
class Host:
    """Everything outside of the processes that travels: a field for each resource."""

    mounts: tuple[Mount, ...]
    # Directories that must exist: mount points in the units' own mount namespaces.
    directories: tuple[str, ...]
    # Files that carried processes map: read ahead while they are restored.
    prefetch: tuple[str, ...]
    # Path -> text of small files to write below /run.
    files: dict[str, str]
    # Made with mode 0600.
    fifos: tuple[str, ...]
    network: Network
    hostname: str
    sysctls: dict[str, str]
    # Text for systemd's --deserialize: what comes first ({stdout}, {native} and {syslog} stand for
    # the journal's sockets), then a section for each carried unit.
    systemd_header: str
    systemd_units: dict[str, str]
    loops: tuple[LoopDevice, ...] = ()


@record
class Manifest:
    """See the module's description."""

    schema: int
    id: str
    machine_id: str
    old_release: str
    new_release: str
    clock: Clock
    frozen_ns: int
    memory: Memory
    host: Host
    trees: tuple[Tree, ...]
    # To be made, each before those below it.
    cgroups: tuple[Cgroup, ...]
    # Seconds in which everything must be restored, or it is given up.
    patience_s: int
    # PIDs in use by what is carried: the agent forks above them.
    highest_pid: int
    init: tuple[str, ...]
    # Connections over unix sockets that no single restore can bring back.
    unix_connections: tuple[UnixConnection, ...] = ()
    datagrams: tuple[DatagramConnection, ...] = ()
    # Name below inotify's WATCHED -> file, not followed if it is a symbolic link: it leads there
    # while the trees are restored.
    watched: dict[str, str] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    # What the old side already knows for the report, passed through unread.
    report: dict[str, Any] = field(default_factory=dict)


def dump(manifest: Manifest) -> bytes:
    """The manifest as JSON."""
    return json.dumps(manifest, default=_fields, separators=(",", ":")).encode()


def _fields(part: Any) -> dict[str, Any]:
    """Of an object of one of the classes above. Unlike records.asdict() it copies nothing."""
    return {name: getattr(part, name) for name in fields(part)}


def load(data: bytes) -> Manifest:
    """Parse and check. Raises ManifestError for another schema, ShapeError for a wrong field."""
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise ManifestError(f"the manifest is no JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ManifestError("the manifest is no JSON object")
    if raw.get("schema") != SCHEMA:
        raise ManifestError(
            f"the manifest has schema {raw.get('schema')!r}, this agent understands {SCHEMA}"
        )
    manifest = build(Manifest, raw, "manifest")
    assert isinstance(manifest, Manifest)
    return manifest
