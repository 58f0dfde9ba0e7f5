"""The running containers of root's podman, and what of them podman could not restore."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rekernel.containers.model import Container
from rekernel.run import CommandNotFoundError, run, run_json

_SCOPE = re.compile(r"libpod-([0-9a-f]{64})\.scope$")
# What podman keeps on disk; what it mounts and writes there is its own business.
STORAGE = "/var/lib/containers/storage/"
# Paths of what a checkpoint of ours writes there: one that podman makes by itself is not touched.
LEFT = Path("/var/lib/rekernel/containers.json")
_NAMESPACE = re.compile(r"netns-[0-9a-f-]{36}$")
_NAMESPACES = "/run/netns"


def is_namespace(name: str) -> bool:
    """Whether a network namespace (ip-netns(8)) is that of a container."""
    return bool(_NAMESPACE.match(name))


def is_own_mount(target: str) -> bool:
    """Whether podman mounts this by itself when a container starts."""
    if target.startswith(f"{_NAMESPACES}/"):
        return is_namespace(target.removeprefix(f"{_NAMESPACES}/"))
    # As ip-netns(8) does.
    return target == _NAMESPACES or target.startswith(STORAGE)


def observe(units: Iterable[str]) -> dict[str, Container]:
    """By the name of their scope, of ``units``. Raises CommandFailedError."""
    ids = [match[1] for unit in units if (match := _SCOPE.match(unit))]
    if not ids:
        return {}
    try:
        running = set(run(["podman", "ps", "--quiet", "--no-trunc"]).split())
        ids = [item for item in ids if item in running]
        shown = run_json(["podman", "inspect", "--type", "container", *ids]) if ids else []
    except CommandNotFoundError:
        return {}
    return {item.unit: item for item in map(parse, shown)}


def parse(raw: Mapping[str, Any]) -> Container:
    """From ``podman inspect``."""
    networks = raw["NetworkSettings"].get("Networks") or {}
    obstacle, remedy = _obstacle(raw, networks)
    return Container(
        id=raw["Id"],
        name=raw["Name"],
        unit=f"libpod-{raw['Id']}.scope",
        pid=raw["State"]["Pid"],
        monitor=raw["State"].get("ConmonPid", 0),
        directory=Path(raw["StaticDir"]),
        addresses=tuple(
            network[key]
            for network in networks.values()
            for key in ("IPAddress", "GlobalIPv6Address")
            if network.get(key)
        ),
        status={name: _status(network) for name, network in networks.items()},
        obstacle=obstacle,
        remedy=remedy,
        fleeting=bool(raw["HostConfig"].get("AutoRemove")),
        ports=tuple(_ports(raw["NetworkSettings"].get("Ports") or {})),
    )


def _ports(published: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, places in published.items():
        for place in places or ():
            yield name.partition("/")[2], int(place["HostPort"])


def _status(network: Mapping[str, Any]) -> dict[str, Any]:
    """As podman writes it to network.status (containers/common, libnetwork/types.StatusBlock)."""
    subnets = [
        {"ipnet": f"{network[address]}/{network[length]}", "gateway": network[gateway]}
        for address, length, gateway in (
            ("IPAddress", "IPPrefixLen", "Gateway"),
            ("GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPv6Gateway"),
        )
        if network.get(address)
    ]
    return {"interfaces": {"eth0": {"mac_address": network["MacAddress"], "subnets": subnets}}}


def left_behind(kept: Path = LEFT) -> list[str]:
    """What an attempt of ours has left in podman's directories, from which nothing came of it."""
    try:
        found: list[str] = json.loads(kept.read_text())
    except (OSError, ValueError):
        return []
    return found


def _obstacle(raw: Mapping[str, Any], networks: Mapping[str, Any]) -> tuple[str, str]:
    host = raw["HostConfig"]
    again = "make it anew without that; else it is stopped and started again"
    if raw["State"]["Status"] != "running":
        return f"it is {raw['State']['Status']}", "podman unpause, if that is what it is"
    if Path(raw["OCIRuntime"]).name != "crun":
        return f"its runtime is {raw['OCIRuntime']}, and only crun's are carried", again
    if raw.get("Pod"):
        return "it is part of a pod", again
    if host.get("AutoRemove"):
        return "podman forgets containers that were started with --rm", again
    if raw["Config"].get("Tty"):
        return "it has a terminal (--tty)", again
    if raw.get("ExecIDs"):
        return "somebody executes something in it (podman exec)", "wait until that has ended"
    if host.get("NetworkMode") not in ("bridge", "none") or len(networks) > 1:
        return "it has not just one network of its own", again
    for key, words in (("PidMode", "processes"), ("IpcMode", "IPC"), ("UTSMode", "host name")):
        if str(host.get(key)).startswith(("host", "container:", "ns:")):
            return f"it shares a name space with others ({words})", again
    if host.get("UsernsMode") or host.get("IDMappings"):
        return "it has a user namespace of its own, which criu cannot dump", again
    # podman's restore would take that for ours.
    images = Path(raw["StaticDir"], "checkpoint")
    if images.exists() and str(images) not in left_behind():
        return "podman has a checkpoint of it", f"remove {raw['StaticDir']}/checkpoint"
    return "", ""


def runtime_obstacle() -> tuple[str, str]:
    """Why crun cannot have anything dumped here, and what to do; ("", "") if it can."""
    try:
        if "+CRIU" not in run(["crun", "--version"]):
            return "this crun was built without criu", "install Debian's crun"
    except CommandNotFoundError:
        return "crun is not installed", "apt install crun"
    if "libcriu.so.2" not in run(["ldconfig", "-p"]):
        return "crun does not find criu's library", "apt install libcriu2"
    return "", ""
