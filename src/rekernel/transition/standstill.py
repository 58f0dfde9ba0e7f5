"""The cut: everything that is carried stands still at one instant, and is written down."""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor

from rekernel.attempt.undo import thaw
from rekernel.carry.conntrack import observe as conntrack
from rekernel.carry.memory.recorder import Recorder
from rekernel.carry.mounts import binds
from rekernel.carry.network import observe as network
from rekernel.carry.pidfd.observe import StandIn
from rekernel.carry.unix_sockets.observe import Taken, UnsettledError
from rekernel.criu import large_areas, parent_images, stopped
from rekernel.criu.options import dump_argv
from rekernel.run import start
from rekernel.systemd.units import processes_of
from rekernel.transition import freezing, late, staging, trees
from rekernel.transition.amend import Amended, Wanted, amend_images
from rekernel.transition.contract import Cut
from rekernel.transition.dumps import DumpAgainError, DumpJob
from rekernel.transition.state import State

# How long what is on its way between two services may take to arrive.
_SETTLE_S = 10.0
# Everything runs for this long in between, and each time for twice as long: whoever must only
# get on may be one of many that want a processor.
_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0


def make_ready(state: State) -> None:
    """What criu could not dump becomes such that it can, while all runs."""
    # Init, of which processes have handles that criu would not dump.
    groups = dict.fromkeys(tree.verdict.unit.cgroup for tree in state.carried)
    state.stand_in = StandIn(pid for group in groups for pid in processes_of(group))
    if state.stand_in.handles:
        state.undo.push("handle", *map(str, state.stand_in.handles))
        state.stand_in.take_place()
    stopped.make_ready(state.everyone)


def freeze(state: State) -> None:
    """Freeze all trees at one instant, and write down what they are at that instant."""
    state.undo.push("flush-journal")
    state.frozen_ns = time.time_ns()
    state.frozen, state.taken = _freeze(state)
    state.stand_in.end()
    # Now that nobody sees it: who reads the journal would follow it to where nothing stays.
    log = str(staging.SCRATCH / "journalctl.log")
    state.journal = start(["journalctl", "--relinquish-var"], output=log)


def _freeze(state: State) -> tuple[list[trees.CarriedTree], Taken]:
    cgroups = [
        *dict.fromkeys(tree.verdict.unit.cgroup for tree in state.carried),
        *state.containers.cgroups,
    ]
    deadline, pause = time.monotonic() + _SETTLE_S, _PAUSE_S
    if cgroups:
        state.undo.push("thaw", *cgroups)
    while True:
        freezing.freeze(cgroups, state.check)
        try:
            return trees.linked(trees.as_frozen(state.carried))
        except UnsettledError:
            if time.monotonic() > deadline:
                raise
        state.check()
        for cgroup in cgroups:
            thaw(cgroup)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def lock_network(state: State) -> None:
    """Drop every packet from now on."""
    state.undo.push("unlock-network")
    network.lock()


def dump(state: State) -> None:
    """Dump all trees, side by side, then the page map. Raises DumpAgainError: try once more."""
    staging.allow_reservations(state.undo)
    with ThreadPoolExecutor(1) as background:
        tracked = background.submit(lambda: conntrack.requests(conntrack.observe()))
        amended = _dump(state)
        dumped = trees.as_dumped(state.frozen, amended)
        state.cut = Cut(dumped, state.taken, amended.watched, tracked.result(), state.frozen_ns)


def _dump(state: State) -> Amended:
    pids = state.frozen_pids
    everyone = [*pids, *state.containers.pids]
    work = staging.SCRATCH / "work"
    # The longest ones first: else the last of them would leave processors idle.
    ordered = sorted(state.frozen, key=lambda tree: len(tree.pids), reverse=True)
    jobs = [_job(state, tree) for tree in ordered]
    stand_ins = {handle.inode for handle in state.stand_in.handles}
    canonical = functools.partial(binds.canonical, mounts=state.host.table)
    wanted = Wanted(state.taken.disconnected, stand_ins, canonical)
    if state.in_place:
        parent_images.pretend(staging.PARENT, pids, again=True)
        parent_images.nothing_written(pids)
    state.dumps.start([*state.containers.jobs(work), *jobs], everyone)
    state.dumps.wait(state.check)
    state.dumps.freeze(everyone)
    state.containers.seal()
    images = [job.images for job in jobs]
    if not state.in_place:
        large_areas.split(images)
        return amend_images(images, wanted)
    # Only now: a page that is written while criu is inside of its process may be copied.
    recorder = start_recorder(state, pids)
    try:
        parent_images.complete(images)
        state.record = recorder.finish(state.plan.resident_bytes)
        return amend_images(images, wanted)
    except BaseException:
        recorder.stop()
        raise


def _job(state: State, tree: trees.CarriedTree) -> DumpJob:
    work = staging.SCRATCH / "work" / tree.name
    images = state.places.images(tree.verdict.unit.name, tree.name)
    return DumpJob(
        name=tree.name,
        unit=tree.verdict.unit.name,
        root_pid=tree.options.root_pid,
        argv=tuple(dump_argv(tree.options, images, work, staging.PARENT)),
        images=images,
        work=work,
        cgroups=trees.cgroups_of(tree, state.frozen),
    )


def start_recorder(state: State, pids: list[int]) -> Recorder:
    """Start the recorder of these processes, which stand still."""
    where = state.plan.where
    assert where is not None
    at, end = state.strays_at, len(state.area)
    return Recorder(staging.SCRATCH, where, pids, where.store.start + at, end - at)


def give_up(state: State, error: DumpAgainError, mark: int) -> None:
    """Undo a cut up to the undo list's ``mark``, and leave out what criu stood still with.

    Raises ``error`` if that cannot be undone, and DumpFailedError if one may not be left out.
    """
    # Seen once in dozens of upgrades; everything runs for a moment, then once more.
    stood_s = (time.time_ns() - state.frozen_ns) / 1e9
    state.note(f"{error}; tried once more, after a pause of {stood_s:.1f} s")
    with state.events.phase("give the dump up"):
        state.end_journal()
        state.dumps.close()
        if state.undo.run(mark):
            # Tried again with all the rest; still there then, the record has it.
            raise error
    left_out = late.to_restart(error, state.carried)
    if left_out:
        late.forget(state.places, state.carried, left_out)
        with state.events.phase("describe host again"):
            state.leave_out(left_out)
