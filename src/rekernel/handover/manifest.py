"""The handover manifest: everything the agent must know, prepared by the old side.

A versioned contract. The old side does the thinking (argument vectors, scripts, module lists are
written out here); the agent only carries out. Standard library only.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable
from typing import Any

from rekernel.records import field, fields, is_record, record

SCHEMA = 1
MANIFEST_BLOB = "manifest.json"
# Requests to ctnetlink, as they are sent; not there if nothing is remembered of connections.
CONNTRACK_BLOB = "conntrack"
# Prefix of the blobs with AppArmor's policies.
APPARMOR_BLOBS = "apparmor/"
# Prefix of the blobs with criu's images, and where the agent unpacks them, below the other.
IMAGES_DIRECTORY = "images"
RESTORE_WORK = "/run/rekernel/restore"
# Where criu's images look for watched files that have no path for it.
WATCHED = "/run/rekernel/watched"


class ManifestError(Exception):
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
class Extent:
    """Physical bytes [start, end)."""

    start: int
    end: int


@record
class Mount:
    """A file system to mount below the new root before the restore."""

    target: str
    fstype: str
    source: str
    flags: int
    data: str = ""
    # Store blob, or file on the disk, with a tar of its contents, "" for none; not there if it had
    # none in the end.
    contents: str = ""
    # Only for the restore: gone again before init starts.
    transient: bool = False
    # Of a file system on a disk, instead of its source.
    uuid: str = ""


@record
class LoopDevice:
    """A file as a block device; offset and sizes in bytes, a limit of 0 is none."""

    number: int
    path: str
    # The mount that the file lies in: its target.
    on: str
    offset: int
    size_limit: int
    block_size: int
    # LO_FLAGS_*
    flags: int


@record
class Link:
    """A network interface: found by MAC address, given this name, then configured.

    ``ipv6``: values below /proc/sys/net/ipv6/conf/NAME.
    """

    name: str
    mac: str
    ipv6: dict[str, str] = field(default_factory=dict)


# The part of the network that is not a tunnel, for Network.settled.
FILTER = "packet filter"


@record
class Tunnel:
    """A tunnel of WireGuard: ``config`` is input for ``wg setconf``; ``wake`` and ``settle`` follow
    ``wg set NAME``, after the commit, in this order.
    """

    config: str
    wake: tuple[str, ...]
    settle: tuple[str, ...]
    up: bool = True


@record
class Network:
    """How to set up the network: rules and ``tables`` ("FAMILY NAME" -> text) are input for
    ``nft -f``, ``batch`` is for ``ip -batch``, ``saved`` ("PROGRAM TABLE" -> text) for the program.
    """

    lock_rules: str
    unlock_rules: str
    tables: dict[str, str]
    links: tuple[Link, ...]
    batch: str
    saved: dict[str, str] = field(default_factory=dict)
    # Routing rules: "-4" or "-6" -> input for ``ip FAMILY -batch``, which knows no other way.
    rules: dict[str, str] = field(default_factory=dict)
    # How many connections the packet filter may remember; 0 if it remembers none.
    conntrack_max: int = 0
    # By the names of their interfaces.
    tunnels: dict[str, Tunnel] = field(default_factory=dict)
    # Services that do not start again, unless the part that they have set up is missing: unit ->
    # part, which is the packet filter or a tunnel (carry/oneshot_units/observe.py).
    settled: dict[str, str] = field(default_factory=dict)


@record
class Inherited:
    """A descriptor to give to criu; ``argument`` has {fd} for its number.

    ``kind``: "journal" (a connection to the journal's stdout socket), "file" (``path``, opened with
    ``flags``) or "unix" (``end`` of the link with number ``link``). ``header``: what is written to
    it first, "" for nothing.
    """

    kind: str
    argument: str
    path: str = ""
    flags: int = 0
    header: str = ""
    link: int = 0
    end: int = 0


@record
class UnixEnd:
    """One end of a connection between unix sockets, held by process ``pid``.

    ``queue``: store blob with what it has not read yet, "" for nothing (socket_queues.py).
    ``closed``: nothing more arrives. ``flags``: of the open file. ``options``: SO_* number -> value
    in hex.
    """

    pid: int
    queue: str = ""
    closed: bool = False
    flags: int = 0
    options: dict[str, str] = field(default_factory=dict)


@record
class UnixLink:
    """A connection between unix sockets of two trees, or of one and what boots afresh: one end.

    ``kind``: SOCK_STREAM or SOCK_SEQPACKET.
    """

    kind: int
    ends: tuple[UnixEnd, ...]


@record
class DatagramLink:
    """Descriptor ``number`` of process ``pid``, a datagram socket, is to be connected with a
    descriptor of another tree, or with nobody if ``target_pid`` is 0.
    """

    pid: int
    number: int
    target_pid: int = 0
    target_number: int = 0


@record
class Cgroup:
    """A control group of a carried unit, or one above or below it."""

    # Below /sys/fs/cgroup.
    path: str
    uid: int = 0
    gid: int = 0
    # Controllers for the groups below it, as cgroup.subtree_control has them.
    passed_on: str = ""
    # File -> what is to be written there.
    settings: dict[str, str] = field(default_factory=dict)


@record
class Unkept:
    """What criu does not keep of a tree; only where it is not as usual."""

    # Thread -> CPUs that it is bound to.
    affinities: dict[str, tuple[int, ...]] = field(default_factory=dict)
    # Thread -> I/O priority, as ioprio_set(2) takes it.
    io_priorities: dict[str, int] = field(default_factory=dict)
    # Name below /proc -> what is to be written there.
    files: dict[str, str] = field(default_factory=dict)


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
    unkept: Unkept = field(default_factory=Unkept)
    # Names of trees that must be there before: their terminals are open in this one.
    after: tuple[str, ...] = ()
    # Numbers of the terminals that criu makes again in it, ascending.
    terminals: tuple[int, ...] = ()
    # Signal for its first process as soon as it runs, 0 for none.
    signal: int = 0
    # Of a mount namespace of its own: mount point -> flags as mount(2) takes them.
    mounts: dict[str, int] = field(default_factory=dict)


@record
class Memory:
    """Where the carried pages lie. ``store`` holds copied strays too."""

    backend: str
    region: Extent | None
    # Parts of the region with carried pages: mapped, drained, then given back.
    occupied: tuple[Extent, ...]
    # Parts that are free: made RAM again beside the restore.
    free: tuple[Extent, ...]
    store: Extent | None
    # Offset of the copied strays in the store, bytes.
    stray_offset: int = 0
    stray_bytes: int = 0


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
    trees: tuple[Tree, ...]
    # To be made, each before those below it.
    cgroups: tuple[Cgroup, ...]
    # Seconds in which everything must be restored, or it is given up.
    patience_s: int
    # PIDs in use by what is carried: the agent forks above them.
    highest_pid: int
    # Text for systemd's --deserialize: what comes first ({stdout}, {native} and {syslog} stand for
    # the journal's sockets), then a section for each carried unit.
    systemd_header: str
    systemd_units: dict[str, str]
    init: tuple[str, ...]
    # Connections over unix sockets that no single restore can bring back.
    links: tuple[UnixLink, ...] = ()
    datagrams: tuple[DatagramLink, ...] = ()
    # Name below WATCHED -> file, not followed if it is a symbolic link: it leads there while the
    # trees are restored.
    watched: dict[str, str] = field(default_factory=dict)
    loops: tuple[LoopDevice, ...] = ()
    phases: tuple[Phase, ...] = ()
    # What the old side already knows for the report, passed through unread.
    report: dict[str, Any] = field(default_factory=dict)


def dump(manifest: Manifest) -> bytes:
    """As JSON."""
    return json.dumps(manifest, default=_fields, separators=(",", ":")).encode()


def _fields(part: Any) -> dict[str, Any]:
    """Of an object of one of the classes above. Unlike records.asdict() it copies nothing."""
    return {name: getattr(part, name) for name in fields(part)}


def load(data: bytes) -> Manifest:
    """Parse and check. Raises ManifestError for another schema or a missing or wrong field."""
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


def build(kind: Any, raw: Any, where: str) -> Any:
    """``raw`` as ``kind``, which is one of the few shapes that the classes above use.

    Raises ManifestError with the place in ``raw`` that does not fit, which is called ``where``.
    """
    try:
        return _builder(kind)(raw)
    except _MisfitError as error:
        raise ManifestError(f"{where}{error.place} {error.words}") from None


class _MisfitError(Exception):
    """What is wrong, and at which place of what is being built."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words
        self.place = ""

    def below(self, place: str) -> _MisfitError:
        """The same, seen from what this is a part of."""
        self.place = place + self.place
        return self


