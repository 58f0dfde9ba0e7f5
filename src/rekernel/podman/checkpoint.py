"""The old side: crun's dump of a container, held like a tree's, and what podman adds to that."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rekernel.checkpoint.options import HOOK
from rekernel.podman.containers import Container
from rekernel.run import run

# On the next kernel: which containers to bring back (manifest.files).
WANTED = "/run/rekernel/containers.json"
SCHEMA = 1
# Drops what is meant for containers, until they are back. One of family inet, and one of family
# bridge for what they send each other.
TABLE = "rekernel_containers"
BRIDGE_RULES = f"""
table bridge {TABLE} {{
    chain forward {{
        type filter hook forward priority -400; policy accept;
        ether type {{ ip, ip6 }} drop
    }}
}}
"""

# crun of Debian 13 passes no configuration file on, so criu reads the one of its user: of $HOME.
# A lock in the container's own network, as packets between two containers of one bridge never
# pass the host's hooks; criu's default for it needs iptables.
_CONFIGURATION = f"""\
action-script {HOOK}
network-lock nftables
ghost-limit 256M
timeout 60
"""


def configure(home: Path) -> dict[str, str]:
    """Write criu's configuration below ``home``; returns the environment that lets crun find it."""
    path = home / ".criu" / "default.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_CONFIGURATION)
    return {"HOME": str(home)}


def images(container: Container) -> Path:
    """Where podman's restore looks for criu's images."""
    return container.directory / "checkpoint"


def argv(container: Container, work: Path) -> list[str]:
    """The dump; criu's log is ``dump.log`` in ``work``."""
    return [
        "crun", "checkpoint",
        "--image-path", str(images(container)),
        "--work-path", str(work),
        "--leave-running",
        "--tcp-established",
        "--file-locks",
        container.id,
    ]  # fmt: skip


def leftovers(container: Container) -> list[Path]:
    """What a checkpoint leaves in podman's directory."""
    return [images(container), _status(container), _shared_memory(container)]


def _status(container: Container) -> Path:
    return container.directory / "network.status"


def _shared_memory(container: Container) -> Path:
    return container.directory / "devshm-checkpoint.tar"


def write_status(container: Container) -> None:
    """For podman's restore: the addresses that the container shall have again."""
    _status(container).write_text(json.dumps(container.status))


def add_shared_memory(container: Container) -> None:
    """What is in its /dev/shm, while it stands still. Raises RekernelError."""
    directory = container.directory / "shm"
    if directory.is_dir() and any(directory.iterdir()):
        target = _shared_memory(container)
        run(["tar", "-c", "--numeric-owner", "-f", str(target), "-C", str(directory), "."])


def lock_rules(addresses: Iterable[str]) -> str:
    """Input for nft: nothing gets to these, and nobody answers in their place; "" for none."""
    lines = list(_drops(addresses))
    if not lines:
        return ""
    rules = "\n".join(f"        {line}" for line in lines)
    chains = "\n".join(
        f"    chain {hook} {{\n        type filter hook {hook} priority -400; policy accept;\n"
        f"{rules}\n    }}"
        for hook in ("forward", "output")
    )
    return f"table inet {TABLE} {{\n{chains}\n}}\n"


def _drops(addresses: Iterable[str]) -> Iterator[str]:
    for address in addresses:
        family = "ip6" if ":" in address else "ip"
        yield f"{family} daddr {address} drop"
        yield f"{family} saddr {address} drop"


def wanted(carried: Iterable[Container], restarted: Iterable[Container]) -> str:
    """What the new side reads: containers to restore, and to start again."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "restore": [_record(container) for container in carried],
            "start": [_record(container) for container in restarted],
        }
    )


def _record(container: Container) -> dict[str, Any]:
    return {
        "id": container.id,
        "name": container.name,
        "unit": container.unit,
        "log": str(container.directory / "restore.log"),
        "leftovers": [str(path) for path in leftovers(container)],
    }
