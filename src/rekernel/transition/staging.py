"""Everything that can be done while the machine runs: initrd, kernel loaded, host described."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rekernel import syscalls
from rekernel.attempt.undo import UndoList
from rekernel.carry.apparmor import observe as apparmor
from rekernel.carry.disks import observe as disks
from rekernel.carry.memory.entry import Extent
from rekernel.carry.memory.region import Layout
from rekernel.carry.mounts import binds
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.restore import EARLY
from rekernel.carry.network import observe as network
from rekernel.carry.network import wireguard
from rekernel.carry.raid.entry import RaidArray
from rekernel.carry.swap.observe import SwapArea, shortage
from rekernel.criu.options import CRIU_CHECK
from rekernel.errors import BlockedError, RekernelError
from rekernel.handover.config import AgentConfig
from rekernel.kernel import drivers, initrd, modules
from rekernel.kernel.installed import Kernel
from rekernel.run import run, start
from rekernel.transition.loading import Loading

SCRATCH = Path("/run/rekernel/upgrade")
# Images of a dump that has all pages, as criu is told.
PARENT = SCRATCH / "parent"
# Where the agent mounts the disk of the store's file.
_STORE_DISK = "/run/rekernel/store"
# Stops what moves or hides pages; and what else is changed for the time of an upgrade.
_TUNING = (
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag", "0"),
    # At least 2 MiB each time that it wakes up, every 10 s as it is; so it sleeps for weeks.
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan", "1"),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "2147483647"),
    ("/sys/kernel/mm/ksm/run", "0"),
    ("/proc/sys/kernel/numa_balancing", "0"),
    ("/proc/sys/vm/compaction_proactiveness", "0"),
    # Freezing, locking and dumping wait for RCU again and again.
    ("/sys/kernel/rcu_expedited", "1"),
)
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
# What criu has found out about a kernel.
_CHECKED_BY_CRIU = Path("/run/criu.kdat")
# What the running kernel does when it panics.
_PANIC = Path("/proc/sys/kernel/panic")
INIT = "/sbin/init"


def machine_id() -> str:
    """This machine's identity; a handover of another one is refused."""
    return Path("/etc/machine-id").read_text().strip()


# What the agent and criu start on the new root, in the order of need.
_TOOLS = ("ip", "criu", "tar", "sh", "nft", "modprobe")
_TOOLS_FOR_TUNNELS = ("wg",)
_OWN_TOOLS = Path("/usr/lib/rekernel")


def _tool_files() -> list[str]:
    """Programs that the agent and criu start, with their libraries, in the order of need."""
    # Our own are small: they shall not wait behind criu and its libraries.
    tools = sorted(_OWN_TOOLS.glob("rekernel-*"))
    names = (*_TOOLS, *(_TOOLS_FOR_TUNNELS if wireguard.KIND in network.kinds() else ()))
    tools += [Path(path) for name in names if (path := shutil.which(name)) is not None]
    return list(dict.fromkeys(str(path) for path in [*tools, *initrd.shared_objects(tools)]))


def _assert_there_early(tools: Sequence[str], table: Sequence[mounts.MountInfo]) -> None:
    """The agent needs them before it mounts all that there is. Raises BlockedError."""
    early = {"/", *(item.target for item in disks.plan(table) if item.target == EARLY)}
    for tool in tools:
        there = binds.holder(os.path.realpath(tool), table)
        if there is None or there.target not in early:
            raise BlockedError(
                f"{tool} lies on another file system than / and /usr",
                "the restore needs it before others are mounted: install it below /usr",
            )


def mapped_files(pids: Sequence[int]) -> list[str]:
    """Files that these processes map, each once; one that is gone or deleted is left out."""
    found: dict[str, None] = {}
    for pid in pids:
        try:
            entries = list(Path(f"/proc/{pid}/map_files").iterdir())
        except OSError:
            continue
        for entry in entries:
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("/") and not target.endswith(" (deleted)"):
                found.setdefault(target)
    return list(found)


