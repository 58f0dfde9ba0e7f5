"""criu's logs: why it failed, in its own words. The agent reads them, too."""

from __future__ import annotations

from pathlib import Path

# Names of the logs, in the work directory of a tree.
DUMP_LOG = "dump.log"
RESTORE_LOG = "restore.log"
# What it says of memory that is shared, and goes on.
_HARMLESS = "No parent image found"


def first_error(log: Path) -> str:
    """The first error in a log, without its prefix; "" if there is none, or no log.

    The last one is of little use: it says that the dump or the restore failed.
    """
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    # "(00.123456)   4711: Error (criu/files.c:12): words"
    errors = (line for line in lines if "Error (" in line and _HARMLESS not in line)
    return next(errors, "").partition("Error (")[2].partition("): ")[2]
