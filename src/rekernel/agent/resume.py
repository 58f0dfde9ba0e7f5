"""Take the handover and bring everything back: restore all trees, commit, get ready for init."""

from __future__ import annotations

import functools
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rekernel import smallfiles, syscalls
from rekernel.agent import boot, restore
from rekernel.agent.store import Store, map_store
from rekernel.carry.apparmor import restore as apparmor
from rekernel.carry.apparmor.entry import APPARMOR_BLOBS
from rekernel.carry.cgroups import restore as cgroups
from rekernel.carry.conntrack import restore as conntrack
from rekernel.carry.conntrack.entry import CONNTRACK_BLOB
from rekernel.carry.inotify import restore as watched
from rekernel.carry.loops import restore as loops
from rekernel.carry.memory import restore as memory
from rekernel.carry.memory.dax import DaxRegion
from rekernel.carry.mounts import restore as mounts
from rekernel.carry.mounts.entry import Mount
from rekernel.carry.network import restore as network
from rekernel.carry.network.entry import Network
from rekernel.carry.unix_sockets import restore as unix_sockets
from rekernel.handover.config import AgentConfig, load_config
from rekernel.handover.manifest import IMAGES_DIRECTORY, MANIFEST_BLOB, Manifest, Phase, load
from rekernel.handover.paths import AGENT_RESULT
from rekernel.handover.store import StoreError, StoreReader, wipe
from rekernel.pid1 import processes, watchdog
from rekernel.pid1.background import Background
from rekernel.pid1.console import Timeline, Tolerated, miss, missing, say
from rekernel.typed_json import ShapeError

RUN = Path("/run/rekernel")
RESULT = Path(AGENT_RESULT)
# fs.nr_open, as the kernel has it at first.
_DESCRIPTORS = 1 << 20


class HandoverRefusedError(Exception):
    """The handover is not for this machine or not for this kernel."""


def resume(raw: Mapping[str, Any], timeline: Timeline, started: int, check: int | str) -> list[str]:
    """Bring back what the handover holds; returns the command line of init, whatever happens.

    ``started``: CLOCK_BOOTTIME of the agent's start in ns. ``check``: PID of criu's
    check, or why it does not run.
    """
    init = list(raw["init"])
    # What is missing is added to until it is written.
    result: dict[str, Any] = {"schema": 1, "handover": "none", "missing": missing}
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some for each tree and each connection between them; init gets its own limits again.
    _allow_descriptors((_DESCRIPTORS, max(_DESCRIPTORS, limits[1])))
    watchdog.allow(watchdog.STEP_S)
    try:
        init = _restore(load_config(raw), timeline, started, check, result)
    except (StoreError, ShapeError, HandoverRefusedError) as error:
        say(f"booting normally: {error}")
        result |= {"handover": "refused", "reason": str(error)}
    except Exception as error:
        # Whatever happened, the machine must boot.
        watchdog.stop()
        say(f"booting normally: {error}")
        result |= {
            "handover": "failed",
            "reason": str(error),
            "traceback": _traceback(),
        }
    watchdog.stop()
    _allow_descriptors(limits)
    _write_result(result)
    return init


def _traceback() -> str:
    """Of the exception that is handled. It takes a tenth of all imports, and is hardly needed."""
    import traceback

    return traceback.format_exc()


def _allow_descriptors(limits: tuple[int, int]) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    except (OSError, ValueError) as error:
        say(f"the limit of open files stays as it is: {error}")


def _write_result(result: dict[str, Any]) -> None:
    try:
        # It tells of everybody's settings.
        RESULT.touch(mode=0o600)
        RESULT.write_text(json.dumps(result))
    except OSError as error:
        say(f"cannot leave a report: {error}")


def _set_clock(manifest: Manifest) -> int:
    """Continue the old kernel's clock by way of the TSC; returns real time at boot, ns."""
    clock = manifest.clock
    boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    elapsed = (syscalls.rdtsc() - clock.tsc) * 1_000_000_000 // clock.tsc_hz
    now = clock.realtime_ns + elapsed
    drift = now - time.time_ns()
    # The RTC counts whole seconds; anything much further off is a TSC that did not run through.
    if 0 <= elapsed < 3600 * 10**9 and abs(drift) < 3 * 10**9:
        time.clock_settime_ns(time.CLOCK_REALTIME, now)
        return now - boottime
    say(f"the TSC did not run through the kexec ({drift / 1e9:.1f} s off): keeping the RTC's time")
    return time.time_ns() - boottime


