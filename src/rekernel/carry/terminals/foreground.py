"""The foreground groups of terminals, where nobody is in one any more.

A shell waits for its job and takes the terminal back. Frozen in between, it has one whose group has
ended, which a kernel keeps and criu cannot set again ("Failed to set group"): the login would be
lost. So the shell gets it in the image, as it does with its next step.
"""

from __future__ import annotations

from rekernel.criu.images import ImageError, entries, fields, set_varint

# Of pstree_entry and tty_info_entry (criu's images/pstree.proto, tty.proto).
_PGID = 3
_SID, _PGRP = 6, 7


def groups(data: bytearray) -> set[int]:
    """The process groups of a pstree.img. Raises ImageError."""
    return {
        value
        for start, end in entries(data)
        for number, value, *_ in fields(data, start, end)
        if number == _PGID
    }


def take_back(data: bytearray, alive: set[int]) -> int:
    """Mend a tty-info.img in place; returns how many terminals that were. Raises ImageError.

    ``alive``: the process groups of all trees, as a job may be another tree than its shell.
    """
    changed = 0
    for start, end in entries(data):
        found = {number: place for number, *place in fields(data, start, end)}
        if _SID not in found or _PGRP not in found:
            raise ImageError("a terminal without a session")
        session = found[_SID][0]
        group, inner, after = found[_PGRP]
        # One that takes more bytes than there are has wrapped around since, which is rarer still.
        fits = not session >> 7 * (after - inner)
        if group and group not in alive and session in alive and fits:
            set_varint(data, inner, after, session)
            changed += 1
    return changed
