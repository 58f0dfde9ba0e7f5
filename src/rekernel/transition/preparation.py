"""What an attempt does while everything runs. Nothing of it is in the blackout."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rekernel.carry.apparmor import observe as apparmor
from rekernel.carry.inotify import observe as inotify
from rekernel.carry.memory.gather import gather
from rekernel.carry.memory.region import ram_ranges
from rekernel.carry.network import trial as network_trial
from rekernel.carry.swap import observe as swap
from rekernel.carry.sysctls import observe as sysctls
from rekernel.census import snapshot
from rekernel.census.connections import established
from rekernel.census.pages import look
from rekernel.census.verdicts import Verdict
from rekernel.criu import parent_images
from rekernel.errors import BlockedError
from rekernel.kernel import cmdline
from rekernel.plan import room
from rekernel.transition import staging, trees
from rekernel.transition.state import State


def begin(state: State) -> None:
    """Raises BlockedError if there is nothing to be done, or something forbids it."""
    plan = state.plan
    blocking = plan.having(Verdict.BLOCKS)
    if blocking:
        names = ", ".join(f"{item.unit.name} ({item.reason})" for item in blocking)
        raise BlockedError(f"these units block the upgrade: {names}", blocking[0].remedy)
    if not plan.having(Verdict.CARRIED):
        raise BlockedError("nothing would be carried", "reboot, or see `rekernel check`")
    state.places.prepare()


def load_kernel(state: State) -> None:
    """Build the initrd, begin to load it with the kernel, and let criu check this one meanwhile."""
    words = cmdline.for_next(Path("/proc/cmdline").read_text())
    background = ThreadPoolExecutor(1)
    state.criu_checked = background.submit(staging.let_criu_check)
    background.shutdown(wait=False)
    plan = state.plan
    state.loading, state.arrays = staging.load_kernel(
        plan.kernel, plan.where, state.places.store_file, words, state.undo
    )
    state.swap_areas = swap.observe()


def has_swap(state: State) -> bool:
    """Whether pages may be swapped out."""
    return bool(state.swap_areas)


def swap_off(state: State) -> None:
    """Bring them back into memory."""
    staging.swap_off(state.swap_areas, state.undo, state.check)


def describe_host(state: State) -> None:
    """What travels, as it is now; and how each tree is dumped and restored."""
    # Before some are changed for the upgrade itself.
    state.settings = sysctls.to_set_again()
    if not sysctls.are_noted():
        state.note("what was changed by hand below /proc/sys is not set again: see check")
    state.criu_checked.result()
    staging.tune_kernel(state.undo)
    state.carried = trees.describe(state.plan.own(Verdict.CARRIED), lazy=state.in_place)
    # Until the end: criu finds what is watched by its name, while the kernel knows that.
    for tree in state.carried:
        state.pinned += inotify.pin(tree.options.root_pid, tree.watched)
    state.observe_host()
    again = {mount.target for mount in state.host.travels.mounts}
    state.carried = trees.without_mounts_of_others(state.carried, again)
    state.containers.prepare(state.undo)
    state.profiles = staging.keep_profiles(state.everyone, state.undo)
    for line in network_trial.refused(state.host.travels.network):
        state.note(f"the network may come back without this: {line}")


def is_in_place(state: State) -> bool:
    """Whether memory stays in a carry region."""
    return state.in_place


def gather_strays(state: State) -> None:
    """Move pages into the region.

    Looked at anew: since the plan was made some were allocated, or read in from swap.
    """
    assert state.plan.where is not None
    pids = state.pids
    parent_images.pretend(staging.PARENT, pids)
    region = ram_ranges(state.plan.where)
    found = look(pids, region)
    if found.gatherable_bytes:
        gather(pids, region)
        found = look(pids, region)
    state.stray_bytes = found.stray_bytes


def take_room(state: State) -> None:
    """Decide where everything goes that the blackout writes, and take the room for it."""
    plan = state.plan
    free = room.observe(plan.where, plan.container_directory)
    sizes = room.tmpfs_sizes(state.host.contents)
    needed = room.reckon(plan.usages, sizes, state.stray_bytes, free, region=state.in_place)
    state.places.settle(needed)


def wait_for_kernel(state: State) -> None:
    """Wait until the next kernel is loaded."""
    assert state.loading is not None
    state.loading.finish(state.check)


def stop_what_restarts(state: State) -> None:
    """Containers and services that cannot be carried."""
    # Before the services that run them.
    state.containers.stop(state.undo)
    for item in state.plan.own(Verdict.RESTARTED):
        state.stop(item.unit.name)


def sync(state: State) -> None:
    """Write what is dirty, so that little is left for the blackout; then see who is left."""
    os.sync()
    # Of a login a tree may have ended, and the unit is still there.
    state.carried, state.just_ended = trees.remaining(state.carried)


def some_ended(state: State) -> bool:
    """Whether a unit has ended since it was described."""
    return bool(state.just_ended)


def describe_again(state: State) -> None:
    """Go on without those."""
    state.leave_out(state.just_ended)


def look_at_processes(state: State) -> None:
    """What is compared and told afterwards, as late as it costs no blackout."""
    pids = state.pids
    try:
        state.remember(snapshot.take(pids))
    except OSError as error:
        state.note(f"what the processes are like is not kept: {error}")
    state.connections = established(pids)
    state.hertz = state.calibration.hertz()
    # criu's code could not run under them.
    for policy in state.profiles:
        apparmor.replace(apparmor.relaxed(policy))