def _restore(
    config: AgentConfig,
    timeline: Timeline,
    started: int,
    check: int | str,
    result: dict[str, Any],
) -> list[str]:
    with timeline.phase("store"):
        region = memory.open_region(config.region) if config.region is not None else None
        store = map_store(config, region)
        reader = StoreReader(store.area)
        manifest = load(reader.read(MANIFEST_BLOB))
        _check_origin(config, manifest)
        zero = _set_clock(manifest)
    # Used up, whatever happens now: nothing may be restored twice.
    result |= {"handover": "used", "id": manifest.id}
    watchdog.allow(2 * manifest.patience_s)
    freed: Background | None = None
    try:
        with timeline.phase("settings"):
            _apply_settings(manifest)
        between = _set_up_host(manifest, reader, region, store, timeline)
        journal = restore.listen_journal()
        with timeline.phase("criu's check"):
            _wait_for_criu_check(check)
        # From now on: what is touched right after the commit shall lie in the region again.
        if region is not None:
            freed = Background(functools.partial(memory.free_parts_to_ram, manifest.memory, region))
        with timeline.phase("restore"):
            restores = _restore_trees(manifest, between)
        wipe(store.area)
        watchdog.stop()
    except Exception:
        # Nothing of it may run, nor be restored another time.
        _go_on_after("wiping the store", lambda: wipe(store.area))
        _go_on_after(
            "ending all trees",
            lambda: result.update(not_ended=restore.end_all(manifest.trees)),
        )
        _go_on_after("removing tunnels", lambda: network.remove_tunnels(manifest.host.network))
        _go_on_after("unlocking the network", network.give_up)
        _go_on_after("taking mounts away", lambda: mounts.unmount_transient(manifest.host.mounts))
        if freed is not None:
            _go_on_after("making RAM of the free part of the region", freed.join)
            _go_on_after("telling the pager of it", memory.tell_pager)
        raise
    with timeline.phase("commit"):
        _go_on_after("the commit", lambda: restore.commit(restores))
        _go_on_after("unlocking the network", lambda: network.unlock(manifest.host.network))
    resumed = time.time_ns()
    _go_on_after("waking tunnels", lambda: network.wake_tunnels(manifest.host.network))
    say(f"{len(restores.held)} of {len(restores.trees)} trees run again")
    _go_on_after(
        "the end of what failed",
        lambda: result.update(not_ended=restore.wait_for_the_end(restores)),
    )
    _go_on_after("taking mounts away", lambda: mounts.unmount_transient(manifest.host.mounts))
    if freed is not None:
        _go_on_after("making RAM of the free part of the region", freed.finish)
        _go_on_after("telling the pager of it", memory.tell_pager)
    report = functools.partial(_report, manifest, timeline, restores, zero, started, resumed)
    _go_on_after("the report", lambda: report(result))
    return _init_with_state(manifest, restores, journal)


def _go_on_after(what: str, step: Callable[[], object]) -> None:
    """After the commit init must learn what runs, or it would start all of that a second time."""
    try:
        # Two, as the alarm may come while it is turned off.
        try:
            watchdog.allow(watchdog.STEP_S)
            step()
        finally:
            watchdog.stop()
    except Exception as error:
        miss(f"{what}: {error}")


def _set_up_host(
    manifest: Manifest,
    reader: StoreReader,
    region: DaxRegion | None,
    store: Store,
    timeline: Timeline,
) -> unix_sockets.UnixConnections:
    """All that the restore needs, the network beside the rest as it mostly waits."""
    tracked = reader.read(CONNTRACK_BLOB) if CONNTRACK_BLOB in reader else b""
    upping = Background(functools.partial(_set_up_network, manifest.host.network, tracked))
    try:
        with timeline.phase("mounts"):
            attached = loops.Loops(manifest.host.loops)
            mounts.mount_all(manifest.host.mounts, attached.attach)
            attached.close()
            cgroups.make(manifest.cgroups)
        with timeline.phase("unpack"):
            _unpack(reader, manifest)
            apparmor.load(
                reader.read(entry.name) for entry in reader if entry.name.startswith(APPARMOR_BLOBS)
            )
            between = unix_sockets.UnixConnections(manifest.unix_connections, reader.read)
        with timeline.phase("pager"):
            wait_for_pager = _start_pager(manifest, region, store, reader)
    finally:
        with timeline.phase("network"):
            upping.join()
    upping.finish()
    with timeline.phase("pager listens"):
        wait_for_pager()
    # Only now: what the pager and criu are read from came first.
    threading.Thread(target=boot.prefetch, args=(manifest.host.prefetch,)).start()
    return between


def _set_up_network(found: Network, tracked: bytes) -> None:
    network.set_up(found)
    if tracked:
        try:
            conntrack.restore(tracked, found.conntrack_max)
        except OSError as error:
            miss(f"connection tracking: {error}")


def _wait_for_criu_check(check: int | str) -> None:
    if isinstance(check, str):
        raise processes.ProgramFailedError(f"criu's check of this kernel: {check}")
    processes.wait(check, "criu's check of this kernel")


def _check_origin(config: AgentConfig, manifest: Manifest) -> None:
    if manifest.machine_id != config.machine_id:
        raise HandoverRefusedError("the handover comes from another machine")
    release = os.uname().release
    if manifest.new_release != release:
        raise HandoverRefusedError(
            f"the handover is meant for kernel {manifest.new_release}, this is {release}"
        )


