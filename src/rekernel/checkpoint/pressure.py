"""Watches for memory, CPU and I/O pressure: a file that is told what to watch for once it is open.

The kernel keeps that with the open file and shows it to nobody (Documentation/accounting/psi.rst),
so it is found out where programs have it from. criu would only open the file; the agent opens it,
tells it again, and gives it to criu.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from contextlib import suppress
from pathlib import Path

_FILE = re.compile(r"(/sys/fs/cgroup/.*/|/proc/pressure/)(memory|cpu|io)(\.pressure)?$")
# sd-event's own, which is what systemd sets for services as well (src/basic/psi-util.h).
_USUAL = b"some 200000 2000000\0"


def is_watch(link: str, flags: int) -> bool:
    """Whether a descriptor with this link and these flags can be told what to watch for."""
    return bool(_FILE.match(link)) and flags & os.O_ACCMODE != os.O_RDONLY


def told(pid: int, number: int) -> bytes | None:
    """What such a descriptor was told, b"" for nothing; None if that cannot be known. OSError."""
    info = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
    position = re.search(r"^pos:\s*(\d+)", info, re.MULTILINE)
    length = int(position[1]) if position else 0
    if not length:
        return b""
    # https://systemd.io/MEMORY_PRESSURE
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    of_service = [line[22:] for line in environment if line.startswith(b"MEMORY_PRESSURE_WRITE=")]
    candidates = [_USUAL]
    for value in of_service:
        with suppress(binascii.Error):
            candidates.insert(0, base64.b64decode(value))
    return next((text for text in candidates if len(text) == length), None)
