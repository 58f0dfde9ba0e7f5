"""What units have in memory, and how much of it a dump writes into files.

Private pages stay where they are if there is a carry region. What criu writes down all the same is
what is in use and has no name in a file system, shared memory above all, private pages that the
pager does not serve (locked into memory, or of a file and changed), and what waits in the queues of
connections. Pipes and unix sockets hold little: plan/room.py leaves a part free for such.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rekernel import smallfiles
from rekernel.census.pages import Survey
from rekernel.census.verdicts import UnitVerdict
from rekernel.records import record

_SECTOR = 512
# TCP_LISTEN in include/net/tcp_states.h
_LISTENS = "0A"
# /proc/PID/maps: a mapping of what has no name any more, with its place, device and inode. Shared
# memory never has one, be it anonymous, of System V or a memfd.
_UNNAMED = re.compile(r"^(\S+) \S+ \S+ (\S+) (\d+) +/.* \(deleted\)$", re.M)
# criu's images of a process without any pages: descriptors, mappings, registers.
_BASE = 48 << 10


@record
class Resident:
    """Proportional set sizes of processes in bytes: all, and by kind (proc(5), smaps_rollup).

    With what is swapped out: it comes back before the freeze.
    """

    total: int
    anonymous: int
    shared: int
    # Private pages that do not stay in place, for each process that has them.
    written: int = 0


def resident(pids: Iterable[int], in_place: Mapping[int, int] | None = None) -> Resident:
    """What these processes have in memory or swap; one that is gone counts nothing.

    ``in_place``: bytes of private pages of each that are left where they are.
    """
    total = anonymous = shared = written = 0
    for pid in pids:
        found = {"Pss:": 0, "Pss_Anon:": 0, "Pss_Shmem:": 0, "SwapPss:": 0, "Anonymous:": 0}
        try:
            text = smallfiles.read(f"/proc/{pid}/smaps_rollup").decode()
        except OSError:
            continue
        for line in text.splitlines():
            name, *value = line.split()
            if name in found:
                found[name] += int(value[0]) * 1024
        swapped = found["SwapPss:"]
        private = found["Pss_Anon:"] + swapped
        total += found["Pss:"] + swapped
        anonymous += private
        shared += found["Pss_Shmem:"]
        if in_place and pid in in_place:
            written += max(0, found["Anonymous:"] - in_place[pid])
    return Resident(total, anonymous, shared, written)


@record
class Usage:
    """What a carried unit has in memory, in bytes.

    ``shared``: what has no name in a file system: shared memory (anonymous, of System V, memfds)
    and deleted files. ``written``: private pages that do not stay in place. ``queued``: what TCP
    has received or sent, and nobody has read or acknowledged.
    """

    unit: str
    container: bool
    processes: int
    resident: int
    anonymous: int
    shared: int
    written: int
    queued: int = 0

    @property
    def images(self) -> int:
        """What criu writes down beside a carry region."""
        return self.shared + self.written + self.queued + self.processes * _BASE

    @property
    def all_images(self) -> int:
        """What criu writes down without one."""
        return self.shared + self.anonymous + self.queued + self.processes * _BASE


def of_units(units: Sequence[UnitVerdict], pages: Survey | None) -> tuple[Usage, ...]:
    """Usage of each of these units, in their order. ``pages``: None without a region."""
    in_place = pages.by_process if pages else None
    queues = tcp_queues()
    return tuple(_of_unit(item, in_place, queues) for item in units)


def _of_unit(
    item: UnitVerdict, in_place: Mapping[int, int] | None, queues: Mapping[str, int]
) -> Usage:
    pids = sorted(item.processes)
    memory = resident(pids, in_place)
    shared = memory.shared
    # All of it is written down of a container, its own tmpfs as well.
    if not item.container:
        shared = unnamed(pids)
    return Usage(
        unit=item.unit.name,
        container=bool(item.container),
        processes=len(pids),
        # With what nobody maps by now: buffers of a database that another process has filled.
        resident=memory.total + max(0, shared - memory.shared),
        anonymous=memory.anonymous,
        shared=shared,
        written=memory.written,
        queued=queued(pids, queues) if queues else 0,
    )


def tcp_queues(net: Path = Path("/proc/self/net")) -> dict[str, int]:
    """Link of a descriptor -> bytes in the queues of its connection, of those that have any.

    proc_net_tcp.rst in the kernel's documentation.
    """
    found = {}
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            for line in (net / name).read_text().splitlines()[1:]:
                fields = line.split()
                # Of a listener that is how many wait to be accepted.
                size = sum(int(part, 16) for part in fields[4].split(":"))
                if size and fields[3] != _LISTENS:
                    found[f"socket:[{fields[9]}]"] = size
    return found


def queued(pids: Iterable[int], queues: Mapping[str, int]) -> int:
    """Bytes in the queues of the connections that these processes have open, each once."""
    links = set()
    for pid in pids:
        with suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    links.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return sum(queues[link] for link in links & queues.keys())


def unnamed(pids: Iterable[int]) -> int:
    """Bytes of what these processes map or have open that has no name any more."""
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        for path in _paths(pid):
            with suppress(OSError):
                status = os.stat(path)
                # One with another name is only linked to that.
                if status.st_nlink == 0 and stat.S_ISREG(status.st_mode):
                    found[status.st_dev, status.st_ino] = status.st_blocks * _SECTOR
    return sum(found.values())


def mapped(maps: str) -> list[str]:
    """Where in /proc/PID/maps lies what has no name, each once; as map_files names it."""
    found = {(match[2], match[3]): match[1] for match in _UNNAMED.finditer(maps)}
    ends = (place.split("-") for place in found.values())
    # There without leading zeros.
    return [f"{int(start, 16):x}-{int(end, 16):x}" for start, end in ends]


def _paths(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for place in mapped(os.fsdecode(smallfiles.read(f"/proc/{pid}/maps"))):
            yield f"/proc/{pid}/map_files/{place}"
    with suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{number}"
            with suppress(OSError):
                if os.readlink(path).endswith(" (deleted)"):
                    yield path