@functools.cache
def _builder(kind: Any) -> Callable[[Any], Any]:
    """Made once for each kind: there are hundreds of objects, and asking for types takes long."""
    origin = typing.get_origin(kind)
    if is_record(kind):
        return _object(typing.cast(type, kind))
    if origin is tuple:
        return _list(typing.get_args(kind)[0])
    if origin is dict:
        return _mapping(typing.get_args(kind)[1])
    if origin is types.UnionType:
        inner = _builder(typing.get_args(kind)[0])
        return lambda raw: None if raw is None else inner(raw)
    return _plain(kind)


def _plain(kind: type) -> Callable[[Any], Any]:
    def build_plain(raw: Any) -> Any:
        # A bool is no int.
        if type(raw) is not kind:
            raise _MisfitError(f"is no {kind.__name__}")
        return raw

    return build_plain


def _object(kind: type) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind)
    parts = [(name, _builder(hints[name]), item.required) for name, item in fields(kind).items()]

    def build_object(raw: Any) -> Any:
        if type(raw) is not dict:
            raise _MisfitError("is no object")
        values = {}
        for name, inner, required in parts:
            if name in raw:
                try:
                    values[name] = inner(raw[name])
                except _MisfitError as error:
                    raise error.below(f".{name}") from None
            elif required:
                raise _MisfitError(f"has no {name}")
        return kind(**values)

    return build_object


def _list(kind: Any) -> Callable[[Any], Any]:
    inner = _builder(kind)

    def build_list(raw: Any) -> Any:
        if type(raw) is not list:
            raise _MisfitError("is no list")
        found = []
        try:
            for item in raw:
                found.append(inner(item))
        except _MisfitError as error:
            raise error.below(f"[{len(found)}]") from None
        return tuple(found)

    return build_list


def _mapping(kind: Any) -> Callable[[Any], Any]:
    inner = _builder(kind) if kind is not Any else None

    def build_mapping(raw: Any) -> Any:
        if type(raw) is not dict:
            raise _MisfitError("is no object")
        if inner is None:
            return raw
        found = {}
        for name, value in raw.items():
            try:
                found[name] = inner(value)
            except _MisfitError as error:
                raise error.below(f"[{name!r}]") from None
        return found

    return build_mapping
