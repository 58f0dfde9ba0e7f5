"""The running containers of docker: they are stopped, and started again on the next kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rekernel.containers.model import Container
from rekernel.errors import RekernelError
from rekernel.run import run, run_json

_SCOPE = re.compile(r"docker-([0-9a-f]{64})\.scope$")
# What docker keeps on disk, and its network namespaces: it mounts there what its containers need.
_OWN_MOUNTS = ("/var/lib/docker/", "/run/docker/netns/")
_BRIDGE = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}")


def is_own_mount(target: str) -> bool:
    """Whether docker mounts this by itself when a container starts."""
    return target.startswith(_OWN_MOUNTS)


def is_bridge(name: str) -> bool:
    """Whether an interface has the name of a bridge that docker makes for its containers."""
    return bool(_BRIDGE.fullmatch(name))


def observe(units: Iterable[str]) -> dict[str, Container]:
    """By the name of their scope, of ``units``; none if docker does not answer."""
    ids = [match[1] for unit in units if (match := _SCOPE.match(unit))]
    if not ids:
        return {}
    try:
        running = set(run(["docker", "ps", "--quiet", "--no-trunc"]).split())
        ids = [item for item in ids if item in running]
        shown = run_json(["docker", "inspect", "--type", "container", *ids]) if ids else []
    except RekernelError:
        return {}
    return {item.unit: item for item in map(parse, shown)}


def parse(raw: Mapping[str, Any]) -> Container:
    """From ``docker inspect``."""
    return Container(
        engine="docker",
        id=raw["Id"],
        name=raw["Name"].removeprefix("/"),
        unit=f"docker-{raw['Id']}.scope",
        pid=raw["State"]["Pid"],
        monitor=0,
        directory=Path("/var/lib/docker/containers", raw["Id"]),
        obstacle="docker's containers cannot be carried yet",
        remedy="it is stopped and started again; podman's are carried",
        fleeting=bool(raw["HostConfig"].get("AutoRemove")),
    )
