"""A running container."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of the unit that a container runs in.
SCOPE = re.compile(r"libpod-([0-9a-f]{64})\.scope$")


@dataclass(frozen=True, slots=True)
class Container:
    """``directory``: podman's files of it. ``status``: its networks, as podman's restore wants to
    read them. ``obstacle`` and ``remedy``: why it cannot be carried, "" if it can.
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
    # Started with --rm: podman removes it when it stops.
    fleeting: bool = False
    # Published on the machine: (protocol, port).
    ports: tuple[tuple[str, int], ...] = ()


def is_container(unit: str) -> bool:
    """Whether a unit is the scope in which podman runs a container."""
    return bool(SCOPE.match(unit))
