"""The old side: crun's dump of a container, held like a tree's, and what podman adds to that."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rekernel.containers.model import Container
from rekernel.criu.options import HOOK
from rekernel.run import CommandFailedError, run

# On the next kernel: which containers to bring back (Host.files of the manifest).
WANTED = "/run/rekernel/containers.json"
SCHEMA = 1
# Drops what is meant for containers, until they are back. One of family inet, and one of family
# bridge for what they send each other.
TABLE = "rekernel_containers"

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
    """Write the addresses that the container shall have again, for podman's restore."""
    _status(container).write_text(json.dumps(container.status))


def add_shared_memory(container: Container) -> None:
    """What is in its /dev/shm, while it stands still. Raises RekernelError."""
    directory = container.directory / "shm"
    if directory.is_dir() and any(directory.iterdir()):
        target = _shared_memory(container)
        run(["tar", "-c", "--numeric-owner", "-f", str(target), "-C", str(directory), "."])


def free(pid: int, cgroup: str) -> None:
    """Take away what a killed criu may have left: its lock in the container's network, its freeze.

    ``cgroup``: the container's scope. Nothing to do is no error. Raises RekernelError, OSError if
    the lock may still be there.
    """
    for path in Path("/sys/fs/cgroup", cgroup.lstrip("/")).glob("*/cgroup.freeze"):
        path.write_text("0")
    namespace = f"/proc/{pid}/ns/net"
    inside = ["nsenter", f"--net={namespace}", "nft"]
    try:
        for line in run([*inside, "list", "tables"]).splitlines():
            if line.startswith("table inet CRIU-"):
                run([*inside, "delete", *line.split()])
    except CommandFailedError:
        # With its last process the lock has gone, too.
        if os.path.exists(namespace):
            raise


# So that connections with translated addresses are recognised: netavark's rules come with the
# containers, and without any the kernel would look at none.
_TRACKING = """\
    chain translated_in { type nat hook prerouting priority -100; policy accept; }
    chain translated_local { type nat hook output priority -100; policy accept; }
    chain translated_out { type nat hook postrouting priority 100; policy accept; }
    chain translated_mine { type nat hook input priority 100; policy accept; }
    chain tracked { type filter hook forward priority 0; policy accept; ct state new continue; }
"""


def lock_rules(containers: Sequence[Container]) -> str:
    """Input for nft: nothing gets to these, and nobody answers in their place; "" for none."""
    if not containers:
        return ""
    ports = sorted({port for container in containers for port in container.ports})
    published = [f"fib daddr type local {name} dport {port} drop" for name, port in ports]
    drops = _drops(containers)
    return (
        f"table inet {TABLE} {{\n"
        + _chain("published", "prerouting", -300, published)
        + _chain("published_local", "output", -400, [*published, *drops])
        # Where the addresses are translated back already.
        + _chain("forward", "forward", -400, drops)
        + _TRACKING
        + "}\n"
    )


def bridge_rules(containers: Sequence[Container]) -> str:
    """Rules that drop what containers send each other over a bridge, as nft takes them."""
    return f"table bridge {TABLE} {{\n{_chain('forward', 'forward', -400, _drops(containers))}}}\n"


def _chain(name: str, hook: str, priority: int, rules: Sequence[str]) -> str:
    lines = [f"type filter hook {hook} priority {priority}; policy accept", *rules]
    return f"    chain {name} {{ " + "; ".join(lines) + "; }\n"


def _drops(containers: Sequence[Container]) -> list[str]:
    found = []
    for address in (address for container in containers for address in container.addresses):
        family = "ip6" if ":" in address else "ip"
        found += [f"{family} daddr {address} drop", f"{family} saddr {address} drop"]
    return found


def wanted(carried: Sequence[Container]) -> str:
    """What the new side reads: containers to restore."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "bridge_rules": bridge_rules(carried),
            "restore": [_record(container) for container in carried],
        }
    )


def _record(container: Container) -> dict[str, Any]:
    return {
        "engine": container.engine,
        "id": container.id,
        "name": container.name,
        "unit": container.unit,
        "log": str(container.directory / "restore.log"),
        "leftovers": [str(path) for path in leftovers(container)],
    }
