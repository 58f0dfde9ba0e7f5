"""What /sys and udev tell of one block device."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

CLASS = Path("/sys/class/block")
UDEV_DATA = Path("/run/udev/data")


class NoWayBackError(Exception):
    """A device that the agent cannot have on the next kernel; says why."""


def number_of(path: str) -> str:
    """The device number of a node in /dev, as "8:1". Raises OSError."""
    number = os.stat(path).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def line(path: Path) -> str:
    """An attribute of a device. Raises OSError."""
    return path.read_text().removesuffix("\n")


def known_to_udev(number: str, prefix: str) -> tuple[str, ...]:
    """Lines of its record in udev's database that begin so."""
    try:
        lines = (UDEV_DATA / f"b{number}").read_text().splitlines()
    except OSError:
        return ()
    return tuple(item for item in lines if item.startswith(prefix))


def only_here(name: str, reader: Callable[[str], str | None], what: str) -> str:
    """The UUID that ``reader`` finds on a device. Raises NoWayBackError if others have it, too.

    ``what``: which kind of thing has none, if there is none.
    """
    uuid = reader(f"/dev/{name}")
    if uuid is None:
        raise NoWayBackError(f"on {name}, which is {what}")
    if sum(reader(f"/dev/{entry.name}") == uuid for entry in CLASS.iterdir()) > 1:
        raise NoWayBackError(f"on {name}, whose UUID another disk has")
    return uuid
