"""Unix sockets that lead out of a process tree: to the journal (made again), or elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rekernel.run import run

JOURNAL_STDOUT = "/run/systemd/journal/stdout"
# Datagram sockets that the agent opens again before the restore; criu connects to them by path.
JOURNAL_DATAGRAM = ("/run/systemd/journal/dev-log", "/run/systemd/journal/socket")

_USER = re.compile(r'\(\("([^"]+)"')


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A line of ``ss --unix``: ``kind`` is u_str, u_dgr or u_seq; ``peer`` 0 if not connected."""

    kind: str
    state: str
    path: str
    inode: int
    peer: int
    user: str


def parse_ss(text: str) -> list[UnixSocket]:
    """From ``ss -xanpH``.

    Columns: netid state recv-q send-q local-address local-inode peer-address peer-inode users.
    """
    found = []
    for line in text.splitlines():
        fields = line.split(None, 8)
        if len(fields) < 8 or not (fields[5].isdigit() and fields[7].isdigit()):
            continue
        user = _USER.search(fields[8]) if len(fields) > 8 else None
        path = "" if fields[4] == "*" else fields[4]
        found.append(
            UnixSocket(
                fields[0], fields[1], path, int(fields[5]), int(fields[7]), user[1] if user else ""
            )
        )
    return found


def observe() -> list[UnixSocket]:
    """Every unix socket of this network namespace. Raises CommandFailedError."""
    return parse_ss(run(["ss", "--unix", "--all", "--numeric", "--processes", "--no-header"]))


def journal_streams(sockets: Iterable[UnixSocket]) -> set[int]:
    """Inodes of the services' ends of connections to the journal's stdout socket."""
    return {item.peer for item in sockets if item.path == JOURNAL_STDOUT and item.peer}


def socket_inodes(pids: Iterable[int]) -> set[int]:
    """Inodes of all sockets that these processes have open; one that is gone has none."""
    found = set()
    for pid in pids:
        try:
            entries = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for entry in entries:
            try:
                link = os.readlink(f"/proc/{pid}/fd/{entry}")
            except OSError:
                continue
            if link.startswith("socket:["):
                found.add(int(link[8:-1]))
    return found


def leading_out(own: set[int], sockets: Sequence[UnixSocket]) -> list[UnixSocket]:
    """The far ends of connections that leave a tree with these socket inodes and that cannot be
    made again: all but those to the journal.
    """
    by_inode = {item.inode: item for item in sockets}
    found = []
    for item in sockets:
        if item.inode not in own or not item.peer or item.peer in own:
            continue
        far = by_inode.get(item.peer) or UnixSocket(item.kind, item.state, "", item.peer, 0, "")
        if far.path != JOURNAL_STDOUT and far.path not in JOURNAL_DATAGRAM:
            found.append(far)
    return found
