"""Talking to the pager of the last upgrade over its control socket (native/pager/control.c)."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from rekernel.carry.memory.paths import CONTROL

SOCKET = Path(CONTROL)


def ask(command: str, path: Path = SOCKET, timeout: float = 10.0) -> dict[str, Any] | None:
    """Send "status", "drain", "quit" or "abort"; the pager's answer.

    None if no pager listens there (any more). ``timeout``: seconds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
            connection.sendall(f"{command}\n".encode())
            answer = connection.makefile("r").readline()
        except OSError:
            return None
    try:
        raw = json.loads(answer)
    except ValueError:
        return None
    return raw if isinstance(raw, dict) else None
