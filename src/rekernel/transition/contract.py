"""What the new side gets to know of an attempt: the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rekernel.carry.cgroups import observe as cgroups
from rekernel.carry.memory.entry import Memory
from rekernel.carry.unix_sockets.observe import Taken
from rekernel.handover.manifest import SCHEMA, Clock, Manifest, Phase
from rekernel.plan.plan import Plan
from rekernel.records import record, replace
from rekernel.transition import staging, trees
from rekernel.transition.containers import Containers
from rekernel.transition.host_facts import HostFacts
from rekernel.transition.places import Places

# What the agent may take at least, in seconds, and bytes it restores in one if it is very slow.
_PATIENCE_S = 120
_SLOWEST = 16 << 20


@record
class Cut:
    """What stands still since ``frozen_ns``, as it is written down.

    ``watched``: as amend.Amended has it.
    """

    trees: list[trees.CarriedTree]
    taken: Taken
    watched: dict[str, str]
    # Requests that set again what the packet filter remembers.
    tracked: bytes
    # Real time in nanoseconds.
    frozen_ns: int


@record
class Prepared:
    """What was known before. ``phases``: those until now."""

    id: str
    plan: Plan
    host: HostFacts
    places: Places
    containers: Containers
    phases: tuple[Phase, ...]


def manifest(
    prepared: Prepared,
    made: Cut,
    memory: Memory,
    report: Mapping[str, Any],
    clock: Clock,
) -> Manifest:
    """Compose the manifest. ``report``: what only the report needs. Raises OSError."""
    travels = prepared.host.travels
    places = prepared.places
    targets = [item.target for item in prepared.host.contents]
    groups = [*dict.fromkeys(tree.verdict.unit.cgroup for tree in made.trees)]
    return Manifest(
        schema=SCHEMA,
        id=prepared.id,
        machine_id=staging.machine_id(),
        old_release=prepared.plan.running,
        new_release=prepared.plan.kernel.release,
        clock=clock,
        frozen_ns=made.frozen_ns,
        memory=memory,
        host=replace(
            travels,
            mounts=(*places.with_archives(travels.mounts, targets), *places.to_unpack()),
            files={**travels.files, **prepared.containers.files()},
            network=prepared.containers.network(travels.network),
        ),
        trees=tuple(
            trees.for_manifest(tree, places.for_agent(tree.verdict.unit.name, tree.name))
            for tree in made.trees
        ),
        cgroups=(
            *cgroups.above(groups),
            *(group for path in groups for group in cgroups.observe(path)),
        ),
        patience_s=_patience(report),
        highest_pid=trees.highest_number(made.trees),
        init=(staging.INIT,),
        phases=prepared.phases,
        report=dict(report),
        unix_connections=made.taken.connections,
        datagrams=made.taken.datagrams,
        watched=made.watched,
    )


def _patience(report: Mapping[str, Any]) -> int:
    """Seconds after which a restore is stuck, by what the manifest's report says of its size."""
    if report["backend"] == "region":
        written = report["image_bytes"] + report["disk_bytes"] + report["tmpfs_bytes"]
        size = written + report["stray_pages"] * 4096
    else:
        size = report["resident_bytes"]
    return _PATIENCE_S + int(size) // _SLOWEST
