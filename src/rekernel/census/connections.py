"""The open connections of processes, as ``ss`` of iproute2 tells them."""

from __future__ import annotations

import re
from collections.abc import Collection

from rekernel.run import run

_OWNER = re.compile(r"\bpid=(\d+)")


def parse_ss(text: str, pids: Collection[int]) -> list[list[str]]:
    """[protocol, local, peer] of the established sockets that one of ``pids`` has open, sorted.

    ``text``: from ``ss -tunHp``. Columns: netid state recv-q send-q local peer users, where users
    is ``users:(("name",pid=N,fd=N),...)`` and missing if nobody has the socket open any more.
    """
    wanted = set(pids)
    found = set()
    for line in text.splitlines():
        fields = line.split(None, 6)
        if len(fields) < 7 or fields[1] != "ESTAB":
            continue
        if wanted.intersection(int(pid) for pid in _OWNER.findall(fields[6])):
            found.add((fields[0], fields[4], fields[5]))
    return [list(item) for item in sorted(found)]


def established(pids: Collection[int]) -> list[list[str]]:
    """[protocol, local, peer] of every established TCP or UDP socket of these processes.

    Addresses are "ADDRESS:PORT" as ss prints them, IPv6 in brackets. Raises RekernelError.
    """
    return parse_ss(run(["ss", "-tunHp"]), pids) if pids else []
