"""The old side's phase machine: stage, freeze, cut, hand over, jump. Undone if it ends early."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rekernel import syscalls
from rekernel.census.connections import established
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.checkpoint import externals, timers, unixsockets
from rekernel.checkpoint.options import (
    RESTORE_ROOT,
    TreeOptions,
    holds_namespace,
    restore_argv,
)
from rekernel.errors import BlockedError, BusyError, RekernelError, RolledBackError
from rekernel.handover.manifest import (
    SCHEMA,
    Clock,
    Manifest,
    Memory,
    Mount,
    Network,
    Tree,
)
from rekernel.handover.store import StoreWriter
from rekernel.host import mounts, network, sysctls
from rekernel.memory.gather import gather
from rekernel.memory.region import ram_ranges
from rekernel.plan import Plan
from rekernel.run import run
from rekernel.systemd import adoption
from rekernel.transition import cut, staging
from rekernel.transition.dumps import DumpJob, Dumps
from rekernel.transition.events import EventStream
from rekernel.transition.undo import UndoList

LOCK = Path("/run/rekernel/lock")
IMAGES = Path("/var/lib/rekernel/images")
_STORE_FILE_BYTES = 1 << 30


class CancelledError(RekernelError):
    """Asked to stop by SIGTERM or SIGINT."""

    exit_code = 5


@contextmanager
def exclusive() -> Iterator[None]:
    """One upgrade at a time. Raises BusyError."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                "another upgrade is under way", "see `rekernel status`, stop it: `rekernel abort`"
            ) from None
        yield


@dataclass(frozen=True, slots=True)
class _Carried:
    """A unit to carry with what its dump and its restore need."""

    verdict: UnitVerdict
    options: TreeOptions
    inherited: tuple[externals.External, ...]

    @property
    def name(self) -> str:
        return self.verdict.unit.name.removesuffix(".service").replace("/", "-").replace("\\", "-")


