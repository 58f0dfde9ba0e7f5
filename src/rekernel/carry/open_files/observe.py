"""Files that criu could not open as they were, and what is given to it instead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from rekernel.carry.mounts.observe import observe
from rekernel.carry.pressure import observe as pressure
from rekernel.criu.descriptors import Descriptor, External, descriptors
from rekernel.criu.entry import Inherited


def files(pids: Sequence[int]) -> list[External]:
    """The files of a tree that criu could not open as they were, each once: opened in another mount
    namespace than its own, or told something since.

    A process that is gone has none.
    """
    found: dict[str, External] = {}
    for pid in pids:
        try:
            own_mounts = {mount.mount_id for mount in observe(str(pid))}
            opened = descriptors(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        for item in opened:
            if pressure.is_watch(item.link, item.flags):
                with suppress(FileNotFoundError, ProcessLookupError):
                    _add_told(found, item)
            elif (
                item.link.startswith("/")
                and item.mount_id not in own_mounts
                # Nothing that could be opened again: a memfd, which criu takes along by itself.
                and not item.link.endswith(" (deleted)")
            ):
                # Opened by the init system before it entered the unit's mount namespace.
                _add_file(found, item)
    return list(found.values())


def _add_file(found: dict[str, External], item: Descriptor) -> None:
    key = _key(item)
    flags = item.flags & (os.O_ACCMODE | os.O_APPEND)
    given = Inherited("file", f"fd[{{fd}}]:{key}", path=item.link, flags=flags)
    found.setdefault(key, External(key, given))


def _add_told(found: dict[str, External], item: Descriptor) -> None:
    told = (pressure.told(item.pid, item.number) or b"").decode()
    key = _key(item)
    # By its whole name criu would open it once more; without the first character, which it takes
    # for the slash of a path, it uses what is open (criu/files-reg.c, open_path()). Of several
    # watches of one file all are like the last.
    argument = f"fd[{{fd}}]:{key[1:]}"
    flags = item.flags & (os.O_ACCMODE | os.O_NONBLOCK)
    given = Inherited("file", argument, path=item.link, flags=flags, header=told)
    # Who has it open without having told it anything can do with that, too.
    found[key] = External(key, given)


def _key(item: Descriptor) -> str:
    """What criu calls an external file. It looks for no mount of one, which may be the host's."""
    return f"file[{item.mount_id:x}:{item.inode:x}]"
