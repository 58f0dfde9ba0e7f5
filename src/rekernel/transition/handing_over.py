"""What stands still goes into the handover store; sealed, that is what the next kernel finds."""

from __future__ import annotations

import time
from typing import Any

from rekernel import syscalls
from rekernel.carry.apparmor.entry import APPARMOR_BLOBS
from rekernel.carry.conntrack.entry import CONNTRACK_BLOB
from rekernel.carry.memory.recorder import memory_entry
from rekernel.carry.raid import observe as raid
from rekernel.census.verdicts import Verdict
from rekernel.errors import CancelledError, RekernelError
from rekernel.handover.manifest import Clock
from rekernel.handover.store import StoreWriter
from rekernel.run import finish
from rekernel.transition import contract, freezing, store, trees
from rekernel.transition.standstill import start_recorder
from rekernel.transition.state import State

# How long journald may take to close what it has on disk.
_JOURNAL_S = 10.0
# How often the page map is made anew because pages were moved meanwhile.
_RECORDS = 3


def hand_over(state: State) -> None:
    """Images, the contents of tmpfs mounts, and what else is no part of the manifest."""
    state.writer = StoreWriter(state.area, state.strays_at or None)
    # Without a region they are where they shall be.
    state.image_bytes = (
        store.add_images(state.writer, state.places.in_memory) if state.in_place else 0
    )
    state.tmpfs_bytes = store.add_tmpfs(state.writer, state.host.contents, state.places.archive)
    store.add_blobs(state.writer, {**state.taken.queues, CONNTRACK_BLOB: state.cut.tracked})
    policies = {f"{APPARMOR_BLOBS}{i}": policy for i, policy in enumerate(state.profiles)}
    store.add_blobs(state.writer, policies)


def freeze_filesystems(state: State) -> None:
    """On disks, so that no journal needs a replay."""
    _close_journal(state)
    # With the store on a disk that must come after the last write to it.
    if state.in_place:
        freezing.freeze_filesystems(state.host.table, state.undo)


def _close_journal(state: State) -> None:
    """On disk, so that the next boot finds no journal torn off; beside the dump until now."""
    assert state.journal is not None
    try:
        done = finish(state.journal, "journalctl", limit=_JOURNAL_S) == 0
    except CancelledError:
        raise
    except RekernelError:
        done = False
    if not done:
        state.note("the journal could not be closed on disk: see journalctl.log")


def pages_moved(state: State) -> bool:
    """Whether the kernel moved pages since they were recorded, to make a large one, say."""
    return state.record is not None and not state.record.is_true()


def record_again(state: State) -> None:
    """The page map as of now. Raises RekernelError if the kernel keeps on moving pages."""
    pids = [pid for tree in state.cut.trees for pid in tree.pids]
    for _ in range(_RECORDS):
        state.record = start_recorder(state, pids).finish(state.plan.resident_bytes)
        if state.record.is_true():
            return
    raise RekernelError("the kernel keeps on moving pages", "try again in a moment")


def seal(state: State) -> None:
    """The manifest, and with it the store is valid. Raises RekernelError if anything is not as it
    was written down.
    """
    plan, record = state.plan, state.record
    if record is not None:
        store.add_record(state.writer, state.area, record, state.strays_at)
    raid.assert_as_before(state.arrays)
    state.dumps.assert_held()
    report = _for_report(state)
    memory = memory_entry(plan.where, record, state.strays_at)
    clock = Clock(time.time_ns(), syscalls.rdtsc(), state.hertz)
    phases = tuple(state.events.phases)
    known = contract.Prepared(state.id, plan, state.host, state.places, state.containers, phases)
    store.seal(state.writer, contract.manifest(known, state.cut, memory, report, clock))
    if not state.in_place:
        state.area.flush()
        freezing.freeze_filesystems(state.host.table, state.undo)
    if record is not None and not record.is_true():
        raise RekernelError("the kernel has just moved pages", "try again in a moment")


def _for_report(state: State) -> dict[str, Any]:
    """What the report has of the old side, passed through by the agent."""
    plan, record = state.plan, state.record
    now = [*(tree.verdict for tree in state.cut.trees), *state.ended]
    as_found = {item.unit.name: item for item in now}
    restarted = [item for item in state.ended if item.verdict is Verdict.RESTARTED]
    return {
        "backend": plan.backend,
        "image_bytes": state.image_bytes,
        "disk_bytes": state.places.disk_bytes(),
        "tmpfs_bytes": state.tmpfs_bytes,
        "pages_in_place": record.pages if record else 0,
        "stray_pages": record.stray_pages if record else 0,
        "resident_bytes": plan.resident_bytes,
        "container_bytes": plan.container_bytes,
        "connections": state.connections,
        "swaps": [[area.name, area.priority] for area in state.swap_areas],
        "sysctls": state.settings,
        "triggers": state.host.triggers,
        "notes": state.notes,
        "left_out": [item.unit.name for item in restarted],
        "units": [trees.for_report(as_found.get(item.unit.name, item)) for item in plan.units],
    }
