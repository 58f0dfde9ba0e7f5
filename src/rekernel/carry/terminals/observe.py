"""The terminals that a tree has open: whose masters it has, and which criu is given."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

from rekernel.criu.descriptors import Descriptor, External
from rekernel.criu.entry import Inherited

# A pseudo terminal, and one whose other side is gone.
SLAVE = re.compile(r"/dev/pts/(\d+)$")
HUNG = re.compile(r"/dev/pts/(\d+) \(deleted\)$")


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
