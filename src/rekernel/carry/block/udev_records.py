"""Records in udev's database, from before it runs.

Imported early: see agent/main.py.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DIRECTORY = "/run/udev/data"


def record(known: Iterable[tuple[str, Sequence[str]]], directory: str = _DIRECTORY) -> None:
    """Write what udev knew of each node in /dev, once /run is there. One that is gone has none."""
    os.makedirs(directory, exist_ok=True)
    for node, lines in known:
        try:
            number = os.stat(node).st_rdev
        except OSError:
            continue
        with open(f"{directory}/b{os.major(number)}:{os.minor(number)}", "w") as file:
            file.write("".join(f"{line}\n" for line in (*lines, "V:1")))