def _unpack(reader: StoreReader, manifest: Manifest) -> None:
    """tmpfs contents, in the order of the mounts, and criu's images."""
    tars = {
        item.target: _start_tar(item, reader)
        for item in manifest.host.mounts
        if item.contents in reader or item.contents.startswith("/")
    }
    for tree in manifest.trees:
        # Those on a disk are there, or fail alone.
        if not tree.images.startswith("/"):
            (restore.WORK / tree.images).mkdir(parents=True, exist_ok=True)
    for entry in reader:
        if entry.name.startswith(f"{IMAGES_DIRECTORY}/"):
            with reader.view(entry.name) as image:
                smallfiles.create(f"{restore.WORK}/{entry.name}", image)
    for target, pid in tars.items():
        with Tolerated(f"the contents of {target}"):
            processes.wait(pid, "tar", manifest.patience_s)
    mounts.protect(manifest.host.mounts)
    for directory in manifest.host.directories:
        with Tolerated(directory):
            os.makedirs(directory, exist_ok=True)
    for path, text in manifest.host.files.items():
        with Tolerated(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).write_text(text)
    for path in manifest.host.fifos:
        with Tolerated(path):
            os.mkfifo(path, 0o600)
    for tree in manifest.trees:
        restore.work_directory(tree).mkdir(parents=True, exist_ok=True)


def _start_tar(item: Mount, reader: StoreReader) -> int:
    argv = ["tar", "-x", "--numeric-owner", "-C", item.target]
    log = str(RUN / "tar.log")
    if item.contents in reader:
        with reader.view(item.contents) as archive:
            return processes.feed(argv, archive, log=log)
    return processes.start([*argv, "-f", item.contents], log=log)


def _apply_settings(manifest: Manifest) -> None:
    socket.sethostname(manifest.host.hostname)
    for name, value in manifest.host.sysctls.items():
        try:
            Path("/proc/sys", name).write_text(value)
        except OSError as error:
            say(f"sysctl {name}: {error.strerror}")
    # What starts from here on must not sit on a PID that a carried process needs.
    most = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    last = min(manifest.highest_pid + 64, most)
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(last))


def _restore_trees(manifest: Manifest, between: unix_sockets.UnixConnections) -> restore.Restores:
    with memory.without_limit_of_reservations(), watched.leading_to(manifest.watched):
        if manifest.memory.backend == "region":
            restores = restore.restore_all(manifest.trees, between, manifest.patience_s)
        else:
            with memory.without_huge_pages():
                restores = restore.restore_all(manifest.trees, between, manifest.patience_s)
    between.close()
    unix_sockets.connect_datagrams(manifest.datagrams)
    return restores


def _start_pager(
    manifest: Manifest, region: DaxRegion | None, store: Store, reader: StoreReader
) -> Callable[[], None]:
    """Returns what waits until it listens."""
    if region is None:
        return lambda: None
    sockets = [str(restore.work_directory(tree) / "lazy-pages.socket") for tree in manifest.trees]
    entry = reader.entry("pagemap")
    pagemap = f"{store.path}:{entry.offset}:{entry.length}"
    pid = memory.start_pager(manifest.memory, region, store.path, pagemap, sockets)
    return functools.partial(memory.wait_for_pager, pid, sockets)


def _report(
    manifest: Manifest,
    timeline: Timeline,
    restores: restore.Restores,
    zero: int,
    started: int,
    resumed: int,
    result: dict[str, Any],
) -> None:
    phases = [
        *manifest.phases,
        Phase("kexec and kernel boot", manifest.clock.realtime_ns, zero + started, "new"),
        *(Phase(name, zero + start, zero + end, "new") for name, start, end in timeline.phases),
    ]
    result |= {
        "old_release": manifest.old_release,
        "new_release": manifest.new_release,
        "frozen_ns": manifest.frozen_ns,
        "resumed_ns": resumed,
        "phases": [
            {"name": item.name, "start_ns": item.start_ns, "end_ns": item.end_ns, "side": item.side}
            for item in phases
        ],
        "trees": [
            {
                "name": item.tree.name,
                "unit": item.tree.unit,
                "root_pid": item.tree.root_pid,
                "failure": item.failure,
                "log": str(restore.work_directory(item.tree)),
            }
            for item in restores.trees
        ],
        "memory": {
            "backend": manifest.memory.backend,
            "occupied": [[item.start, item.end] for item in manifest.memory.occupied],
            "free": [[item.start, item.end] for item in manifest.memory.free],
        },
        "report": manifest.report,
    }


def _init_with_state(
    manifest: Manifest, restores: restore.Restores, journal: dict[str, socket.socket]
) -> list[str]:
    """The init command line that makes systemd take the restored units as its own."""
    failed = {item.tree.unit for item in restores.failed} | network.afresh
    numbers = {name: listener.detach() for name, listener in journal.items()}
    parts = [manifest.host.systemd_header.format(**numbers)]
    parts += [text for unit, text in manifest.host.systemd_units.items() if unit not in failed]
    state = os.memfd_create("systemd-state", 0)
    os.write(state, "".join(parts).encode())
    os.lseek(state, 0, os.SEEK_SET)
    for number in (state, *numbers.values()):
        os.set_inheritable(number, True)
    return [*manifest.init, "--switched-root", "--system", "--deserialize", str(state)]
