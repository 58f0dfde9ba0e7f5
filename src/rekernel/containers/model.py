"""A running container."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rekernel.records import record

# Those that were stopped for an upgrade, [engine, ID] each: to be started whatever comes of it.
STOPPED = Path("/var/lib/rekernel/stopped-containers.json")
# Of podman and of docker.
_SCOPE = re.compile(r"(libpod|docker)-[0-9a-f]{64}\.scope$")


@record
class Container:
    """``directory``: its engine's files of it. ``status``: its networks, as podman's restore wants
    to read them. ``obstacle`` and ``remedy``: why it cannot be carried, "" if it can.
    """

    id: str
    name: str
    unit: str
    pid: int
    monitor: int
    directory: Path
    addresses: tuple[str, ...] = ()
    status: Mapping[str, Any] | None = None
    obstacle: str = ""
    remedy: str = ""
    # Started with --rm: its engine removes it when it stops.
    fleeting: bool = False
    # Published on the machine: (protocol, port).
    ports: tuple[tuple[str, int], ...] = ()
    # The program that stops and starts it.
    engine: str = "podman"


def is_container(unit: str) -> bool:
    """Whether a unit is the scope in which a container runs."""
    return bool(_SCOPE.match(unit))
