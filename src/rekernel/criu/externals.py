"""Descriptors that reach out of a tree, and how they are made again on the new kernel."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Collection, Sequence
from contextlib import suppress

from rekernel import smallfiles, syscalls
from rekernel.carry.mounts.observe import observe
from rekernel.carry.pressure import observe as pressure
from rekernel.criu.entry import Inherited
from rekernel.records import record

# A pseudo terminal, and one whose other side is gone.
SLAVE = re.compile(r"/dev/pts/(\d+)$")
HUNG = re.compile(r"/dev/pts/(\d+) \(deleted\)$")
# /proc/PID/fdinfo/NUMBER: fs/proc/fd.c, and drivers/tty/pty.c.
_OPENED = re.compile(rb"^flags:\t(\d+)\nmnt_id:\t(\d+)$", re.M)
_TERMINAL = re.compile(rb"^tty-index:\t(\d+)$", re.M)


@record
class External:
    """``dump``: value for criu dump --external; ``inherited``: what restore gives back for it, if
    anything.
    """

    dump: str
    inherited: Inherited | None


@record
class Descriptor:
    """An open descriptor: what its link says and the mount it was opened through."""

    pid: int
    number: int
    link: str
    mount_id: int
    flags: int
    inode: int
    # As stat(2) has them: st_mode, st_dev, and st_rdev of a device.
    mode: int = 0
    device: int = 0
    device_number: int = 0
    # Of the master of a pseudo terminal: its number, that of /dev/pts/NUMBER.
    master_of: str = ""


def descriptors(pid: int) -> list[Descriptor]:
    """Every descriptor of a process; one that vanishes meanwhile is left out."""
    found = []
    for entry in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{entry}")
            info = smallfiles.read(f"/proc/{pid}/fdinfo/{entry}")
            status = os.stat(f"/proc/{pid}/fd/{entry}")
        except FileNotFoundError:
            continue
        opened = _OPENED.search(info)
        terminal = _TERMINAL.search(info)
        found.append(
            Descriptor(
                pid=pid,
                number=int(entry),
                link=link,
                mount_id=int(opened[2]) if opened else -1,
                flags=int(opened[1], 8) if opened else 0,
                inode=status.st_ino,
                mode=status.st_mode,
                device=status.st_dev,
                device_number=status.st_rdev,
                master_of=terminal[1].decode() if terminal else "",
            )
        )
    return found


def socket_of(pid: int, number: int) -> socket.socket:
    """A socket of another process, as a descriptor of our own. Raises OSError."""
    return socket.socket(fileno=syscalls.take_descriptor(pid, number))


def files(pids: Sequence[int]) -> list[External]:
    """The files of a tree that criu could not open as they were, each once: opened in another mount
    namespace than its own, or told something since.

    A process that is gone has none.
    """
    found: dict[str, External] = {}
    for pid in pids:
        try:
            own_mounts = {mount.mount_id for mount in observe(str(pid))}
            opened = descriptors(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        for item in opened:
            if pressure.is_watch(item.link, item.flags):
                with suppress(FileNotFoundError, ProcessLookupError):
                    _add_told(found, item)
            elif (
                item.link.startswith("/")
                and item.mount_id not in own_mounts
                # Nothing that could be opened again: a memfd, which criu takes along by itself.
                and not item.link.endswith(" (deleted)")
            ):
                # Opened by the init system before it entered the unit's mount namespace.
                _add_file(found, item)
    return list(found.values())


def _add_file(found: dict[str, External], item: Descriptor) -> None:
    key = _key(item)
    flags = item.flags & (os.O_ACCMODE | os.O_APPEND)
    given = Inherited("file", f"fd[{{fd}}]:{key}", path=item.link, flags=flags)
    found.setdefault(key, External(key, given))


def _add_told(found: dict[str, External], item: Descriptor) -> None:
    told = (pressure.told(item.pid, item.number) or b"").decode()
    key = _key(item)
    # By its whole name criu would open it once more; without the first character, which it takes
    # for the slash of a path, it uses what is open (criu/files-reg.c, open_path()). Of several
    # watches of one file all are like the last.
    argument = f"fd[{{fd}}]:{key[1:]}"
    flags = item.flags & (os.O_ACCMODE | os.O_NONBLOCK)
    given = Inherited("file", argument, path=item.link, flags=flags, header=told)
    # Who has it open without having told it anything can do with that, too.
    found[key] = External(key, given)


def _key(item: Descriptor) -> str:
    """What criu calls an external file. It looks for no mount of one, which may be the host's."""
    return f"file[{item.mount_id:x}:{item.inode:x}]"


def owned_terminals(opened: Collection[Descriptor]) -> tuple[int, ...]:
    """Numbers of the terminals that criu makes again in a tree: by their masters; and of hung ones,
    as it gives those a master for an instant.
    """
    found = {int(item.master_of) for item in opened if item.master_of}
    hung = [HUNG.match(item.link) for item in opened]
    return tuple(sorted(found | {int(match[1]) for match in hung if match}))


def terminals(opened: Sequence[Descriptor]) -> tuple[list[External], list[str]]:
    """The terminals that a tree has open and whose masters it has not: each once, and its number.

    ``opened``: all that is open in the tree. For criu they are external (criu/tty.c): given an open
    one, it sets it up as it was.
    """
    own = {item.master_of for item in opened}
    found: dict[str, External] = {}
    for item in opened:
        slave = SLAVE.match(item.link)
        if slave is None or slave[1] in own:
            continue
        key = f"tty[{item.device_number:x}:{item.device:x}]"
        flags = item.flags & (os.O_ACCMODE | os.O_NONBLOCK)
        given = Inherited("file", f"fd[{{fd}}]:{key}", path=item.link, flags=flags)
        found.setdefault(slave[1], External(key, given))
    return list(found.values()), list(found)
