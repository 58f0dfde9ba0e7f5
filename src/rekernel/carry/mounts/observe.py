"""What is mounted here, what of it must stand before a restore, and what its tmpfs hold."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rekernel import syscalls
from rekernel.carry.mounts.entry import Mount
from rekernel.containers import docker, podman
from rekernel.records import record
from rekernel.run import run

# Kernel interfaces: mounted afresh, as a unit's own mount namespace may hold copies of them.
API_TYPES = (
    "binfmt_misc", "bpf", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
    "fusectl", "hugetlbfs", "mqueue", "proc", "pstore", "rpc_pipefs", "securityfs", "sysfs",
    "tracefs",
)  # fmt: skip
# Those that lie on no disk, and are mounted anew.
UNBACKED = (*API_TYPES, "tmpfs")
# There from the start, and moved to the real root.
MOVED_BY_AGENT = ("/", "/proc", "/sys", "/dev")
# Mounted by init when it wants them; nothing carried keeps state in them.
BY_INIT = ("autofs", "nfsd", "ramfs")

# Parts of /run that belong to what boots afresh, or to this kernel: stale, they would mislead.
RUN_OF_PLUMBING = (
    "blkid", "console-setup", "containers", "credentials", "criu.kdat", "crun", "cryptsetup",
    "dbus", "initctl", "initramfs", "libpod", "log/journal", "lvm", "motd.dynamic", "mount",
    "network", "nologin", "nscd", "reboot-required", "rekernel", "sshd", "sshd.pid", "tmpfiles.d",
    "udev", "user", "utmp",
)  # fmt: skip

# Of /run/systemd only what the mounts of a unit's own namespace were made from.
RUN_SYSTEMD_CARRIED = ("inaccessible", "propagate")


@record
class MountInfo:
    """A line of /proc/PID/mountinfo (Documentation/filesystems/proc.rst, 3.5)."""

    mount_id: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]
    # "shared:N" of those that get each other's mounts, "" for none.
    peers: str = ""


def parse_mountinfo(text: str) -> list[MountInfo]:
    """Every mount, in the kernel's order."""
    found = []
    # The kernel escapes blank, tab, newline and backslash: all else may stand in a name.
    for line in text.split("\n"):
        if not line:
            continue
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        fstype, source, super_options = right.split(" ", 2)
        found.append(
            MountInfo(
                mount_id=int(fields[0]),
                device=fields[2],
                root=unescape(fields[3]),
                target=unescape(fields[4]),
                options=tuple(fields[5].split(",")),
                fstype=fstype,
                source=unescape(source),
                super_options=tuple(super_options.split(",")),
                peers=next((tag for tag in fields[6:] if tag.startswith("shared:")), ""),
            )
        )
    return found


