"""The host as the next kernel must have it: read before the freeze, put into the manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rekernel import syscalls
from rekernel.carry import support
from rekernel.carry.conntrack import observe as conntrack
from rekernel.carry.disks import observe as disks
from rekernel.carry.logins import observe as logins
from rekernel.carry.loops import observe as loops
from rekernel.carry.mounts import binds
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.entry import Mount
from rekernel.carry.mounts.observe import MountInfo, TmpfsPlan, stays_behind
from rekernel.carry.network import ifupdown
from rekernel.carry.network import observe as network
from rekernel.carry.oneshot_units import observe as oneshot_units
from rekernel.carry.runtime_units import observe as runtime_units
from rekernel.carry.sysctls import observe as sysctls
from rekernel.carry.systemd_state import observe as adoption
from rekernel.criu.options import RESTORE_ROOT
from rekernel.handover.manifest import Host
from rekernel.records import record, replace
from rekernel.systemd.units import Unit, exited, show
from rekernel.transition.staging import mapped_files
from rekernel.transition.trees import CarriedTree

# Programs tell by it that systemd is the init system (sd_booted(3)); a user's manager ends without.
_BOOTED = "/run/systemd/system"


# Were they not as before, systemd would check file systems that are mounted already.
_CHECKED = "systemd-fsck@*.service"


@record
class HostFacts:
    """What is mounted, the tmpfs mounts whose contents travel, and all that the manifest has.

    ``triggers``: sockets, timers and paths that are started again if they are not by then.
    """

    table: tuple[MountInfo, ...]
    contents: tuple[TmpfsPlan, ...]
    triggers: tuple[str, ...]
    travels: Host


def observe(trees: Sequence[CarriedTree], restarted: Sequence[Unit]) -> HostFacts:
    """Read it all. Raises RekernelError, OSError."""
    units = list({tree.verdict.unit.name: tree.verdict.unit for tree in trees}.values())
    of_logins = [unit for unit in units if unit.is_login or unit.is_manager]
    left = logins.leave(of_logins)
    triggers = runtime_units.triggers()
    table = mounts.observe()
    attached = loops.observe(table)
    links = network.observe()
    # It may have changed since the plan was made.
    support.refuse(disks.unsupported(table, attached) + network.unsupported(links))
    the_network = network.describe(links)
    done = oneshot_units.observe(the_network.tunnels)
    done_units = [item.unit for item in done]
    todo, contents = mounts.plan(table, logins.own_mounts(units))
    order = [mount.target for mount in table]
    todo += [*disks.plan(table), *binds.plan(table)]
    todo.sort(key=lambda item: order.index(item.target))
    private_tmps = {}
    directories = {_BOOTED}
    for tree in trees:
        try:
            own = mounts.observe(str(tree.options.root_pid))
        except (FileNotFoundError, ProcessLookupError):
            # What ends in a login. Of a service it is found out when all is frozen.
            continue
        directories.update(mounts.mount_points(own))
        private_tmp = adoption.private_tmp(own)
        if private_tmp is not None:
            private_tmps[tree.verdict.unit.name] = private_tmp
        # Whoever makes them again finds them there.
        directories.update(path for path in tree.watched if stays_behind(path))
    # What it is by now counts at the cut; its modules are loaded here.
    conntrack.observe()
    bind = Mount(RESTORE_ROOT, "", "/", syscalls.MS_BIND, transient=True)
    travels = Host(
        mounts=(*todo, bind),
        loops=tuple(attached.usable.values()),
        directories=tuple(sorted(directories)),
        files={
            adoption.TMPFILES_OVERRIDE: adoption.keep_private_tmps(private_tmps),
            **runtime_units.triggered_files(triggers),
            **runtime_units.files([*units, *restarted, *done_units]),
            **runtime_units.keeping([*units, *done_units]),
            **runtime_units.keeping_rules(the_network.rules.values()),
            **left.files,
            **ifupdown.files(),
        },
        fifos=left.fifos,
        prefetch=tuple(mapped_files([pid for tree in trees for pid in tree.pids])),
        network=replace(the_network, settled={item.unit.name: item.part for item in done}),
        hostname=os.uname().nodename,
        sysctls=sysctls.values(),
        systemd_header=adoption.header(private_tmps),
        systemd_units={
            unit.name: adoption.section(unit)
            for unit in (
                *show(logins.taken_along(of_logins)),
                *exited(_CHECKED),
                *done_units,
                *units,
            )
        },
    )
    return HostFacts(
        table=tuple(table),
        contents=tuple(contents),
        triggers=tuple(unit.name for unit in triggers),
        travels=travels,
    )
