"""Watches (inotify) of what criu cannot open by its path: a symbolic link itself, as sd-event
watches /etc/localtime.

criu writes the file's handle down, and finds nothing with it when it restores a tree without a
mount namespace of its own (criu/fsnotify.c, open_handle; its list of mounts is empty then). Given a
path it does; so it is given one below WATCHED, where the agent puts a link that leads to the
watched file by way of a descriptor (agent/watched.py).

The entry in files.img (criu's images/fsnotify.proto and fh.proto) has sixteen numbers for the
handle, nearly all of them zero: the path takes their place, so nothing moves.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rekernel import syscalls
from rekernel.checkpoint.images import ImageError, fields
from rekernel.errors import RekernelError
from rekernel.handover.manifest import WATCHED
from rekernel.host import mounts

LINK = "anon_inode:inotify"

# Fields of inotify_file_entry, inotify_wd_entry and fh_entry.
_WATCH = 5
_DEVICE, _HANDLE = 5, 7
_BYTES, _TYPE, _NUMBERS, _PATH = 1, 2, 3, 4
# Bits of a device number that are its minor, in the kernel.
_MINOR_BITS = 20
# Of /proc/PID/fdinfo: device, type of the handle, handle.
_LINE = re.compile(r"^inotify .* sdev:(\w+) .* fhandle-type:(\w+) f_handle:(\w+)$", re.MULTILINE)


def give_paths(data: bytearray, start: int, end: int, known: dict[str, str]) -> int:
    """Change an inotify_file_entry in place where a watch has no path; returns how many that were.

    ``known``: path given -> what it stands for, added to. Raises ImageError, and RekernelError if
    the watched file is not to be found.
    """
    given = 0
    for number, _, watch, after in fields(data, start, end):
        if number != _WATCH:
            continue
        found = {name: (value, at, to) for name, value, at, to in fields(data, watch, after)}
        if _DEVICE not in found or _HANDLE not in found:
            raise ImageError("a watch has no device or no handle")
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
    path = _find("self", device, kind, handle)
    if not path:
        raise RekernelError(
            f"a file that somebody watches on {_name(device)} has no path any more",
            "it was deleted: restart whoever watches it",
        )
    name = next((name for name, of in known.items() if of == path), str(len(known)))
    room = last - first - 2 - len(WATCHED) - len(name)
    if room < 1 or last - first - 2 > 127:
        raise ImageError(f"the handle of a watch takes {last - first} bytes")
    known.setdefault(name, path)
    text = f"{WATCHED}{'/' * room}{name}".encode()
    data[first:last] = bytes([_PATH << 3 | 2, len(text)]) + text
    return True


def observe(pid: int, number: int) -> Iterator[str]:
    """Path of everything that an inotify descriptor watches, "" for what has none any more.

    What cannot be told is left out: file systems whose files have no handles. Raises OSError.
    """
    info = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
    for device, kind, handle in _LINE.findall(info):
        path = _find(str(pid), int(device, 16), int(kind, 16), bytes.fromhex(handle))
        if path is not None:
            yield path


def _name(device: int) -> str:
    return f"{device >> _MINOR_BITS}:{device & (1 << _MINOR_BITS) - 1}"


def _find(pid: str, device: int, kind: int, handle: bytes) -> str | None:
    """The path of the file with this handle as a process sees it; "" if it has none any more, None
    if its file system is nowhere mounted.
    """
    found = None
    for mount in mounts.observe(pid):
        root = f"/proc/{pid}/root"
        if mount.device != _name(device) or not os.path.isdir(f"{root}{mount.target}"):
            continue
        found = ""
        directory = os.open(f"{root}{mount.target}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = syscalls.open_by_handle(directory, kind, handle)
        except OSError:
            continue
        finally:
            os.close(directory)
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
            inode = os.fstat(fd).st_ino
        finally:
            os.close(fd)
        # Of what the kernel has no name in memory the link says "/".
        with suppress(OSError):
            if path.startswith("/") and os.lstat(f"{root}{path}").st_ino == inode:
                return path
    return found
