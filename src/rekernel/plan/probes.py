"""Is this host ready? One function per question; each tries the thing, none compares versions.

A probe reads or tries, and changes nothing that outlives it. ``PROBES`` is the table in the order
in which `rekernel check` shows it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

from rekernel import syscalls
from rekernel.attempt import state as attempt
from rekernel.attempt.undo import STATE, UndoList
from rekernel.carry.disks import observe as disks
from rekernel.carry.loops import observe as loops
from rekernel.carry.memory import region
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.network import observe as network
from rekernel.carry.network import trial as network_trial
from rekernel.carry.swap import observe as swap_areas
from rekernel.carry.sysctls import observe as sysctls
from rekernel.census import usage
from rekernel.census.pages import Survey, survey
from rekernel.census.usage import Usage
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.criu.canary import CanaryResult, try_canary
from rekernel.errors import BlockedError, RekernelError
from rekernel.kernel import drivers, fitness
from rekernel.kernel.installed import installed, running_release
from rekernel.plan.plan import LOWEST_SAFE_PID, room_for
from rekernel.plan.room import Place
from rekernel.records import record, replace
from rekernel.run import run

GIB = 1 << 30
_MIB = 1 << 20
_PAGE = 4096
# What a Debian server takes before any service of interest.
_SYSTEM_BYTES = 256 * _MIB
# CONFIG_RANDOMIZE_BASE: arch/x86/boot/compressed/kaslr.c, MAX_MEMMAP_REGIONS.
_MAX_MEMMAP_REGIONS = 4
_LIBEXEC = Path("usr/lib/rekernel")


class Status(StrEnum):
    """How a probe ended. A warning does not keep an upgrade back."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@record
class Finding:
    """The answer of one probe."""

    name: str
    status: Status
    reason: str
    remedy: str = ""


@record
class Context:
    """What probes look at. ``backend``: "auto", "region" or "image"."""

    root: Path = Path("/")
    backend: str = "auto"
    units: tuple[UnitVerdict, ...] = ()
    # Of those that are carried; without a region, pages are all outside of it.
    usages: tuple[Usage, ...] = ()
    pages: Survey | None = None
    # One that is under way already.
    canary: Callable[[], CanaryResult] | None = None

    def read(self, path: str) -> str:
        """A file's text without the last newline; "" if there is none."""
        try:
            return (self.root / path).read_text().strip()
        except OSError:
            return ""

    @property
    def carried_pids(self) -> list[int]:
        """All processes that an upgrade would carry, but for podman's containers."""
        carried = (item for item in self.units if item.verdict is Verdict.CARRIED)
        return [pid for item in carried if not item.container for pid in item.processes]


Answer = tuple[Status, str, str]
Probe = Callable[[Context], Answer]


def _ok(reason: str) -> Answer:
    return Status.OK, reason, ""


def _warn(reason: str, remedy: str = "") -> Answer:
    return Status.WARN, reason, remedy


def _fail(reason: str, remedy: str = "") -> Answer:
    return Status.FAIL, reason, remedy


def architecture(context: Context) -> Answer:
    """The agent, the page map and the clock are x86-64 only."""
    machine = os.uname().machine
    return _ok(machine) if machine == "x86_64" else _fail(machine, "only x86-64 is supported")


def programs(context: Context) -> Answer:
    """What is started in an upgrade is there."""
    names = ("criu", "nft", "ip", "ss", "tar", "blkid", "modprobe", "systemctl", "systemd-run")
    missing = [name for name in names if shutil.which(name) is None]
    helpers = ("rekernel-pagemap", "rekernel-pager", "rekernel-hook")
    missing += [name for name in helpers if not (context.root / _LIBEXEC / name).exists()]
    if missing:
        return _fail(f"not found: {', '.join(missing)}", "install the rekernel package again")
    return _ok("all there")


