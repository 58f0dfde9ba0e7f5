"""What criu wrote of the trees' descriptors: looked at and mended in one pass, as all is frozen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from rekernel import smallfiles
from rekernel.carry.inotify import observe as inotify
from rekernel.carry.mounts import mountpoints
from rekernel.carry.pidfd import observe as pidfd
from rekernel.carry.terminals import foreground
from rekernel.carry.timers import images as timers
from rekernel.carry.unix_sockets import images as unixentries
from rekernel.carry.unix_sockets.images import UnixEntry
from rekernel.criu import executables
from rekernel.criu.images import entries, fields
from rekernel.records import field, record

# Fields of file_entry (criu's images/fdinfo.proto).
_TIMER, _INOTIFY, _UNIX, _PIDFD = 12, 13, 16, 22


@record
class Wanted:
    """``disconnected``: inodes of sockets that shall have no peer. ``stand_ins``: inodes of handles
    that shall be of init. ``canonical``: another name of a file on the host (mounts/binds.py).
    """

    disconnected: Collection[int] = ()
    stand_ins: Collection[int] = ()
    canonical: Callable[[str], str] = str


@record
class Amended:
    """Inodes of the trees' own unix sockets: without a peer; with a descriptor in their queue.

    ``watched``: name below WATCHED (carry/inotify/entry.py) -> file that it shall lead to.
    """

    unconnected: frozenset[int]
    with_descriptors: frozenset[int]
    watched: dict[str, str] = field(default_factory=dict)


def amend(
    data: bytearray,
    wanted: Wanted,
    watched: dict[str, str] | None,
    ghosts: Collection[int] = (),
) -> tuple[int, list[UnixEntry]]:
    """Mend a files.img in place: how many entries that were, and its sockets as they were.

    ``watched`` is added to; None for a tree with a mount namespace of its own, in which criu finds
    what is watched. ``ghosts``: inodes of deleted files that criu makes again. Raises ImageError,
    RekernelError.
    """
    changed = 0
    sockets = []
    for start, end in entries(data):
        for number, _, inner, after in fields(data, start, end):
            if number == _TIMER:
                changed += timers.rearm(data, inner, after)
            elif number == _PIDFD:
                changed += pidfd.name_init(data, inner, after, wanted.stand_ins)
            elif number == _INOTIFY and watched is not None:
                changed += inotify.give_paths(data, inner, after, watched, ghosts)
            elif number == _UNIX:
                entry = unixentries.parse(data, inner, after)
                if entry.external:
                    continue
                sockets.append(entry)
                if entry.inode in wanted.disconnected:
                    unixentries.disconnect(data, entry)
                    changed += 1
    return changed, sockets


def amend_images(trees: Iterable[Path], wanted: Wanted) -> Amended:
    """The images of all trees, each a directory. Raises ImageError, RekernelError, OSError."""
    unconnected: set[int] = set()
    with_descriptors: set[int] = set()
    watched: dict[str, str] = {}
    directories = list(trees)
    _settle_terminals(directories)
    for directory in directories:
        path = directory / "files.img"
        if not path.exists():
            continue
        data = bytearray(path.read_bytes())
        own_mounts = list(path.parent.glob("mountpoints-*.img"))
        for table in own_mounts:
            renamed = mountpoints.rename(bytearray(table.read_bytes()), wanted.canonical)
            if renamed is not None:
                table.write_bytes(renamed)
        ghosts = inotify.ghosts(path.parent)
        changed, sockets = amend(data, wanted, None if own_mounts else watched, ghosts)
        changed += executables.separate(data, path.parent)
        if changed:
            path.write_bytes(data)
        unconnected |= {item.inode for item in sockets if not item.peer}
        queues = path.with_name("sk-queues.img")
        if queues.exists():
            numbers = set(unixentries.with_descriptors(bytearray(queues.read_bytes())))
            with_descriptors |= {item.inode for item in sockets if item.number in numbers}
    return Amended(frozenset(unconnected), frozenset(with_descriptors), watched)


def _settle_terminals(directories: Sequence[Path]) -> None:
    """Terminals of jobs that have ended go back to their shells."""
    terminals = {}
    for directory in directories:
        path = f"{directory}/tty-info.img"
        with suppress(FileNotFoundError, NotADirectoryError):
            terminals[path] = bytearray(smallfiles.read(path))
    # Most machines have none, and then the others need not be read.
    if not terminals:
        return
    alive: set[int] = set()
    for directory in directories:
        with suppress(FileNotFoundError, NotADirectoryError):
            alive |= foreground.groups(bytearray(smallfiles.read(f"{directory}/pstree.img")))
    for path, data in terminals.items():
        if foreground.take_back(data, alive):
            smallfiles.write(path, bytes(data))
