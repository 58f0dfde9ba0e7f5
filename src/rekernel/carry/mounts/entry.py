"""A mount, as the agent makes it again."""

from __future__ import annotations

from rekernel.records import record


@record
class Mount:
    """A file system to mount below the new root before the restore."""

    target: str
    fstype: str
    source: str
    flags: int
    data: str = ""
    # Store blob, or file on the disk, with a tar of its contents, "" for none; not there if it had
    # none in the end.
    contents: str = ""
    # Only for the restore: gone again before init starts.
    transient: bool = False
    # Of a file system on a disk, instead of its source.
    uuid: str = ""
