"""Watches for memory, CPU and I/O pressure: a file that is told what to watch for once it is open.

The kernel keeps that with the open file and shows it to nobody (Documentation/accounting/psi.rst),
so it is found out where programs have it from. criu would only open the file; the agent opens it,
tells it again, and gives it to criu.
"""

from __future__ import annotations

import base64
import binascii
import mmap
import os
import re
from contextlib import suppress
from pathlib import Path

_FILE = re.compile(r"(/sys/fs/cgroup/.*/|/proc/pressure/)(memory|cpu|io)(\.pressure)?$")
# sd-event's own, which is what systemd sets for services as well (src/basic/psi-util.h).
_USUAL = b"some 200000 2000000\0"
_TEXT = re.compile(rb"(?:some|full) \d+ \d+\0")
_LONGEST = 64


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
    candidates = []
    for value in of_service:
        with suppress(binascii.Error):
            candidates.append(base64.b64decode(value))
    candidates += [_USUAL, *_in_executable(pid)]
    # Mostly with the NUL behind it.
    forms = [form for text in candidates for form in (text, text.rstrip(b"\0"))]
    return next((form for form in forms if len(form) == length), None)


def _in_executable(pid: int) -> list[bytes]:
    """What a program brings along by itself, as MariaDB does."""
    found = []
    with (
        open(f"/proc/{pid}/exe", "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data,
    ):
        for word in (b"some ", b"full "):
            at = data.find(word)
            while at >= 0:
                # Looking for all of it with the expression would take seconds.
                match = _TEXT.match(data[at : at + _LONGEST])
                if match:
                    found.append(match[0])
                at = data.find(word, at + 1)
    return found