def kernels(context: Context) -> Answer:
    """There is something to switch to."""
    found = installed(context.root)
    others = [item.release for item in found if item.release != running_release()]
    if not found:
        return _fail("no kernel with image and modules", "install a linux-image package")
    if not others:
        return _warn("only the running one is installed", "install another linux-image package")
    try:
        needs = drivers.essential(mounts.observe())
    except BlockedError:
        # The probes of the root and of mounts say more of it.
        needs = fitness.Needs(())
    region = context.backend != "image"
    unfit = {
        item.release: words
        for item in found
        if item.release != running_release()
        and (words := fitness.shortcomings(item, running_release(), needs, region=region))
    }
    fit = [release for release in others if release not in unfit]
    text = f"to switch to: {', '.join(fit) or 'none'}"
    if unfit:
        reasons = (f"{release} ({', '.join(words)})" for release, words in unfit.items())
        text += f"; cannot take over: {', '.join(reasons)}"
    return _ok(text) if fit else _fail(text, "install another linux-image package")


def kexec(context: Context) -> Answer:
    """The kernel takes another one to jump into."""
    if context.read("proc/sys/kernel/kexec_load_disabled") == "1":
        return _fail("switched off by kernel.kexec_load_disabled", "unset that sysctl and reboot")
    match = re.search(r"\[(\w+)\]", context.read("sys/kernel/security/lockdown"))
    if match and match[1] != "none":
        return _fail(
            f"the kernel is locked down ({match[1]})",
            "lockdown follows Secure Boot: kernels must be signed by a key this one trusts",
        )
    if context.read("sys/kernel/kexec_loaded") == "1":
        return _ok("kexec_file_load works: a kernel is loaded already")
    try:
        # Nothing is loaded, so nothing is lost.
        syscalls.kexec_unload()
    except OSError as error:
        return _fail(f"kexec_file_load: {error.strerror}", "the kernel needs CONFIG_KEXEC_FILE")
    return _ok("kexec_file_load is allowed")


def region_layout(context: Context) -> Answer:
    """A carry region is reserved, in the one form that no kernel boots over.

    The decompressor of the next kernel chooses where that lies in memory before it knows about
    soft-reserved ranges. It keeps out of ``nn!ss`` (four such words at most), but of any form
    that it does not know, as ``nn%ss-12+...``, it takes nn as a limit below which it must stay.
    """
    if context.backend == "image":
        return _ok("not needed with --memory=image")
    words = context.read("proc/cmdline").split()
    where = region.from_cmdline(" ".join(words))
    if where is None:
        return _fail("no carry region is reserved", "run `rekernel setup` and reboot once")
    marks = [word[7:].split("!") for word in words if re.match(r"memmap=\w+!\w+$", word)]
    ranges = [(region.parse_bytes(start), region.parse_bytes(size)) for size, start in marks]
    if (where.start, where.size) not in ranges:
        return _fail(
            "the next kernel may be placed inside the region: its memmap=SIZE!START is missing",
            "run `rekernel setup` again and reboot once",
        )
    avoided = [word for word in words if re.match(r"memmap=\w+[#$!]\w+$", word)]
    if len(avoided) > _MAX_MEMMAP_REGIONS:
        return _fail(
            f"the command line has {len(avoided)} memmap= words: the kernel avoids four of them",
            "remove some, or join ranges that touch",
        )
    if where.size < GIB:
        return _warn(
            f"{where.size // _MIB} MiB: the next kernel has to fit below that address, "
            "as it takes the size for the end of memory",
            "make the region at least 1 GiB: `rekernel setup --region 1G`",
        )
    return _ok(f"{where.size // _MIB} MiB at {where.start:#x}")


def region_devices(context: Context) -> Answer:
    """The region is divided into the handover store and RAM."""
    if context.backend == "image":
        return _ok("not needed with --memory=image")
    where = region.current()
    if where is None:
        return _fail("no carry region", "run `rekernel setup` and reboot once")
    store = region.store_device(where)
    ram = sum(item.size for item in region.ram_ranges(where))
    remedy = "systemctl restart rekernel-region.service, and see its log"
    if store is None:
        return _fail("the handover store is not set up", remedy)
    if ram == 0:
        return _fail("nothing of the region is RAM", remedy)
    missing = where.ram.size - ram
    if missing:
        return _warn(
            f"{missing // _MIB} MiB of the region are not RAM", "wait until the drain has finished"
        )
    return _ok(f"store {where.store.size // _MIB} MiB, RAM {ram // _MIB} MiB")


