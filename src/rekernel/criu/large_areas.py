"""Areas of address space of 8 TiB or more: criu dumps them, and may fail to fill them again.

It counts their pages in an int where it maps an area before it forks: if that is shared
copy-on-write, or any pages are lazy (native/images/areas.c). They are written down as several areas
that touch each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rekernel.run import run

PROGRAM = "/usr/lib/rekernel/rekernel-images"


def split(images: Sequence[Path]) -> None:
    """Mend directories of images that have all pages. Raises CommandFailedError.

    Where pages stay in place, parent_images.complete() does it by the way.
    """
    if images:
        run([PROGRAM, "--whole", *map(str, images)])
