"""The trees of an attempt: how each is dumped and restored, and who belongs to it at the freeze."""

from __future__ import annotations

import os
import signal
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from rekernel import syscalls
from rekernel.carry.inotify import observe as inotify
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.observe import stays_behind
from rekernel.carry.open_files import observe as open_files
from rekernel.carry.pidfd import observe as pidfd
from rekernel.carry.runtime_units.observe import is_transient
from rekernel.carry.task_attributes import observe as task_attributes
from rekernel.carry.task_attributes.entry import TaskAttributes
from rekernel.carry.terminals import observe as terminals
from rekernel.carry.terminals.restore import REACH
from rekernel.carry.unix_sockets import observe as unix_sockets
from rekernel.census import sharing
from rekernel.census.processes import parents
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.criu.descriptors import Descriptor, External, descriptors
from rekernel.criu.options import (
    TreeOptions,
    holds_namespace,
    led_elsewhere,
    restore_argv,
    trees_of,
)
from rekernel.errors import RekernelError
from rekernel.handover.manifest import Tree
from rekernel.records import field, record, replace
from rekernel.systemd.units import Unit, members
from rekernel.transition.amend import Amended

# systemd(1). It takes its services over from itself: those it knows by the numbers of their handles
# (pidfds), which are others on each kernel, and would not listen to what they notify it of.
_REEXECUTE = signal.SIGRTMIN + 25
# How often what runs is looked at anew because a tree's first process ended meanwhile.
_DESCRIPTIONS = 5