def load_kernel(
    kernel: Kernel,
    where: Layout | None,
    store_file: Path | None,
    cmdline: str,
    undo: UndoList,
) -> tuple[Loading, tuple[RaidArray, ...]]:
    """Build the initrd and begin to load it with the kernel; returns the arrays that it has, too.

    Raises RekernelError; loads nothing then.
    """
    table = mounts.observe()
    root, device = disks.root(table)
    stack = disks.stack(table, device)
    tools = _tool_files()
    _assert_there_early(tools, table)
    aliases = drivers.needed(table, sorted({mount.fstype for mount in table}))
    chosen = modules.resolve(kernel.release, aliases)
    store_mount = None
    store_path = ""
    if store_file is not None:
        store_mount, store_path = disks.before_others(str(store_file), table, _STORE_DISK)
    config = AgentConfig(
        machine_id=machine_id(),
        root=root,
        modules=initrd.module_waves(chosen),
        parameters=initrd.module_parameters(chosen),
        region=Extent(where.whole.start, where.whole.end) if where else None,
        store=Extent(where.store.start, where.store.end) if where else None,
        store_file=store_path,
        store_mount=store_mount,
        early=tuple(item for item in disks.plan(table) if item.target == EARLY),
        init=(INIT,),
        criu_check=CRIU_CHECK,
        prefetch=tuple(tools),
        arrays=stack.arrays,
        mapped=stack.mapped,
        panic=_PANIC.read_text().strip(),
    )
    make_scratch()
    scratch = SCRATCH / "initrd"
    # The name of a store on disk is another one each time.
    path = initrd.file_for(config, chosen, scratch, again=store_file is None)
    loading = Loading(kernel.image, path, cmdline, undo, only_once=path == scratch)
    return loading, config.arrays


def let_criu_check() -> None:
    """Let criu check the running kernel now. Raises CommandFailedError."""
    # A stale result, of another kernel say, would fail the dump inside the blackout.
    _CHECKED_BY_CRIU.unlink(missing_ok=True)
    run(CRIU_CHECK)


class TscCalibration:
    """The TSC's frequency, from two readings as far apart as an upgrade's preparations take."""

    def __init__(self) -> None:
        self._tsc = syscalls.rdtsc()
        self._time = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)

    def hertz(self) -> int:
        """Cycles per second. Raises BlockedError if the counter stands still."""
        elapsed = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - self._time
        cycles = syscalls.rdtsc() - self._tsc
        if cycles <= 0 or elapsed <= 0:
            raise BlockedError("the time stamp counter of this machine stands still")
        return cycles * 1_000_000_000 // elapsed


def tune_kernel(undo: UndoList) -> None:
    """Stop what moves or hides pages, as a record of page frames must stay true; and hurry."""
    for path, value in _TUNING:
        _set(undo, Path(path), value)


def make_scratch() -> None:
    """The directory of an attempt: nobody else may read what processes have in memory."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    SCRATCH.chmod(0o700)


def keep_profiles(pids: Iterable[int], undo: UndoList) -> list[bytes]:
    """The policies that confine these processes, kept for the undo list. Raises RekernelError."""
    kept = apparmor.policies(pids)
    for number, policy in enumerate(kept):
        path = SCRATCH / f"profile-{number}"
        path.write_bytes(policy)
        undo.push("profile", str(path))
    return kept


def swap_off(areas: Sequence[SwapArea], undo: UndoList, check: Callable[[], None]) -> None:
    """Bring all that is swapped out back into memory, which may take minutes.

    ``check`` raises if the attempt shall end. Raises BlockedError, RekernelError.
    """
    missing = shortage(areas)
    if missing:
        raise BlockedError(missing, "free memory first: the freeze finds no page on a disk")
    log = SCRATCH / "swapoff.log"
    log.unlink(missing_ok=True)
    # The last one to go is the first to come back.
    for area in areas:
        undo.push("swap-on", json.dumps([area.name, area.priority]))
        process = start(["swapoff", "--", area.name], output=str(log))
        try:
            while process.poll() is None:
                check()
                time.sleep(0.05)
        finally:
            # The kernel gives up at a signal; everything is in use as before then.
            process.terminate()
            process.wait()
        if process.returncode:
            raise RekernelError(
                f"swap on {area.name} cannot be turned off: {log.read_text().strip()}",
                "free memory, or turn it off by hand",
            )


def allow_reservations(undo: UndoList) -> None:
    """Let criu ask for more memory than there is.

    It reserves 16 bytes for each page of a process's private address space, used or not: 32 GiB
    for the 8 TiB that a database reserves to grow into. To be called when all else stands still.
    """
    _set(undo, _OVERCOMMIT, "1")


def _set(undo: UndoList, file: Path, value: str) -> None:
    """Change a setting of the kernel that exists, until the attempt is undone."""
    if file.exists():
        before = file.read_text().strip()
        if before != value:
            undo.push("write", f"{file}={before}")
            file.write_text(value)