def parse_zones(text: str) -> dict[str, int]:
    """Zone -> pages that it manages, over all nodes; from /proc/zoneinfo."""
    found: dict[str, int] = {}
    zone = ""
    for line in text.splitlines():
        match = re.match(r"Node \d+, zone +(\w+)", line)
        if match:
            zone = match[1]
        match = re.match(r" +managed +(\d+)", line)
        if match and zone:
            found[zone] = found.get(zone, 0) + int(match[1])
    return found


def movable_zone(context: Context) -> Answer:
    """User pages gather in ZONE_MOVABLE, kernel pages never do."""
    if context.backend == "image":
        return _ok("not needed with --memory=image")
    size = parse_zones(context.read("proc/zoneinfo")).get("Movable", 0) * _PAGE
    if size == 0:
        return _fail(
            "there is no movable zone for user pages",
            "run `rekernel setup` and reboot once; see rekernel-region.service",
        )
    return _ok(f"{size // _MIB} MiB")


def drain_room(context: Context) -> Answer:
    """While they are drained carried pages exist twice."""
    if context.backend == "image":
        return _ok("not needed with --memory=image")
    total = sum(parse_zones(context.read("proc/zoneinfo")).values()) * _PAGE
    in_memory = sum(item.resident for item in context.usages if not item.container)
    # Counted for each process: what forked ones share comes back as a copy for each.
    private = context.pages
    copies = private.in_region_bytes + private.stray_bytes if private else in_memory
    needed = in_memory + max(in_memory, copies) + _SYSTEM_BYTES
    words = f"{in_memory // _MIB} MiB to carry, {total // _MIB} MiB of RAM"
    if needed > total:
        return _warn(
            f"{words}: the drain may run out of memory, as carried pages then exist twice",
            "stop or restart (--restart) something large",
        )
    return _ok(words)


def images_room(context: Context) -> Answer:
    """What the blackout writes down fits into the handover store, memory and the disk."""
    where = region.current() if context.backend != "image" else None
    pages = context.pages if where else None
    found = room_for(context.units, context.usages, where, pages, mounts.observe())
    if found.lack is not None:
        return _fail(found.lack.reason, found.lack.remedy)
    if where is None:
        return _ok(f"{found.bytes_in(Place.DISK) // _MIB} MiB go to {found.free.images.directory}")
    slow = found.by_way_of_disk
    stored = f"{found.bytes_in(Place.STORE) // _MIB} of {found.capacity // _MIB} MiB of the store"
    return (Status.OK, f"{stored}; {slow.reason}", slow.remedy) if slow else _ok(stored)


def userfaultfd(context: Context) -> Answer:
    """Pages can be given to restored processes when they touch them."""
    if context.backend == "image":
        return _ok("not needed with --memory=image")
    try:
        run(["criu", "check", "--feature", "uffd-noncoop"])
    except RekernelError as error:
        return _fail(error.message, "the kernel needs CONFIG_USERFAULTFD with fork events")
    return _ok("with fork, remap and unmap events")


def canary(context: Context) -> Answer:
    """criu dumps and restores a process with an open TCP connection, here and now."""
    try:
        result = (context.canary or try_canary)()
    except RekernelError as error:
        return _fail(error.message, error.hint)
    except OSError as error:
        return _fail(f"a test process could not be set up: {error}")
    return _ok(
        f"a test process with an open connection: dump {result.dump:.1f} s, "
        f"restore {result.restore:.1f} s"
    )


def swap(context: Context) -> Answer:
    """Pages that are swapped out lie on a disk, not in the region: they must fit into memory."""
    areas = swap_areas.observe(context.root / "proc")
    if not areas:
        return _ok("off")
    missing = swap_areas.shortage(areas, context.root / "proc")
    if missing:
        return _fail(missing, "free memory: swap is off during an upgrade")
    used = sum(area.used_bytes for area in areas) // _MIB
    names = ", ".join(area.name for area in areas)
    return _ok(f"{names}: off during an upgrade, {used} MiB come back into memory before it")


def merging(context: Context) -> Answer:
    """Pages that KSM merged belong to several processes and are carried as copies."""
    if context.read("sys/kernel/mm/ksm/run") == "1":
        pages = int(context.read("sys/kernel/mm/ksm/pages_sharing") or 0)
        if pages:
            return _warn(
                f"KSM has merged {pages} pages: they are carried as copies",
                "echo 2 >/sys/kernel/mm/ksm/run",
            )
    return _ok("KSM and khugepaged are held during an upgrade")