@record
class CarriedTree:
    """A process tree of a unit to carry with what its dump and its restore need."""

    # Of the whole unit, which may have more trees.
    verdict: UnitVerdict
    # PID -> control group.
    processes: dict[int, str]
    options: TreeOptions
    inherited: tuple[External, ...]
    # Known once it is frozen.
    task_attributes: TaskAttributes = field(default_factory=TaskAttributes)
    # Names of the trees whose terminals it has open.
    lenders: tuple[str, ...] = ()
    # Numbers of the terminals that it gets back by itself.
    terminals: tuple[int, ...] = ()
    # Directories and files that it watches (inotify).
    watched: tuple[str, ...] = ()
    # Of a mount namespace of its own: mount point -> flags as mount(2) takes them.
    mounts: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Names its directories and its blobs; no other tree has it.

        Neither "+" nor "," is in the name of any unit (systemd.unit(5)).
        """
        unit = self.verdict.unit.name
        short = unit.removesuffix(".service")
        # "a.scope.service" must not be called as "a.scope" is.
        name = (unit if "." in short else short).replace("\\", ",")
        return name if len(self.verdict.roots) == 1 else f"{name}+{self.options.root_pid}"

    @property
    def pids(self) -> list[int]:
        """The PIDs of its processes."""
        return sorted(self.processes)


def describe(units: Sequence[UnitVerdict], *, lazy: bool) -> list[CarriedTree]:
    """How these units are carried.

    Raises RekernelError for a terminal that cannot come back, or if processes come and go too fast.
    """
    for _ in range(_DESCRIPTIONS):
        with suppress(FileNotFoundError, ProcessLookupError):
            return _describe_all(units, lazy=lazy)
    raise RekernelError(
        "processes came and went while they were looked at", "try again in a moment"
    )


def _describe_all(units: Sequence[UnitVerdict], *, lazy: bool) -> list[CarriedTree]:
    parent = parents()
    now = members([item.unit for item in units], parent)
    found = []
    for item in units:
        processes = now[item.unit.name]
        # There may be other trees than when it was judged, and their names depend on how many.
        roots = trees_of(processes, parent)
        verdict = replace(item, processes=processes, roots=tuple(roots))
        found += [_describe(verdict, root, pids, lazy=lazy) for root, pids in roots.items()]
    _assert_terminals(found)
    return found


def _describe(verdict: UnitVerdict, root: int, pids: Sequence[int], *, lazy: bool) -> CarriedTree:
    inherited = open_files.files(pids)
    options = TreeOptions(
        root_pid=root,
        cgroup=verdict.unit.cgroup,
        private_mounts=holds_namespace(root, "mnt"),
        lazy=lazy,
        led_elsewhere=led_elsewhere(root),
        externals=tuple(external.dump for external in inherited),
    )
    opened = _opened(pids)
    return CarriedTree(
        verdict,
        {pid: verdict.processes[pid] for pid in pids},
        options,
        tuple(inherited),
        terminals=terminals.owned_terminals(opened),
        watched=tuple(_watched(opened)),
        mounts={
            # Of several the last one, which is on top.
            mount.target: syscalls.mount_flags(mount.options)
            for mount in (mounts.observe(str(root)) if options.private_mounts else ())
        },
    )


def without_mounts_of_others(
    trees: Sequence[CarriedTree], made_again: Container[str]
) -> list[CarriedTree]:
    """Trees without mounts of init or podman that they see, too: those stay on this kernel.

    ``made_again``: mount points that the agent has for the restore.
    """
    found = []
    for tree in trees:
        skipped: tuple[str, ...] = ()
        if tree.options.private_mounts:
            # One that has ended is looked for again when all is frozen.
            with suppress(FileNotFoundError, ProcessLookupError):
                skipped = tuple(
                    mount.target
                    for mount in mounts.observe(str(tree.options.root_pid))
                    if mounts.is_of_others(mount) and mount.target not in made_again
                )
        options = replace(tree.options, skipped=skipped)
        left = {target: flags for target, flags in tree.mounts.items() if target not in skipped}
        found.append(replace(tree, options=options, mounts=left))
    return found


def _watched(opened: Iterable[Descriptor]) -> Iterator[str]:
    for item in opened:
        with suppress(FileNotFoundError, ProcessLookupError):
            if item.link in (inotify.LINK, inotify.FANOTIFY):
                yield from inotify.observe(item.pid, item.number)


def _opened(pids: Iterable[int]) -> list[Descriptor]:
    found = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            found += descriptors(pid)
    return found


def _by_unit(trees: Sequence[CarriedTree]) -> list[list[CarriedTree]]:
    found: dict[str, list[CarriedTree]] = {}
    for tree in trees:
        found.setdefault(tree.verdict.unit.name, []).append(tree)
    return list(found.values())


def remaining(trees: Sequence[CarriedTree]) -> tuple[list[CarriedTree], list[UnitVerdict]]:
    """Trees of units whose top processes still run, and the units where one ended.

    Of a login anything may have ended, as long as something is left.
    """
    there: list[CarriedTree] = []
    ended = []
    groups = _by_unit(trees)
    now = members([group[0].verdict.unit for group in groups], parents())
    for group in groups:
        verdict = group[0].verdict
        processes = now[verdict.unit.name]
        left = [tree for tree in group if tree.options.root_pid in processes]
        if left == group or (processes and _may_change(verdict.unit, processes)):
            # Whose top processes are all new ones: as_frozen looks again.
            there += left or group
        else:
            reason = "it ended when the units that restart were stopped"
            fate = Verdict.RESTARTED
            if verdict.unit.is_login or verdict.unit.is_manager:
                reason, fate = "logged out meanwhile", Verdict.ENDS
            elif is_transient(verdict.unit):
                # Systemd has forgotten it: it has done what it was for.
                reason, fate = "it came to its end meanwhile", Verdict.ENDS
            ended.append(replace(verdict, verdict=fate, reason=reason))
    return there, ended


def _may_change(unit: Unit, pids: Container[int]) -> bool:
    """Whether its trees may be others by now: people begin and end what they like."""
    return unit.is_login or (unit.is_manager and unit.main_pid in pids)


def as_frozen(trees: Sequence[CarriedTree]) -> list[CarriedTree]:
    """Trees with the processes that they have now, frozen: they may have forked since.

    Who has logged in starts and ends what they like. Raises RekernelError if a service no longer
    has the trees that were planned for, or a login none.
    """
    parent = parents()
    groups = _by_unit(trees)
    present = members([group[0].verdict.unit for group in groups], parent)
    found = []
    for group in groups:
        unit = group[0].verdict.unit
        processes = present[unit.name]
        now = trees_of(processes, parent)
        known = {tree.options.root_pid: tree for tree in group}
        if not now or (now.keys() != known.keys() and not _may_change(unit, now)):
            raise RekernelError(
                f"{unit.name} changed while the upgrade was prepared", "try again in a moment"
            )
        if now.keys() != known.keys():
            _assert_separate(unit.name, now)
        verdict = replace(group[0].verdict, processes=processes, roots=tuple(now))
        lazy = group[0].options.lazy
        for root, pids in now.items():
            tree = known.get(root) or _describe(verdict, root, pids, lazy=lazy)
            own = {pid: processes[pid] for pid in pids}
            found.append(
                replace(
                    tree,
                    verdict=verdict,
                    processes=own,
                    task_attributes=task_attributes.observe(own),
                )
            )
    return found


def _assert_separate(unit: str, trees: Mapping[int, Sequence[int]]) -> None:
    """Raises RekernelError: trees that were begun after all was judged may share what is torn."""
    everyone = [pid for pids in trees.values() for pid in pids]
    for item in sharing.find(trees, everyone, lending=trees.keys()).shared.values():
        raise RekernelError(
            f"{unit} has begun something meanwhile: process {item.pid} shares {item.what} with "
            f"process {item.other}",
            "try again when that is done",
        )


def linked(trees: Sequence[CarriedTree]) -> tuple[list[CarriedTree], unix_sockets.Taken]:
    """Frozen trees with what leads out of each: terminals, unix sockets; and these.

    Raises UnsettledError if an instant more is needed, RekernelError for what cannot be carried.
    """
    trees = _with_terminals(trees)
    taken = unix_sockets.take([unix_sockets.Member(tree.name, tree.pids) for tree in trees])
    return [_with(tree, more) for tree, more in zip(trees, taken.externals, strict=True)], taken


def _with(tree: CarriedTree, more: Sequence[External]) -> CarriedTree:
    dumped = (*tree.options.externals, *(external.dump for external in more))
    options = replace(tree.options, externals=dumped)
    return replace(tree, options=options, inherited=(*tree.inherited, *more))


def _with_terminals(trees: Sequence[CarriedTree]) -> list[CarriedTree]:
    """Logins may have terminals of each other open, as the server of tmux has."""
    opened = {
        tree.name: [item for pid in tree.pids for item in descriptors(pid)]
        for tree in trees
        if tree.verdict.unit.is_login
    }
    masters = {item.master_of: name for name, items in opened.items() for item in items}
    owners = {pid: tree.name for tree in trees for pid in tree.pids}
    found = []
    for tree in trees:
        items = opened.get(tree.name, [])
        _assert_nothing_left_behind(items)
        _assert_no_handles_of_others(items, tree.name, owners)
        borrowed, numbers = terminals.terminals(items)
        if not masters.keys() >= set(numbers):
            raise unix_sockets.UnsettledError(
                f"{tree.verdict.unit.name} has a terminal open whose owner is not carried",
                "try again in a moment",
            )
        lenders = dict.fromkeys(masters[number] for number in numbers)
        with_lenders = replace(_with(tree, borrowed), lenders=tuple(lenders))
        if items:
            owned = terminals.owned_terminals(items)
            with_lenders = replace(with_lenders, terminals=owned)
        found.append(with_lenders)
    # Logins may have got others since they were described.
    _assert_order(found)
    _assert_terminals(found)
    return found


def _assert_order(trees: Sequence[CarriedTree]) -> None:
    """Raises RekernelError: each needs a terminal of the other, so none can be the first."""
    try:
        TopologicalSorter({tree.name: tree.lenders for tree in trees}).prepare()
    except CycleError as error:
        raise RekernelError(
            f"each has a terminal of the next one open: {', '.join(error.args[1])}",
            "detach a tmux that is attached within itself",
        ) from None


def _assert_terminals(trees: Sequence[CarriedTree]) -> None:
    """Raises RekernelError: one needs a number that it cannot get again."""
    owners: dict[int, str] = {}
    for tree in trees:
        for number in tree.terminals:
            if number in owners:
                raise RekernelError(
                    f"{tree.name} has a terminal open that is gone, and whose number "
                    f"{owners[number]} has got",
                    "end what is left there: `rekernel check` names it",
                )
            owners[number] = tree.name
        if tree.terminals and tree.terminals[-1] - tree.terminals[0] >= REACH:
            raise RekernelError(
                f"{tree.name} has terminals {tree.terminals[0]} and {tree.terminals[-1]}, which "
                "are too far from each other for criu",
                "close one of them (a window of tmux or screen), or log in again",
            )


def _assert_nothing_left_behind(opened: Sequence[Descriptor]) -> None:
    """Raises UnsettledError: `rekernel upgrade` reads its events every now and then."""
    for item in opened:
        if stays_behind(item.link):
            raise unix_sockets.UnsettledError(
                f"process {item.pid} has {item.link} open, which stays with this kernel",
                "end it, or log out there",
            )


def _assert_no_handles_of_others(
    opened: Sequence[Descriptor], own: str, owners: Mapping[int, str]
) -> None:
    """Raises UnsettledError: `systemctl --user` has one of a user's manager while it runs."""
    for item in opened:
        of = pidfd.target(item)
        if of is not None and owners.get(of, own) != own:
            raise unix_sockets.UnsettledError(
                f"process {item.pid} has a handle of process {of}, of {owners[of]}",
                "end it, or log out there",
            )


