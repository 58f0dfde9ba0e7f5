"""What processes have in common that only works if they stay together.

criu dumps one tree at a time: a pipe, a terminal, a memfd or an anonymous shared mapping with one
end in a tree and another outside of it would come back as two that know nothing of each other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from typing import Generic, TypeVar

from rekernel import smallfiles
from rekernel.carry.terminals.observe import SLAVE
from rekernel.records import record

_SOCKET_OR_PIPE = re.compile(r"(socket|pipe):\[\d+\]$")
_MEMFD = re.compile(r"/memfd:.* \(deleted\)$")
_MASTER = re.compile(r"/dev/(pts/)?ptmx$")
_MASTER_INDEX = re.compile(r"^tty-index:\s*(\d+)", re.M)
# /proc/PID/maps: a shared mapping of what has no name (any more), with its device and inode.
_SHARED = re.compile(
    r"^\S+ ..(?:.)s \S+ (\S+) (\d+) +(/dev/zero|/memfd:.*|/SYSV\S+|/dev/shm/.*) \(deleted\)$",
    re.M,
)


# Whatever tells the trees apart.
TreeName = TypeVar("TreeName", bound=Hashable)


@record
class Shared:
    """``what`` process ``pid`` has in common with process ``other`` outside of its tree."""

    what: str
    pid: int
    other: int


@record
class Sharing(Generic[TreeName]):
    """``shared``: of a tree, the first thing that another one would tear apart.

    ``borrowed``: the trees whose terminals a tree has open.
    """

    shared: dict[TreeName, Shared]
    borrowed: dict[TreeName, set[TreeName]]


def of_process(pid: int) -> dict[tuple[str, str], str]:
    """Everything of a process that another one could have as well: key -> words for it.

    A process that is gone has nothing.
    """
    found: dict[tuple[str, str], str] = {}
    with suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                path = f"/proc/{pid}/fd/{number}"
                found |= _of_descriptor(pid, number, os.readlink(path))
    with suppress(OSError):
        maps = os.fsdecode(smallfiles.read(f"/proc/{pid}/maps"))
        for device, inode, name in _SHARED.findall(maps):
            words = "a memfd" if name.startswith("/memfd:") else "shared memory"
            if name.startswith("/SYSV"):
                # Numbered anew in each name space.
                device = os.readlink(f"/proc/{pid}/ns/ipc")
            found["memory", f"{device} {inode}"] = words
    return found


def _of_descriptor(pid: int, number: str, link: str) -> dict[tuple[str, str], str]:
    match = _SOCKET_OR_PIPE.match(link)
    if match:
        return {(match[1], link): f"a {match[1]}"}
    if _MEMFD.match(link):
        status = os.stat(f"/proc/{pid}/fd/{number}")
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        return {("memory", f"{device} {status.st_ino}"): "a memfd"}
    slave = SLAVE.match(link)
    if slave:
        return {("terminal", slave[1]): "a terminal"}
    if _MASTER.match(link):
        info = smallfiles.read(f"/proc/{pid}/fdinfo/{number}").decode()
        index = _MASTER_INDEX.search(info)
        if index:
            return {("terminal", index[1]): "a terminal", ("master", index[1]): "a terminal"}
    return {}


def find(
    trees: Mapping[TreeName, Iterable[int]],
    everyone: Iterable[int],
    harmless: Collection[int] = (),
    lending: Collection[TreeName] = (),
) -> Sharing[TreeName]:
    """What each of the trees shares with processes outside of it.

    ``harmless``: inodes of sockets that may be shared. ``lending``: trees that may have terminals
    of each other open, as the server of tmux has.
    """
    may_be = {("socket", f"socket:[{inode}]") for inode in harmless}
    name_of = {pid: name for name, pids in trees.items() for pid in pids}
    holders: dict[tuple[str, str], list[int]] = {}
    words: dict[tuple[str, str], str] = {}
    for pid in everyone:
        for key, what in of_process(pid).items():
            if key in may_be:
                continue
            holders.setdefault(key, []).append(pid)
            words[key] = what
    found: Sharing[TreeName] = Sharing({}, {})
    for key, pids in holders.items():
        if key[0] == "terminal":
            owners = holders.get(("master", key[1]), [])
            names = [name_of[pid] for pid in (*owners, *pids) if name_of.get(pid) in lending]
            if len(names) == len(owners) + len(pids) and len(set(names[: len(owners)])) == 1:
                for borrower in set(names[len(owners) :]) - {names[0]}:
                    found.borrowed.setdefault(borrower, set()).add(names[0])
                continue
        for pid in pids:
            name = name_of.get(pid)
            if name is None or name in found.shared:
                continue
            others = [other for other in pids if name_of.get(other) != name]
            if others:
                found.shared[name] = Shared(words[key], pid, others[0])
    return found
