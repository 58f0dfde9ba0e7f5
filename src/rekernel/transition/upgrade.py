"""The old side's phase machine: stage, freeze, cut, hand over, jump. Undone if it ends early."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from rekernel import syscalls
from rekernel.attempt.events import EventStream
from rekernel.attempt.problem import Problem
from rekernel.attempt.undo import UndoList, thaw
from rekernel.carry.apparmor import observe as apparmor
from rekernel.carry.apparmor.entry import APPARMOR_BLOBS
from rekernel.carry.conntrack import observe as conntrack
from rekernel.carry.conntrack.entry import CONNTRACK_BLOB
from rekernel.carry.inotify import observe as inotify
from rekernel.carry.memory.gather import gather
from rekernel.carry.memory.recorder import PageRecord, Recorder, memory_entry
from rekernel.carry.memory.region import ram_ranges
from rekernel.carry.mounts import binds
from rekernel.carry.mounts.observe import MountInfo
from rekernel.carry.network import observe as network
from rekernel.carry.network import trial as network_trial
from rekernel.carry.pidfd.observe import StandIn
from rekernel.carry.raid import observe as raid
from rekernel.carry.swap import observe as swap
from rekernel.carry.sysctls import observe as sysctls
from rekernel.carry.unix_sockets.observe import Taken, UnsettledError
from rekernel.census import snapshot
from rekernel.census.connections import established
from rekernel.census.pages import look
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.criu import large_areas, parent_images, stopped
from rekernel.criu.options import dump_argv
from rekernel.errors import (
    BlockedError,
    CancelledError,
    NotUndoneError,
    RekernelError,
    RolledBackError,
)
from rekernel.handover.manifest import Clock
from rekernel.handover.store import StoreWriter
from rekernel.kernel import cmdline
from rekernel.plan import room
from rekernel.plan.plan import Plan
from rekernel.records import asdict
from rekernel.run import answering, end, finish, run, start
from rekernel.systemd.units import processes_of
from rekernel.transition import contract, freezing, host_facts, late, loading, staging, store, trees
from rekernel.transition.amend import Amended, Wanted, amend_images
from rekernel.transition.containers import Containers
from rekernel.transition.contract import Cut
from rekernel.transition.dumps import DumpAgainError, DumpJob, Dumps
from rekernel.transition.loading import Loading
from rekernel.transition.places import Places

PARENT = staging.SCRATCH / "parent"
# How long what is on its way between two services may take to arrive.
_SETTLE_S = 10.0
# Everything runs for this long in between, and each time for twice as long: whoever must only
# get on may be one of many that want a processor.
_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0
# How long journald may take to close what it has on disk.
_JOURNAL_S = 10.0
# How often the page map is made anew because pages were moved meanwhile.
_RECORDS = 3

_RUNS_ON = "everything runs on as before"


class Upgrade:
    """One attempt. :meth:`run` ends in the new kernel or raises after undoing everything."""

    def __init__(
        self, plan: Plan, events: EventStream, remember: Callable[[snapshot.Snapshot], object]
    ) -> None:
        """``remember`` keeps what the processes were like, for who compares them afterwards."""
        self._plan = plan
        self._remember = remember
        self._events = events
        self._undo = UndoList()
        self._cancelled = ""
        self.notes: list[str] = []
        self._id = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self._calibration = staging.TscCalibration()
        self._stand_in = StandIn(())
        self._journal: subprocess.Popen[bytes] | None = None
        self._loading: Loading | None = None
        self._mounted: Sequence[MountInfo] = ()
        self._containers = Containers(plan)
        self._places = Places(self._id, plan.where, self._undo)
        self._profiles: list[bytes] = []
        self._pinned: list[int] = []
        # Since when everything stands still, in nanoseconds of real time.
        self._frozen_ns = 0

    @property
    def id(self) -> str:
        """Names the attempt in the history."""
        return self._id

    @property
    def left(self) -> tuple[Problem, ...]:
        """What of this attempt, or of one before it, is not undone: nothing if all run on."""
        return self._undo.left()

    def run(self) -> None:
        """Returns only by raising: what failed, or RolledBackError for what is no RekernelError.

        By then all was undone that could be: see :attr:`left`.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        # Of an attempt before this one.
        left = self._undo.run()
        if left:
            raise NotUndoneError(
                f"an attempt before this one is not undone: {left[-1]}",
                "do that by hand, then: rekernel abort",
            )
        dumps = Dumps(self._undo)
        try:
            with answering(self._check):
                self._attempt(dumps)
        except BaseException as error:
            with self._events.phase("undo"):
                self._take_back(dumps)
            if isinstance(error, RekernelError):
                raise
            raise RolledBackError(f"the upgrade failed: {error}", _RUNS_ON) from error

    def _take_back(self, dumps: Dumps) -> None:
        try:
            self._stand_in.end()
            self._end_journal()
            dumps.close()
        finally:
            if self._loading is not None:
                self._loading.end()
            for problem in self._undo.run():
                self._events.emit("note", f"not undone: {problem}", **asdict(problem))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._cancelled = signal.Signals(number).name

    def _check(self) -> None:
        if self._cancelled:
            raise CancelledError(f"stopped by {self._cancelled}", _RUNS_ON)

    def _attempt(self, dumps: Dumps) -> None:
        plan = self._plan
        blocking = plan.having(Verdict.BLOCKS)
        if blocking:
            names = ", ".join(f"{item.unit.name} ({item.reason})" for item in blocking)
            raise BlockedError(f"these units block the upgrade: {names}", blocking[0].remedy)
        if not plan.having(Verdict.CARRIED):
            raise BlockedError("nothing would be carried", "reboot, or see `rekernel check`")
        self._places.prepare()
        store_file = self._places.store_file
        with self._events.phase("load kernel"):
            words = cmdline.for_next(Path("/proc/cmdline").read_text())
            beside = ThreadPoolExecutor(1)
            probed = beside.submit(staging.probe_kernel)
            beside.shutdown(wait=False)
            self._loading, arrays = staging.load_kernel(
                plan.kernel, plan.where, store_file, words, self._undo
            )
        self._check()
        # Before some are changed for the upgrade itself.
        settings = sysctls.to_set_again()
        if not sysctls.are_noted():
            self._note("what was changed by hand below /proc/sys is not set again: see check")
        swap_areas = swap.observe()
        if swap_areas:
            with self._events.phase("swap off"):
                staging.swap_off(swap_areas, self._undo, self._check)
        with self._events.phase("describe host"):
            probed.result()
            staging.tune_kernel(self._undo)
            carried = trees.describe(plan.own(Verdict.CARRIED), lazy=plan.where is not None)
            # Until the end: criu finds what is watched by its name, while the kernel knows that.
            for tree in carried:
                self._pinned += inotify.pin(tree.options.root_pid, tree.watched)
            host = self._observe_host(carried)
            again = {mount.target for mount in host.mounts}
            carried = trees.without_mounts_of_others(carried, again)
            self._containers.prepare(self._undo)
            pids = [pid for tree in carried for pid in tree.pids]
            confined = [*pids, *self._containers.pids]
            self._profiles = staging.keep_profiles(confined, self._undo)
            for line in network_trial.refused(host.network):
                self._note(f"the network may come back without this: {line}")
        self._check()
        parent_images.pretend(PARENT, pids)
        strays = self._gather(pids)
        free = room.observe(plan.where, plan.container_directory)
        sizes = room.tmpfs_sizes(host.contents)
        in_region = plan.where is not None
        self._places.settle(room.reckon(plan.usages, sizes, strays, free, region=in_region))
        self._check()
        with self._events.phase("wait for kernel"):
            self._loading.finish(self._check)
        with self._events.phase("stop what restarts"):
            # Before the services that run them.
            self._containers.stop(self._undo)
            for item in plan.own(Verdict.RESTARTED):
                self._stop(item.unit.name)
        with self._events.phase("sync"):
            os.sync()
        self._check()
        carried, ended = trees.remaining(carried)
        if ended:
            carried, host, ended = self._without(ended, carried)
            pids = [pid for tree in carried for pid in tree.pids]
        # As late as it costs no blackout.
        try:
            self._remember(snapshot.take(pids))
        except OSError as error:
            self._note(f"what the processes are like is not kept: {error}")
        connections = established(pids)
        hertz = self._calibration.hertz()

        # criu's code could not run under them.
        for policy in self._profiles:
            apparmor.replace(apparmor.relaxed(policy))
        mark = len(self._undo)
        self._mounted = host.table
        self._let_stand_in(carried)
        with store.open_store(plan.where, store_file) as area:
            strays_at = room.stray_offset(len(area), strays) if plan.where else 0
            try:
                made = self._cut(dumps, carried, len(area), strays_at)
            except DumpAgainError as error:
                # Seen once in dozens of upgrades; everything runs for a moment, then once more.
                stood_s = (time.time_ns() - self._frozen_ns) / 1e9
                self._note(f"{error}; tried once more, after a pause of {stood_s:.1f} s")
                with self._events.phase("give the dump up"):
                    self._end_journal()
                    dumps.close()
                    if self._undo.run(mark):
                        # Tried again with all the rest; still there then, the record has it.
                        raise
                if left_out := late.to_restart(error, carried):
                    late.forget(self._places, carried, left_out)
                    carried, host, more = self._without(left_out, carried, ended)
                    ended = [*ended, *more]
                    self._mounted = host.table
                self._let_stand_in(carried)
                made = self._cut(dumps, carried, len(area), strays_at)
            with self._events.phase("hand over"):
                writer = StoreWriter(area, strays_at or None)
                image_bytes = 0
                if made.record is not None:
                    image_bytes = store.add_images(writer, self._places.in_memory)
                tmpfs_bytes = store.add_tmpfs(writer, host.contents, self._places.archive)
                store.add_blobs(writer, {**made.links.queues, CONNTRACK_BLOB: made.tracked})
                store.add_blobs(
                    writer,
                    {f"{APPARMOR_BLOBS}{i}": policy for i, policy in enumerate(self._profiles)},
                )
            self._check()
            with self._events.phase("freeze file systems"):
                self._close_journal()
                # With the store on a disk that must come after the last write to it.
                if plan.where is not None:
                    freezing.freeze_filesystems(host.table, self._undo)
            self._check()
            record = made.record
            if record is not None:
                pids = [pid for tree in made.trees for pid in tree.pids]
                record = self._settle(record, pids, len(area), strays_at)
                store.add_record(writer, area, record, strays_at)
            raid.assert_as_before(arrays)
            dumps.assert_held()
            now = [*(tree.verdict for tree in made.trees), *ended]
            as_found = {item.unit.name: item for item in now}
            report = {
                "backend": plan.backend,
                "image_bytes": image_bytes,
                "disk_bytes": self._places.disk_bytes(),
                "tmpfs_bytes": tmpfs_bytes,
                "pages_in_place": record.pages if record else 0,
                "stray_pages": record.stray_pages if record else 0,
                "resident_bytes": plan.resident_bytes,
                "container_bytes": plan.container_bytes,
                "connections": connections,
                "swaps": [[area.name, area.priority] for area in swap_areas],
                "sysctls": settings,
                "triggers": host.triggers,
                "notes": self.notes,
                "left_out": [item.unit.name for item in ended if item.verdict is Verdict.RESTARTED],
                "units": [
                    trees.for_report(as_found.get(item.unit.name, item)) for item in plan.units
                ],
            }
            memory = memory_entry(plan.where, record, strays_at)
            clock = Clock(time.time_ns(), syscalls.rdtsc(), hertz)
            made_of = contract.Attempt(
                self._id, plan, host, self._places, self._containers, tuple(self._events.phases)
            )
            manifest = contract.manifest(made_of, made, memory, report, clock)
            store.seal(writer, manifest)
            if plan.where is None:
                area.flush()
                freezing.freeze_filesystems(host.table, self._undo)
            if record is not None and not record.is_true():
                raise RekernelError("the kernel has just moved pages", "try again in a moment")
        loading.jump()

    def _without(
        self,
        ended: Sequence[UnitVerdict],
        carried: Sequence[trees.CarriedTree],
        before: Sequence[UnitVerdict] = (),
    ) -> tuple[list[trees.CarriedTree], host_facts.HostFacts, list[UnitVerdict]]:
        with self._events.phase("describe host again"):
            left, gone = late.without(ended, carried, self._note, self._stop)
            # What was described for them must not come back.
            return left, self._observe_host(left, [*before, *gone]), gone

    def _observe_host(
        self, carried: Sequence[trees.CarriedTree], ended: Sequence[UnitVerdict] = ()
    ) -> host_facts.HostFacts:
        restarted = [*self._plan.own(Verdict.RESTARTED), *ended]
        return host_facts.observe(carried, [item.unit for item in restarted])

    def _let_stand_in(self, carried: Sequence[trees.CarriedTree]) -> None:
        """For init, of which processes have handles that criu would not dump."""
        groups = dict.fromkeys(tree.verdict.unit.cgroup for tree in carried)
        self._stand_in = StandIn(pid for group in groups for pid in processes_of(group))
        if self._stand_in.handles:
            self._undo.push("handle", *map(str, self._stand_in.handles))
            self._stand_in.take_place()

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._events.emit("note", text)

    def _stop(self, unit: str) -> None:
        self._undo.push("start-unit", unit)
        run(["systemctl", "stop", "--", unit])
        self._check()

    def _cut(
        self,
        dumps: Dumps,
        carried: list[trees.CarriedTree],
        store_bytes: int,
        strays_at: int,
    ) -> Cut:
        """Everything stands still and is written down. Raises DumpAgainError: try once more."""
        pids = [pid for tree in carried for pid in tree.pids]
        stopped.make_ready([*pids, *self._containers.pids])
        self._undo.push("flush-journal")
        with self._events.phase("freeze"):
            self._frozen_ns = time.time_ns()
            carried, links = self._freeze(carried)
            self._stand_in.end()
            # Now that nobody sees it: who reads the journal would follow it to where nothing stays.
            log = str(staging.SCRATCH / "journalctl.log")
            self._journal = start(["journalctl", "--relinquish-var"], output=log)
        with self._events.phase("lock network"):
            self._undo.push("unlock-network")
            network.lock()
        staging.allow_reservations(self._undo)
        with self._events.phase("dump"), ThreadPoolExecutor(1) as beside:
            tracked = beside.submit(lambda: conntrack.requests(conntrack.observe()))
            record, amended = self._dump(dumps, carried, links, store_bytes, strays_at)
            dumped = trees.as_dumped(carried, amended)
            return Cut(dumped, links, amended.watched, record, tracked.result(), self._frozen_ns)

    def _close_journal(self) -> None:
        """On disk, so that the next boot finds no journal torn off; beside the dump until now."""
        assert self._journal is not None
        try:
            done = finish(self._journal, "journalctl", limit=_JOURNAL_S) == 0
        except CancelledError:
            raise
        except RekernelError:
            done = False
        if not done:
            self._note("the journal could not be closed on disk: see journalctl.log")

    def _end_journal(self) -> None:
        """Its program; what it has asked for by then, journald does before it is asked to flush."""
        if self._journal is not None:
            end(self._journal)
            self._journal = None

    def _recorder(self, pids: list[int], store_bytes: int, strays_at: int) -> Recorder:
        where = self._plan.where
        assert where is not None
        return Recorder(
            staging.SCRATCH, where, pids, where.store.start + strays_at, store_bytes - strays_at
        )

    def _settle(
        self, record: PageRecord, pids: list[int], store_bytes: int, strays_at: int
    ) -> PageRecord:
        """The record as of now: what the kernel moved meanwhile, to make a large page, say."""
        for _ in range(_RECORDS):
            if record.is_true():
                return record
            with self._events.phase("record again"):
                again = self._recorder(pids, store_bytes, strays_at)
                record = again.finish(self._plan.resident_bytes)
        raise RekernelError("the kernel keeps on moving pages", "try again in a moment")

    def _freeze(self, carried: list[trees.CarriedTree]) -> tuple[list[trees.CarriedTree], Taken]:
        """All trees at one instant, with what they are at that instant."""
        cgroups = [
            *dict.fromkeys(tree.verdict.unit.cgroup for tree in carried),
            *self._containers.cgroups,
        ]
        deadline, pause = time.monotonic() + _SETTLE_S, _PAUSE_S
        if cgroups:
            self._undo.push("thaw", *cgroups)
        while True:
            freezing.freeze(cgroups, self._check)
            try:
                return trees.linked(trees.as_frozen(carried))
            except UnsettledError:
                if time.monotonic() > deadline:
                    raise
            self._check()
            for cgroup in cgroups:
                thaw(cgroup)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _gather(self, pids: list[int]) -> int:
        """Move strays into the region; returns the bytes that are left.

        Looked at anew: since the plan was made some were allocated, or read in from swap.
        """
        if self._plan.where is None:
            return 0
        with self._events.phase("gather strays"):
            region = ram_ranges(self._plan.where)
            found = look(pids, region)
            if found.gatherable_bytes:
                gather(pids, region)
                found = look(pids, region)
        return found.stray_bytes

    def _dump(
        self,
        dumps: Dumps,
        carried: list[trees.CarriedTree],
        links: Taken,
        store_bytes: int,
        strays_at: int,
    ) -> tuple[PageRecord | None, Amended]:
        """All dumps, side by side, and then the page map (None without a region)."""
        pids = [pid for tree in carried for pid in tree.pids]
        work = staging.SCRATCH / "work"
        jobs = [
            DumpJob(
                name=tree.name,
                unit=tree.verdict.unit.name,
                root_pid=tree.options.root_pid,
                argv=tuple(
                    dump_argv(
                        tree.options,
                        self._places.images(tree.verdict.unit.name, tree.name),
                        work / tree.name,
                        PARENT,
                    )
                ),
                images=self._places.images(tree.verdict.unit.name, tree.name),
                work=work / tree.name,
                cgroups=trees.cgroups_of(tree, carried),
            )
            # The longest ones first: else the last of them would leave processors idle.
            for tree in sorted(carried, key=lambda tree: len(tree.pids), reverse=True)
        ]
        everyone = [*pids, *self._containers.pids]
        stand_ins = {handle.inode for handle in self._stand_in.handles}
        canonical = functools.partial(binds.canonical, mounts=self._mounted)
        wanted = Wanted(links.disconnected, stand_ins, canonical)
        in_place = self._plan.where is not None
        if in_place:
            parent_images.pretend(PARENT, pids, again=True)
            parent_images.nothing_written(pids)
        dumps.start([*self._containers.jobs(work), *jobs], everyone)
        dumps.wait(self._check)
        dumps.freeze(everyone)
        self._containers.seal()
        images = [job.images for job in jobs]
        if not in_place:
            large_areas.split(images)
            return None, amend_images(images, wanted)
        # Only now: a page that is written while criu is inside of its process may be copied.
        recorder = self._recorder(pids, store_bytes, strays_at)
        try:
            parent_images.complete(images)
            record = recorder.finish(self._plan.resident_bytes)
            return record, amend_images(images, wanted)
        except BaseException:
            recorder.stop()
            raise