def cgroups_of(tree: CarriedTree, trees: Sequence[CarriedTree]) -> tuple[str, ...]:
    """The control groups of all units that have processes of this tree: its own comes first."""
    units = dict.fromkeys(item.verdict.unit.cgroup for item in (tree, *trees))
    return tuple(
        unit
        for unit in units
        if any(f"{path}/".startswith(f"{unit}/") for path in tree.processes.values())
    )


def as_dumped(trees: Sequence[CarriedTree], sockets: Amended) -> list[CarriedTree]:
    """Trees without what ended while criu dumped them: it restores such a socket alone.

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
        replace(tree, inherited=tuple(item for item in tree.inherited if item.dump not in ended))
        for tree in trees
    ]


def highest_number(trees: Sequence[CarriedTree]) -> int:
    """None of their processes, threads, sessions and groups has a higher number.

    Those that this kernel has given out are below its last one, unless they have begun again from
    below since; so are sessions and groups then, as long as their leaders live.
    """
    last = int(Path("/proc/sys/kernel/ns_last_pid").read_text())
    tasks = (task for tree in trees for pid in tree.processes for task in _tasks(pid))
    return max([last, *tasks])


def _tasks(pid: int) -> list[int]:
    """A process and its threads."""
    try:
        return [pid, *map(int, os.listdir(f"/proc/{pid}/task"))]
    except FileNotFoundError:
        return [pid]


def for_manifest(tree: CarriedTree, images: str) -> Tree:
    """What the agent gets to know; ``images``: prefix of its blobs or name of its directory."""
    return Tree(
        name=tree.name,
        unit=tree.verdict.unit.name,
        root_pid=tree.options.root_pid,
        images=images,
        argv=tuple(restore_argv(tree.options)),
        inherited=tuple(item.inherited for item in tree.inherited if item.inherited is not None),
        cgroups={str(pid): path for pid, path in tree.processes.items()},
        task_attributes=tree.task_attributes,
        after=tree.lenders,
        terminals=tree.terminals,
        mounts=tree.mounts,
        signal=_REEXECUTE if tree.options.root_pid == _manager(tree) else 0,
    )


def _manager(tree: CarriedTree) -> int:
    """PID of the user's manager that this is the tree of, 0 of any other tree."""
    unit = tree.verdict.unit
    return unit.main_pid if unit.is_manager else 0


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
