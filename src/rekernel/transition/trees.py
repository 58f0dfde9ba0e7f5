"""The trees of an attempt: how each is dumped and restored, and who belongs to it at the freeze."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rekernel.census.processes import parents
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.checkpoint import externals, links, unkept
from rekernel.checkpoint.amend import Sockets
from rekernel.checkpoint.options import TreeOptions, holds_namespace, restore_argv, roots_of
from rekernel.errors import RekernelError
from rekernel.handover.manifest import Tree, Unkept
from rekernel.systemd import adoption
from rekernel.systemd.units import processes_of


@dataclass(frozen=True, slots=True)
class CarriedTree:
    """A unit to carry with what its dump and its restore need."""

    verdict: UnitVerdict
    options: TreeOptions
    inherited: tuple[externals.External, ...]
    journal_header: str
    # Known once it is frozen.
    unkept: Unkept = field(default_factory=Unkept)

    @property
    def name(self) -> str:
        """Names its directories and its blobs."""
        return self.verdict.unit.name.removesuffix(".service").replace("/", "-").replace("\\", "-")

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return sorted(self.verdict.processes)


def describe(units: Sequence[UnitVerdict], *, lazy: bool) -> list[CarriedTree]:
    """How these units are carried. Raises OSError if one ended meanwhile."""
    found = []
    for item in units:
        inherited = externals.files(list(item.processes))
        options = TreeOptions(
            root_pid=item.root_pid,
            cgroup=item.unit.cgroup,
            private_mounts=holds_namespace(item.root_pid, "mnt"),
            lazy=lazy,
            externals=tuple(external.dump for external in inherited),
        )
        header = adoption.journal_header(item.unit)
        found.append(CarriedTree(item, options, tuple(inherited), header))
    return found


def remaining(trees: Sequence[CarriedTree]) -> tuple[list[CarriedTree], list[UnitVerdict]]:
    """Those whose top process still runs, and the units of those where it ended: restarted."""
    there = []
    ended = []
    for tree in trees:
        if tree.options.root_pid in processes_of(tree.verdict.unit.cgroup):
            there.append(tree)
        else:
            reason = "it ended when the units that restart were stopped"
            ended.append(
                dataclasses.replace(tree.verdict, verdict=Verdict.RESTARTED, reason=reason)
            )
    return there, ended


def as_frozen(trees: Sequence[CarriedTree]) -> list[CarriedTree]:
    """The same trees with the processes that they have now, frozen: they may have forked since.

    Raises RekernelError if a tree is no longer the one that was planned for.
    """
    parent = parents()
    found = []
    for tree in trees:
        unit = tree.verdict.unit
        processes = processes_of(unit.cgroup)
        if roots_of(list(processes), parent) != [tree.options.root_pid] or any(
            path != unit.cgroup for path in processes.values()
        ):
            raise RekernelError(
                f"{unit.name} changed while the upgrade was prepared", "try again in a moment"
            )
        verdict = dataclasses.replace(tree.verdict, processes=processes)
        found.append(dataclasses.replace(tree, verdict=verdict, unkept=unkept.observe(processes)))
    return found


def linked(trees: Sequence[CarriedTree]) -> tuple[list[CarriedTree], links.Taken]:
    """The same frozen trees with the unix sockets that lead out of each, and these.

    Raises links.UnsettledError if an instant more is needed, RekernelError for what cannot be
    carried.
    """
    taken = links.take(
        [links.Member(tree.verdict.unit.name, tree.pids, tree.journal_header) for tree in trees]
    )
    found = []
    for tree, more in zip(trees, taken.externals, strict=True):
        dumped = (*tree.options.externals, *(external.dump for external in more))
        options = dataclasses.replace(tree.options, externals=dumped)
        inherited = (*tree.inherited, *more)
        found.append(dataclasses.replace(tree, options=options, inherited=inherited))
    return found, taken


def as_dumped(trees: Sequence[CarriedTree], sockets: Sockets) -> list[CarriedTree]:
    """The same trees without what ended while criu dumped them: it restores such a socket alone.

    What boots afresh is not frozen and may close a connection at any moment; waiting to be given
    one for it, criu would hang. Nor could it give back a descriptor that came to such a socket
    meanwhile. Raises RekernelError for that.
    """
    got = {f"unix[{inode}]" for inode in sockets.with_descriptors}
    for tree in trees:
        if any(item.dump in got for item in tree.inherited):
            raise RekernelError(
                f"{tree.verdict.unit.name} was sent a descriptor while it was dumped",
                "try again in a moment",
            )
    ended = {f"unix[{inode}]" for inode in sockets.unconnected}
    return [
        dataclasses.replace(
            tree, inherited=tuple(item for item in tree.inherited if item.dump not in ended)
        )
        for tree in trees
    ]


def for_manifest(tree: CarriedTree, images: str) -> Tree:
    """What the agent gets to know; ``images``: prefix of its blobs or name of its directory."""
    return Tree(
        name=tree.name,
        unit=tree.verdict.unit.name,
        root_pid=tree.options.root_pid,
        images=images,
        argv=tuple(restore_argv(tree.options)),
        inherited=tuple(item.inherited for item in tree.inherited if item.inherited is not None),
        cgroups={str(pid): path for pid, path in tree.verdict.processes.items()},
        unkept=tree.unkept,
    )


def for_report(item: UnitVerdict) -> dict[str, Any]:
    """A unit as the report knows it."""
    return {
        "unit": item.unit.name,
        "verdict": str(item.verdict),
        "reason": item.reason,
        "main_pid": item.unit.main_pid,
        "processes": sorted(item.processes),
        "cgroup": item.unit.cgroup,
    }