def root_filesystem(context: Context) -> Answer:
    """The agent can mount the root file system."""
    try:
        config, device = disks.root(mounts.observe())
    except RekernelError as error:
        return _fail(error.message, error.hint)
    return _ok(f"{config.fstype} on {device}")


def mounted(context: Context) -> Answer:
    """Everything that is mounted can be mounted again before the restore."""
    table = mounts.observe()
    attached = loops.observe(table)
    problems = disks.unsupported(table, attached)
    if problems:
        return _fail(f"not supported yet: {', '.join(problems)}", "unmount them for the upgrade")
    given_up = attached.given_up(mount.source for mount in table)
    if given_up:
        return _warn(", ".join(given_up), "detach them, or see if anybody needs them")
    return _ok("all can be mounted again")


def settings(context: Context) -> Answer:
    """What somebody has changed below /proc/sys is known."""
    if not sysctls.are_noted():
        return _warn(
            "what was changed by hand below /proc/sys is not known, as it was not noted at boot",
            "set it again after the upgrade, or put it into /etc/sysctl.d",
        )
    names = ", ".join(sysctls.changed())
    return _ok(f"set again, as changed since then: {names}" if names else "as they were at boot")


def links(context: Context) -> Answer:
    """Every network interface can be made again before the restore."""
    facts = network.observe()
    problems = network.unsupported(facts)
    if problems:
        return _fail(f"not supported yet: {', '.join(problems)}", "take them down for the upgrade")
    refused = network_trial.refused(network.describe(facts))
    if refused:
        return _warn(
            f"this kernel would not take all of it once more: {', '.join(refused)}",
            "services whose connections need it may be lost",
        )
    return _ok("all can be set up again")


def pids(context: Context) -> Answer:
    """The next kernel's own threads leave the PIDs free that are carried."""
    low = sorted(pid for pid in context.carried_pids if pid < LOWEST_SAFE_PID)
    if low:
        return _warn(
            f"{len(low)} carried processes are below PID {LOWEST_SAFE_PID}, "
            "where the new kernel may have its own threads",
            "`rekernel setup` and a reboot start services above; or restart these units",
        )
    return _ok(f"all carried processes are above {LOWEST_SAFE_PID}")


def undone(context: Context) -> Answer:
    """No attempt has left anything as it had made it: the next one would not begin."""
    # One that is under way has a list, too.
    path = context.root / STATE.relative_to("/")
    left = () if attempt.unit_runs() else UndoList(path).left()
    if left:
        return _fail(f"an attempt is not undone: {left[-1]}", "rekernel abort")
    return _ok("nothing is left of an attempt")


PROBES: tuple[tuple[str, Probe], ...] = (
    ("architecture", architecture),
    ("programs", programs),
    ("kernels", kernels),
    ("kexec", kexec),
    ("carry region", region_layout),
    ("region devices", region_devices),
    ("movable zone", movable_zone),
    ("room for images", images_room),
    ("room to drain", drain_room),
    ("userfaultfd", userfaultfd),
    ("criu", canary),
    ("swap", swap),
    ("page merging", merging),
    ("root file system", root_filesystem),
    ("mounts", mounted),
    ("settings", settings),
    ("network", links),
    ("PIDs", pids),
    ("attempts", undone),
)


def with_memory(context: Context) -> Context:
    """The context with what the units have in memory by now."""
    where = region.current() if context.backend != "image" else None
    pages = survey(context.carried_pids, region.ram_ranges(where) if where else ())
    carried = [item for item in context.units if item.verdict is Verdict.CARRIED]
    return replace(context, usages=usage.of_units(carried, pages), pages=pages)


def probe_all(context: Context, probes: Sequence[tuple[str, Probe]] = PROBES) -> list[Finding]:
    """Ask everything; a probe that cannot be carried out counts as failed."""
    found = []
    for name, probe in probes:
        try:
            status, reason, remedy = probe(context)
        except (RekernelError, OSError, ValueError) as error:
            status, reason, remedy = Status.FAIL, f"could not be found out: {error}", ""
        found.append(Finding(name, status, reason, remedy))
    return found