def unescape(text: str) -> str:
    """A path as /proc writes it, with \\040 for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def observe(pid: str = "self") -> list[MountInfo]:
    """The mounts that a process sees. Raises FileNotFoundError, ProcessLookupError: it is gone."""
    try:
        return parse_mountinfo(os.fsdecode(Path("/proc", pid, "mountinfo").read_bytes()))
    except OSError as error:
        # Of one that ends and is not reaped yet (fs/proc_namespace.c, mounts_open_common()).
        if error.errno == errno.EINVAL:
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended") from error
        raise


@record
class TmpfsPlan:
    """A tmpfs whose contents travel: its mount point and what of it stays behind."""

    target: str
    exclude: tuple[str, ...]


def is_bind(mount: MountInfo, mounts: Sequence[MountInfo]) -> bool:
    """Whether one of ``mounts`` that comes before it has all that it shows: a bind mount."""
    earlier = mounts[: mounts.index(mount)]
    return any(shows(other, mount) for other in earlier)


def shows(wide: MountInfo, narrow: MountInfo) -> bool:
    """Whether all that the one mount shows is to be found in the other, too."""
    return wide.device == narrow.device and contains(wide.root, narrow.root)


def contains(directory: str, path: str) -> bool:
    """Whether a path lies in a directory, or is that."""
    return directory == "/" or path == directory or path.startswith(f"{directory}/")


def is_of_others(mount: MountInfo, of_logins: Collection[str] = ()) -> bool:
    """Whether init, a user manager that it starts, or a container's engine mounts it again.

    ``of_logins``: directories of carried ones.
    """
    if mount.target in of_logins:
        return False
    by_init = mount.target.startswith(("/run/user/", "/run/credentials/"))
    of_container = podman.is_own_mount(mount.target) or docker.is_own_mount(mount.target)
    return by_init or mount.fstype in BY_INIT or of_container


def plan(
    mounts: Sequence[MountInfo], of_logins: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[list[Mount], list[TmpfsPlan]]:
    """What the agent mounts that lies on no disk, and which tmpfs contents it needs for that.

    Credentials and /run/user/UID belong to init and to the user managers that it starts, which
    mount them again; but for those of ``of_logins``, carried ones: which, and what of each stays
    behind.
    """
    of_logins = of_logins or {}
    todo: list[Mount] = []
    contents: list[TmpfsPlan] = []
    for mount in mounts:
        elsewhere = mount.target in MOVED_BY_AGENT or is_of_others(mount, of_logins)
        # Credentials are in a ramfs where a tmpfs could be swapped out.
        if elsewhere or mount.fstype not in (*UNBACKED, "ramfs") or is_bind(mount, mounts):
            continue
        data = [
            option
            for option in mount.super_options
            if option not in ("rw", "ro") and not option.startswith("nr_blocks")
        ]
        blob = ""
        if mount.fstype in ("tmpfs", "ramfs"):
            blob = f"tmpfs{mount.target}"
            inner = tuple(
                os.path.relpath(other.target, mount.target)
                for other in mounts
                if other.target.startswith(f"{mount.target}/")
            )
            exclude = _run_exclusions() if mount.target == "/run" else ()
            exclude = of_logins.get(mount.target, exclude)
            contents.append(TmpfsPlan(mount.target, (*exclude, *inner)))
        todo.append(
            Mount(
                target=mount.target,
                fstype=mount.fstype,
                source=mount.source,
                flags=syscalls.mount_flags(mount.options),
                data=",".join(data),
                contents=blob,
                # Its automount unit would refuse to start over a mount.
                transient=mount.fstype == "binfmt_misc",
            )
        )
    return todo, contents


def _run_exclusions() -> tuple[str, ...]:
    systemd = [
        f"systemd/{name}"
        for name in sorted(os.listdir("/run/systemd"))
        if name not in RUN_SYSTEMD_CARRIED
    ]
    return (*RUN_OF_PLUMBING, *systemd)


def stays_behind(path: str) -> bool:
    """Whether a file of /run is not there on the next kernel, or is another one."""
    if not path.startswith("/run/"):
        return False
    name = path.removeprefix("/run/")
    inner = name.removeprefix("systemd/")
    if inner != name:
        # Of logins; the agent makes them again.
        return not _within(inner, (*RUN_SYSTEMD_CARRIED, "sessions"))
    # A mount of its own below it is judged as such.
    return _within(name, [item for item in RUN_OF_PLUMBING if item != "user"])


def _within(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}/") for part in parts)


def mount_points(mounts: Sequence[MountInfo]) -> list[str]:
    """Directories of /run that a unit's own mount namespace mounts something on."""
    return sorted(
        mount.target
        for mount in mounts
        if mount.target.startswith("/run/") and os.path.isdir(mount.target)
    )


def tmpfs_bytes(tmpfs: TmpfsPlan) -> int:
    """What an archive of its contents takes at least; what vanishes meanwhile counts nothing."""
    device = os.stat(tmpfs.target).st_dev
    excluded = {os.path.join(tmpfs.target, name) for name in tmpfs.exclude}
    total = 0
    seen: set[int] = set()
    pending = [tmpfs.target]
    while pending:
        for entry in _entries(pending.pop()):
            if entry.path in excluded:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
                # A hard link is archived once.
                if status.st_dev != device or status.st_ino in seen:
                    continue
                seen.add(status.st_ino)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += _data_bytes(entry.path, status.st_size)
            except OSError:
                continue
    return total


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def _data_bytes(path: str, size: int) -> int:
    """Bytes of a file that are no holes: what is allocated but was never written is one, too."""
    total = 0
    end = 0
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while end < size:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            total += end - start
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    finally:
        os.close(fd)
    return total


def is_bare(tmpfs: TmpfsPlan) -> bool:
    """Whether nothing in it would get into an archive."""
    for entry in _entries(tmpfs.target):
        with suppress(FileNotFoundError):
            if entry.name not in tmpfs.exclude and not stat.S_ISSOCK(
                entry.stat(follow_symlinks=False).st_mode
            ):
                return False
    return True


def archive_tmpfs(tmpfs: TmpfsPlan, target: Path) -> None:
    """Write its contents as a tar file. Sockets stay behind: whoever listens binds anew."""
    excludes = [f"--exclude=./{name}" for name in tmpfs.exclude]
    run(
        ["tar", "-c", "--numeric-owner", "--one-file-system", "--sparse",
         "--warning=no-file-ignored", "--anchored", "--no-wildcards", *excludes, "-f", str(target),
         "-C", tmpfs.target, "."],
        # 1: a file changed or went meanwhile; only what is not carried still runs and does that.
        good=(0, 1),
    )  # fmt: skip


def resize_run(size: int) -> None:
    """Set how many bytes /run may hold: a limit, nothing is taken. Raises CommandFailedError."""
    run(["mount", "-o", f"remount,size={size}", "/run"])
