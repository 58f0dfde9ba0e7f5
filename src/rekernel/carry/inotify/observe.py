"""Watches (inotify, fanotify), and those of what criu cannot open by its path: a symbolic link
itself, as sd-event watches /etc/localtime.

criu writes the file's handle down, and finds nothing with it when it restores a tree without a
mount namespace of its own (criu/fsnotify.c, open_handle; its list of mounts is empty then). Given a
path it does; so it is given one below WATCHED, where the agent puts a link that leads to the
watched file by way of a descriptor (carry/inotify/restore.py).

The entry in files.img (criu's images/fsnotify.proto and fh.proto) has sixteen numbers for the
handle, nearly all of them zero: the path takes their place, so nothing moves.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from rekernel import syscalls
from rekernel.carry.inotify.entry import WATCHED
from rekernel.carry.mounts import observe as mounts
from rekernel.criu.images import ImageError, entries, fields
from rekernel.errors import RekernelError
from rekernel.records import record, replace
from rekernel.run import run

LINK = "anon_inode:inotify"
FANOTIFY = "anon_inode:[fanotify]"

# Fields of inotify_file_entry, inotify_wd_entry, fh_entry and ghost_file_entry.
_WATCH = 5
_INODE, _DEVICE, _HANDLE = 2, 5, 7
_BYTES, _TYPE, _NUMBERS, _PATH = 1, 2, 3, 4
_GHOST_INODE = 5
# Bytes in which that is, whatever follows.
_GHOST_HEAD = 1 << 16
# Seconds that the search for a forgotten name may take.
_SEARCH_S = 30
# Bits of a device number that are its minor, in the kernel.
_MINOR_BITS = 20
# Of /proc/PID/fdinfo: inode, device, type of the handle, handle.
_LINE = re.compile(
    r"^i?(?:fa)?notify .*ino:(\w+) sdev:(\w+) .* fhandle-type:(\w+) f_handle:(\w+)$", re.MULTILINE
)


@record
class Watched:
    """``path``: "" for what is deleted, or whose name the kernel has not in memory any more.

    ``device``, ``inode``: as stat(2) has them; ``mounted_at``: where its file system is.
    """

    path: str
    device: int
    inode: int
    fstype: str
    mounted_at: str = ""
    is_deleted: bool = False


def give_paths(
    data: bytearray, start: int, end: int, known: dict[str, str], ghosts: Collection[int] = ()
) -> int:
    """Change an inotify_file_entry in place where a watch has no path; returns how many that were.

    ``known``: path given -> what it stands for, added to. ``ghosts``: inodes of the deleted files
    that criu makes again, and with them their watches. Raises ImageError, and RekernelError if the
    watched file is not to be found.
    """
    given = 0
    for number, _, watch, after in fields(data, start, end):
        if number != _WATCH:
            continue
        found = {name: (value, at, to) for name, value, at, to in fields(data, watch, after)}
        if _DEVICE not in found or _HANDLE not in found:
            raise ImageError("a watch has no device or no handle")
        if found.get(_INODE, (0,))[0] in ghosts:
            continue
        _, at, to = found[_HANDLE]
        given += _give_path(data, at, to, found[_DEVICE][0], known)
    return given


def _give_path(
    data: bytearray,
    start: int,
    end: int,
    device: int,
    known: dict[str, str],
) -> bool:
    numbers: list[int] = []
    size = kind = 0
    first = last = 0
    for number, value, at, to in fields(data, start, end):
        if number == _PATH:
            return False
        if number == _BYTES:
            size = value
        elif number == _TYPE:
            kind = value
        elif number == _NUMBERS:
            # With the byte that names the field.
            first = first or at - 1
            last = to
            numbers.append(value)
    handle = struct.pack(f"<{len(numbers)}Q", *numbers)[:size]
    found = _find("self", device, kind, handle)
    path = found.path if found else ""
    if not path:
        raise RekernelError(
            f"a file that somebody watches on {_name(device)} has no path any more",
            "it was deleted, or the kernel has forgotten its name: try again, or restart whoever "
            "watches it",
        )
    name = next((name for name, of in known.items() if of == path), str(len(known)))
    room = last - first - 2 - len(WATCHED) - len(name)
    if room < 1 or last - first - 2 > 127:
        raise ImageError(f"the handle of a watch takes {last - first} bytes")
    known.setdefault(name, path)
    text = f"{WATCHED}{'/' * room}{name}".encode()
    data[first:last] = bytes([_PATH << 3 | 2, len(text)]) + text
    return True


def ghosts(images: Path) -> set[int]:
    """Inodes of the deleted files that are in a tree's images (criu's images/ghost-file.proto).

    Raises ImageError.
    """
    found = set()
    for path in images.glob("ghost-file-*.img"):
        # What follows the first entry is the file's own contents, which may be large.
        with path.open("rb") as file:
            data = bytearray(file.read(_GHOST_HEAD))
        start, end = next(iter(entries(data)))
        values = {number: value for number, value, _, _ in fields(data, start, end)}
        found.add(values.get(_GHOST_INODE, 0))
    return found


def observe(pid: int, number: int) -> Iterator[str]:
    """Path of everything that an inotify or fanotify descriptor watches, "" for what has none any
    more.

    What cannot be told is left out: file systems whose files have no handles. Raises OSError.
    """
    for item in observe_all(pid, number):
        yield item.path


def observe_all(pid: int, number: int) -> Iterator[Watched]:
    """Watches of a descriptor, each with all that is known of it."""
    info = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
    for _, device, kind, handle in _LINE.findall(info):
        found = _find(str(pid), int(device, 16), int(kind, 16), bytes.fromhex(handle))
        if found is not None:
            yield found


def recall(pid: int, item: Watched) -> None:
    """Have the kernel know the name of a file again, by which criu finds it at the dump.

    That may take a while: who has forgotten it can only look at every file.
    """
    argv = [
        "timeout", str(_SEARCH_S), "find", f"/proc/{pid}/root{item.mounted_at}",
        "-xdev", "-inum", str(item.inode), "-print0", "-quit",
    ]  # fmt: skip
    path = run(argv, check=False).partition("\0")[0]
    # find itself goes by what directories list, which leaves nothing in memory.
    with suppress(OSError):
        os.lstat(path)


def pin(pid: int, paths: Iterable[str]) -> list[int]:
    """Descriptors that keep the kernel from forgetting these names, as a process sees them."""
    found = []
    for path in paths:
        with suppress(OSError):
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            found.append(os.open(f"/proc/{pid}/root{path}", flags))
    return found


def _name(device: int) -> str:
    return f"{device >> _MINOR_BITS}:{device & (1 << _MINOR_BITS) - 1}"


def _find(pid: str, device: int, kind: int, handle: bytes) -> Watched | None:
    """The file with this handle as a process sees it; None if its file system is not mounted."""
    number = os.makedev(device >> _MINOR_BITS, device & (1 << _MINOR_BITS) - 1)
    found = None
    # Where all of a file system is to be seen comes first.
    for mount in sorted(mounts.observe(pid), key=lambda mount: mount.root != "/"):
        root = f"/proc/{pid}/root"
        if mount.device != _name(device) or not os.path.isdir(f"{root}{mount.target}"):
            continue
        found = found or Watched("", number, 0, mount.fstype, mount.target)
        directory = os.open(f"{root}{mount.target}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = syscalls.open_by_handle(directory, kind, handle)
        except OSError:
            continue
        finally:
            os.close(directory)
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
            status = os.fstat(fd)
        finally:
            os.close(fd)
        inode, gone = status.st_ino, status.st_nlink == 0
        if found.inode != inode:
            found = Watched("", number, inode, mount.fstype, mount.target, gone)
        # Of what the kernel has no name in memory the link says "/".
        with suppress(OSError):
            if path.startswith("/") and os.lstat(f"{root}{path}").st_ino == inode:
                return replace(found, path=path)
    return found
