"""From the initrd to the real root, and from there to the distribution's init.

Imported early: see agent/main.py.
"""

from __future__ import annotations

import os
import threading

from rekernel import syscalls
from rekernel.carry.block import superblocks
from rekernel.handover.paths import AGENT_RESULT
from rekernel.pid1.console import Tolerated, missing, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn


_NEW_ROOT = "/sysroot"
_API_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NOEXEC | syscalls.MS_NODEV


def mount_api() -> None:
    """/proc, /sys and /dev of the initrd stage; they move along to the real root."""
    for target, fstype, flags, data in (
        ("/proc", "proc", _API_FLAGS, ""),
        ("/sys", "sysfs", _API_FLAGS, ""),
        ("/dev", "devtmpfs", syscalls.MS_NOSUID, "mode=0755"),
    ):
        os.makedirs(target, exist_ok=True)
        syscalls.mount(fstype, target, fstype, flags, data)


_rcu_before = "0"


def expedite_rcu(on: bool) -> None:
    """Let the kernel interrupt all processors rather than wait for them to come by; or as it was.

    Mounting, namespaces, devices and control groups each wait for that some tens of milliseconds
    (Documentation/RCU; off by default as it costs power and latency of others).
    """
    global _rcu_before
    try:
        with open("/sys/kernel/rcu_expedited", "r+") as file:
            if on:
                _rcu_before = file.read().strip()
            file.seek(0)
            file.write("1" if on else _rcu_before)
    except OSError as error:
        say(f"RCU is not expedited: {error.strerror}")


def set_panic(value: str, setting: str = "/proc/sys/kernel/panic") -> None:
    """What a panic does from here on (kernel.panic); until now it was to reboot."""
    if value:
        with Tolerated("kernel.panic is not as it was"), open(setting, "w") as file:
            file.write(value)


def tell_failure(reason: str, path: str = AGENT_RESULT) -> None:
    """Leave it for `rekernel finish`, unless there is word of a restore already."""
    import json

    try:
        with open(path, "x") as file:
            told = {"schema": 1, "handover": "failed", "reason": reason, "missing": missing}
            json.dump(told, file)
    except FileExistsError:
        pass
    except OSError as error:
        say(f"that is in no report: {error.strerror}")


def load_modules(waves: Sequence[Sequence[str]], parameters: Mapping[str, str]) -> list[str]:
    """Load modules; those of one wave need none of the same wave, so they load in parallel.

    ``parameters``: path -> what modprobe would give the module.
    Returns what failed, in words; a missing module shows itself soon enough where it matters.
    """
    failed: list[str] = []

    def load(path: str) -> None:
        file = os.path.basename(path)
        try:
            syscalls.finit_module(path, parameters.get(path, ""))
        except OSError as error:
            failed.append(f"{file}: {error.strerror}")

    for wave in waves:
        threads = [threading.Thread(target=load, args=(path,)) for path in wave[1:]]
        for thread in threads:
            thread.start()
        if wave:
            load(wave[0])
        for thread in threads:
            thread.join()
    return failed


def switch_root(uuid: str, fstype: str, flags: int, data: str) -> None:
    """Mount the real root and make it /, with /proc, /sys and /dev moved along."""
    device = superblocks.find(uuid)
    os.makedirs(_NEW_ROOT, exist_ok=True)
    syscalls.mount(device, _NEW_ROOT, fstype, flags, data)
    initramfs = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    device_number = os.fstat(initramfs).st_dev
    for directory in ("proc", "sys", "dev"):
        syscalls.mount(f"/{directory}", f"{_NEW_ROOT}/{directory}", "", syscalls.MS_MOVE)
    os.chdir(_NEW_ROOT)
    syscalls.mount(".", "/", "", syscalls.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    # As systemd will have it: units' own namespaces are tied to these peer groups.
    syscalls.mount("", "/", "", syscalls.MS_SHARED | syscalls.MS_REC)
    _empty(initramfs, device_number)
    os.close(initramfs)


def _empty(directory: int, device: int) -> None:
    """Free the initramfs: its files are RAM."""
    for entry in os.listdir(directory):
        status = os.stat(entry, dir_fd=directory, follow_symlinks=False)
        if status.st_dev != device:
            continue
        if (status.st_mode & 0o170000) == 0o040000:
            inner = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            _empty(inner, device)
            os.close(inner)
            try:
                os.rmdir(entry, dir_fd=directory)
            except OSError:
                continue
        else:
            os.unlink(entry, dir_fd=directory)


def mount_run() -> None:
    """/run, as init would; what else is known of it comes with the manifest."""
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("tmpfs", "/run", "tmpfs", flags, "mode=0755")
    os.makedirs("/run/rekernel", exist_ok=True)


def prefetch(paths: Sequence[str]) -> None:
    """Start reading these files into the page cache in large requests; does not wait for them.

    A program started cold reads itself page by page: with criu and its libraries that is seconds.
    """
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        os.close(fd)


def execute_init(init: Sequence[str]) -> NoReturn:
    """Become the distribution's init. Does not return; raises OSError if there is none."""
    os.execve(init[0], list(init), {"TERM": "linux"})
