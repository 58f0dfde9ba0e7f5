"""What a tree may do in the mounts of its own namespace: read-only stays read-only.

criu (4.2, do_bind_mount_v2() in criu/mount-v2.c) takes mounts that come from the host as they are
there, if any other one of the same file system has the flags that this one should have.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rekernel import syscalls
from rekernel.pid1.background import Background
from rekernel.pid1.console import miss

if TYPE_CHECKING:
    from collections.abc import Mapping

# The part of mount(2)'s flags that belongs to a mount, with what changes nothing else.
_REMOUNT = syscalls.MS_BIND | syscalls.MS_REMOUNT
# Seconds for the mounts of one tree, which take milliseconds.
_LIMIT_S = 10.0


def remount(pid: int, wanted: Mapping[str, int]) -> None:
    """Give the mounts that a held process sees their flags. ``wanted``: mount point -> MS_*.

    What cannot be set is said.
    """
    if not wanted:
        return
    try:
        _remount(pid, wanted)
    except (OSError, ValueError, IndexError) as error:
        # Its criu may just have ended: whoever waits for that will tell.
        miss(f"process {pid}: mounts may have other flags than before: {error}")


def _remount(pid: int, wanted: Mapping[str, int]) -> None:
    now = _flags(pid)
    wrong = [target for target, flags in wanted.items() if now.get(target, flags) != flags]
    if not wrong:
        return
    failed: list[str] = []
    try:
        # A thread, not a process: one that is forked off while other threads run has their locks as
        # they were at that moment, and may wait for one for ever.
        Background(
            lambda: _in_namespace(pid, {target: wanted[target] for target in wrong}, failed)
        ).finish(_LIMIT_S)
    except Exception as error:
        if getattr(error, "of_watchdog", False):
            raise
        failed.append(f"perhaps all: {error}")
    if failed:
        miss(f"process {pid}: mounts with other flags than before: {', '.join(failed)}")


def _in_namespace(pid: int, wanted: Mapping[str, int], failed: list[str]) -> None:
    """Adds which could not be set, and why. The calling thread is there until it ends."""
    # Its root and working directory have been those of all threads.
    syscalls.unshare(syscalls.CLONE_FS)
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    # It names mounts by its own root directory, which may be another one.
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    syscalls.setns(namespace, syscalls.CLONE_NEWNS)
    os.fchdir(root)
    os.chroot(".")
    os.close(namespace)
    os.close(root)
    for target, flags in wanted.items():
        try:
            syscalls.mount("", target, "", flags | _REMOUNT)
        except FileNotFoundError:
            # Another one hides it: nor can anybody in there use it.
            continue
        except OSError as error:
            failed.append(f"{target} ({error.strerror})")


def _flags(pid: int) -> dict[str, int]:
    """Mount point -> MS_*; of several the last one, which is on top."""
    found = {}
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        # Not splitlines(): a name may hold what that takes for the end of a line.
        for line in os.fsdecode(file.read()).removesuffix("\n").split("\n"):
            fields = line.split(" ", 6)
            found[_plain(fields[4])] = syscalls.mount_flags(fields[5].split(","))
    return found


def _plain(path: str) -> str:
    """Without the escapes of mountinfo: space, tab, newline, backslash."""
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        path = path.replace(f"\\{code}", character)
    return path
