"""How a connection to the journal's stdout socket begins: another one is to take its place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# What journald notes of each, to know it again when it is restarted itself
# (src/journal/journald-stream.c, stdout_stream_save).
_STREAMS = Path("/run/systemd/journal/streams")
# In the order of the header: name there, and what it is without a note.
_LINES = (
    ("IDENTIFIER", ""),
    ("UNIT", ""),
    ("PRIORITY", "30"),
    ("LEVEL_PREFIX", "1"),
    ("FORWARD_TO_SYSLOG", "0"),
    ("FORWARD_TO_KMSG", "0"),
    ("FORWARD_TO_CONSOLE", "0"),
)


# As cescape() of systemd writes names: with \\ and \303 (src/basic/escape.c).
_ESCAPED = re.compile(rb"\\([0-3][0-7]{2}|.)")


def header_of(device: int, inode: int, streams: Path = _STREAMS) -> str:
    """What was sent first on such a connection (src/core/exec-invoke.c, connect_logger_as).

    ``device``, ``inode``: of the journal's end of it, as stat(2) has them. One that the journal has
    no note of gets a header without a name.
    """
    try:
        lines = (streams / f"{device}:{inode}").read_text().splitlines()
    except OSError:
        lines = []
    values = dict(_assignments(lines))
    return "".join(f"{values.get(name, default)}\n" for name, default in _LINES)


def _assignments(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        name, equals, value = line.partition("=")
        if equals:
            yield name, _ESCAPED.sub(_unescaped, value.encode()).decode(errors="replace")


def _unescaped(match: re.Match[bytes]) -> bytes:
    text = match[1]
    return bytes([int(text, 8)]) if len(text) == 3 else text