class Upgrade:
    """One attempt. :meth:`run` ends in the new kernel or raises after undoing everything."""

    def __init__(self, plan: Plan, events: EventStream) -> None:
        self._plan = plan
        self._events = events
        self._undo = UndoList()
        self._cancelled = ""
        self._id = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self._calibration = staging.TscCalibration()

    @property
    def id(self) -> str:
        """Names the attempt in the history."""
        return self._id

    def run(self) -> None:
        """Returns only by raising: RolledBackError, or what failed, after everything runs on."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        dumps: Dumps | None = None
        try:
            if len(self._undo):
                self._undo.run()
            dumps = Dumps(self._undo)
            self._attempt(dumps)
        except BaseException as error:
            with self._events.phase("undo"):
                if dumps is not None:
                    dumps.close()
                problems = self._undo.run()
            for problem in problems:
                self._events.emit("note", f"could not be undone: {problem}")
            if isinstance(error, RekernelError):
                raise
            raise RolledBackError(
                f"the upgrade failed and was undone: {error}", "everything runs on as before"
            ) from error

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._cancelled = signal.Signals(number).name

    def _check(self) -> None:
        if self._cancelled:
            raise CancelledError(f"stopped by {self._cancelled}; everything runs on as before")

    def _attempt(self, dumps: Dumps) -> None:
        plan = self._plan
        region = plan.where
        blocking = plan.having(Verdict.BLOCKS)
        if blocking:
            names = ", ".join(f"{item.unit.name} ({item.reason})" for item in blocking)
            raise BlockedError(f"these units block the upgrade: {names}", blocking[0].remedy)
        staging.SCRATCH.mkdir(parents=True, exist_ok=True)
        images = staging.SCRATCH / "images"
        store_file: Path | None = None
        if region is None:
            images = IMAGES / self._id
            self._undo.push("remove", str(images))
            images.mkdir(parents=True)
            store_file = images / "store"
            with store_file.open("wb") as file:
                file.truncate(_STORE_FILE_BYTES)
        else:
            _empty(images)
        with self._events.phase("load kernel"):
            cmdline = staging.new_cmdline(Path("/proc/cmdline").read_text())
            pids = [pid for item in plan.having(Verdict.CARRIED) for pid in sorted(item.processes)]
            staging.load_kernel(plan.kernel, region, store_file, cmdline, pids, self._undo)
        self._check()
        with self._events.phase("describe host"):
            staging.probe_kernel()
            swaps = [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]
            staging.quiet_memory(self._undo, swaps)
            carried = self._describe_trees()
            net = network.describe(network.observe())
            table = mounts.observe()
            mount_list, contents = mounts.plan(table)
            settings = sysctls.values()
        self._check()
        if region is not None and plan.pages is not None and plan.pages.stray_bytes:
            with self._events.phase("gather strays"):
                gather(pids, ram_ranges(region))
            self._check()
        with self._events.phase("stop what restarts"):
            for item in plan.having(Verdict.RESTARTED):
                self._undo.push("start-unit", item.unit.name)
                run(["systemctl", "stop", "--", item.unit.name])
                self._check()
        with self._events.phase("sync"):
            # Closed on disk, so that the next boot finds no journal torn off.
            self._undo.push("flush-journal")
            run(["journalctl", "--relinquish-var"])
            os.sync()
        self._check()
        # As late as it costs no blackout.
        connections = established(pids)

        frozen_ns = time.time_ns()
        with self._events.phase("freeze"):
            cut.freeze([item.verdict.unit.cgroup for item in carried], self._undo)
        with self._events.phase("lock network"):
            cut.lock_network(self._undo)
        with cut.open_store(region, store_file) as area:
            expected = plan.pages.stray_bytes if plan.pages else 0
            stray_offset = cut.stray_offset(area, expected) if region else 0
            with self._events.phase("dump"):
                recorder = None
                if region is not None:
                    base = region.store.start + stray_offset
                    recorder = cut.Recorder(region, pids, base, len(area) - stray_offset)
                dumps.start(
                    [
                        DumpJob(
                            item.name,
                            item.verdict.unit.name,
                            item.options,
                            images / item.name,
                            staging.SCRATCH / "work" / item.name,
                        )
                        for item in carried
                    ]
                )
                dumps.wait(self._check)
                record = recorder.finish() if recorder is not None else None
                timers.rearm_images(images)
            with self._events.phase("hand over"):
                writer = StoreWriter(area, stray_offset or None)
                image_bytes = 0
                if region is not None and recorder is not None and record is not None:
                    image_bytes = cut.add_images(writer, images)
                    cut.add_file(writer, "pagemap", recorder.output)
                    if record.stray_pages:
                        data = recorder.strays.read_bytes()
                        area[stray_offset : stray_offset + len(data)] = data
                tmpfs_bytes = cut.add_tmpfs(writer, contents)
                # _private_tmp reads the frozen processes' mounts: they cannot change any more.
                manifest_of = self._manifest(
                    carried, net, mount_list, settings,
                    cut.memory_facts(region, record, stray_offset), frozen_ns,
                    {
                        "backend": plan.backend,
                        "image_directory": str(images),
                        "image_bytes": image_bytes,
                        "tmpfs_bytes": tmpfs_bytes,
                        "pages_in_place": record.pages if record else 0,
                        "stray_pages": record.stray_pages if record else 0,
                        "resident_bytes": plan.resident_bytes,
                        "connections": connections,
                        "units": [self._unit_report(item) for item in plan.units],
                    },
                )  # fmt: skip
            self._check()
            with self._events.phase("freeze file systems"):
                if region is not None:
                    cut.freeze_filesystems(table, self._undo)
            self._check()
            cut.seal(writer, manifest_of())
            if region is None:
                area.flush()
                cut.freeze_filesystems(table, self._undo)
        cut.jump()

    def _describe_trees(self) -> list[_Carried]:
        streams = unixsockets.journal_streams(unixsockets.observe())
        found = []
        for item in self._plan.having(Verdict.CARRIED):
            header = adoption.journal_header(item.unit)
            inherited = externals.find(list(item.processes), header, streams)
            options = TreeOptions(
                root_pid=item.root_pid,
                cgroup=item.unit.cgroup,
                private_mounts=holds_namespace(item.root_pid, "mnt"),
                lazy=self._plan.where is not None,
                externals=tuple(external.dump for external in inherited),
            )
            found.append(_Carried(item, options, tuple(inherited)))
        return found

    def _unit_report(self, item: UnitVerdict) -> dict[str, Any]:
        return {
            "unit": item.unit.name,
            "verdict": str(item.verdict),
            "reason": item.reason,
            "main_pid": item.unit.main_pid,
            "processes": sorted(item.processes),
            "cgroup": item.unit.cgroup,
        }

    def _manifest(
        self,
        carried: list[_Carried],
        net: Network,
        mount_list: list[Mount],
        settings: dict[str, str],
        memory: Memory,
        frozen_ns: int,
        report: dict[str, Any],
    ) -> Any:
        private_tmps = {}
        directories: set[str] = set()
        for item in carried:
            table = mounts.observe(str(item.options.root_pid))
            directories.update(mounts.mount_points(table))
            private_tmp = adoption.private_tmp(table)
            if private_tmp is not None:
                private_tmps[item.verdict.unit.name] = private_tmp
        trees = tuple(
            Tree(
                name=item.name,
                unit=item.verdict.unit.name,
                root_pid=item.options.root_pid,
                images=f"images/{item.name}" if memory.backend == "region" else item.name,
                argv=tuple(restore_argv(item.options)),
                inherited=tuple(external.inherited for external in item.inherited),
                cgroups={str(pid): path for pid, path in item.verdict.processes.items()},
            )
            for item in carried
        )
        files = {adoption.TMPFILES_OVERRIDE: adoption.keep_private_tmps(private_tmps)}
        header = adoption.header(private_tmps)
        sections = {item.verdict.unit.name: adoption.section(item.verdict.unit) for item in carried}
        bind = Mount(RESTORE_ROOT, "", "/", syscalls.MS_BIND, transient=True)

        def make() -> Manifest:
            # Last of all: the clock must be read as late as can be.
            return Manifest(
                schema=SCHEMA,
                id=self._id,
                machine_id=staging.machine_id(),
                old_release=self._plan.running,
                new_release=self._plan.kernel.release,
                clock=Clock(time.time_ns(), syscalls.rdtsc(), hertz),
                frozen_ns=frozen_ns,
                memory=memory,
                mounts=(*mount_list, bind),
                directories=tuple(sorted(directories)),
                files=files,
                network=net,
                hostname=os.uname().nodename,
                sysctls=settings,
                trees=trees,
                cgroups=tuple(
                    dict.fromkeys(path for tree in trees for path in tree.cgroups.values())
                ),
                highest_pid=max((int(pid) for tree in trees for pid in tree.cgroups), default=300),
                systemd_header=header,
                systemd_units=sections,
                init=(staging.INIT,),
                phases=tuple(self._events.phases),
                report=report,
            )

        hertz = self._calibration.hertz()
        return make


def _empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for inner in directory.iterdir():
        for path in inner.iterdir():
            path.unlink()
        inner.rmdir()
