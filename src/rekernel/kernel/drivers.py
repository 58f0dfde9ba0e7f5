"""Modules that the next kernel needs before init: of disks, file systems and interfaces."""

from __future__ import annotations

from collections.abc import Sequence

from rekernel.carry.disks import observe as disks
from rekernel.carry.loops import observe as loops
from rekernel.carry.mounts.observe import MountInfo
from rekernel.carry.network import observe as network
from rekernel.kernel import modules
from rekernel.kernel.fitness import Needs


def needed(table: Sequence[MountInfo], fstypes: Sequence[str]) -> list[str]:
    """Modules as modprobe takes them. Raises BlockedError if the root lies on something unknown."""
    _, device = disks.root(table)
    stack = disks.stack(table, device)
    aliases = modules.needed_aliases(stack.disks, fstypes, network.kinds())
    aliases += [f"md-{array.level}" for array in stack.arrays]
    if stack.mapped:
        aliases.append("dm_mod")
    if loops.observe(table).usable:
        aliases.append("loop")
    return aliases


def essential(table: Sequence[MountInfo]) -> Needs:
    """Modules that the boot cannot do without: as needed(), with file systems of disks only.

    Raises BlockedError.
    """
    on_disks = {mount.fstype for mount in table if mount.source.startswith("/dev/")}
    _, device = disks.root(table)
    arrays = disks.stack(table, device).arrays
    written = dict.fromkeys(text for array in arrays for text in array.features)
    return Needs(
        tuple(needed(table, sorted(on_disks))), {"md_mod": tuple(written)} if written else {}
    )
