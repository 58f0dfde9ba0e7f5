"""Every system call that Python does not offer: one typed function each, names as in the headers.

Known to both sides of the kexec, so standard library only; imported early by the agent (see
agent/main.py), so little of it.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

# include/uapi/linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2

# include/uapi/linux/sched.h
CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000

# include/uapi/linux/sockios.h, include/uapi/linux/if.h, include/linux/socket.h, include/linux/net.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IOPRIO_WHO_PROCESS = 1
_AF_INET = 2
_SOCK_DGRAM_CLOEXEC = 2 | 0o2000000

# include/uapi/linux/fs.h
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878

# include/uapi/linux/reboot.h
LINUX_REBOOT_CMD_RESTART = 0x01234567
LINUX_REBOOT_CMD_KEXEC = 0x45584543

# include/uapi/linux/kexec.h
KEXEC_FILE_UNLOAD = 0x00000001

# include/uapi/asm-generic/mman-common.h
MADV_COLLAPSE = 25

# arch/x86/entry/syscalls/syscall_64.tbl
_NR_IOPRIO_SET = 251
_NR_IOPRIO_GET = 252
_NR_OPEN_BY_HANDLE_AT = 304
_NR_FINIT_MODULE = 313
_NR_KEXEC_FILE_LOAD = 320
_NR_PIDFD_GETFD = 438
_NR_PROCESS_MADVISE = 440

_libc = ctypes.CDLL(None, use_errno=True)
# Made once: looking a symbol up is a dlsym each time.
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError naming the target."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(result, target)


# As mountinfo shows them (proc(5)).
_MOUNT_OPTIONS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "nosymfollow": 256,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": MS_RELATIME,
}


def mount_flags(options: Iterable[str]) -> int:
    """MS_* of the options of a mount, not of its file system."""
    flags = 0
    for option in options:
        flags |= _MOUNT_OPTIONS.get(option, 0)
    # What mountinfo shows by nothing.
    if not flags & (MS_RELATIME | _MOUNT_OPTIONS["noatime"]):
        flags |= MS_STRICTATIME
    return flags


def setns(fd: int, kind: int) -> None:
    """Enter a namespace of this kind (CLONE_NEW*). Raises OSError."""
    _check(_libc.setns(fd, kind), "setns")


def umount(target: str, flags: int = 0) -> None:
    """umount2(2). Raises OSError naming the target."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread."""
    _check(_libc.unshare(flags), "unshare")


def set_link_up(name: str) -> None:
    """Bring a network interface of this thread's network namespace up."""
    fd = _check(_libc.socket(_AF_INET, _SOCK_DGRAM_CLOEXEC, 0), "socket")
    try:
        request = struct.pack("16sh14x", name.encode(), 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(fd, _SIOCGIFFLAGS, request))
        request = struct.pack("16sh14x", name.encode(), flags | _IFF_UP)
        fcntl.ioctl(fd, _SIOCSIFFLAGS, request)
    finally:
        os.close(fd)


def finit_module(path: str, parameters: str = "") -> None:
    """Load a kernel module from a file; one that is loaded already is no error."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_syscall(_NR_FINIT_MODULE, fd, parameters.encode(), 0), path)
    except FileExistsError:
        pass
    finally:
        os.close(fd)


def kexec_file_load(kernel: str, initrd: str, cmdline: str) -> None:
    """Load a kernel for LINUX_REBOOT_CMD_KEXEC. Raises OSError (EPERM: lockdown or not root)."""
    kernel_fd = os.open(kernel, os.O_RDONLY | os.O_CLOEXEC)
    try:
        initrd_fd = os.open(initrd, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = cmdline.encode() + b"\0"
            result = _syscall(
                _NR_KEXEC_FILE_LOAD,
                kernel_fd,
                initrd_fd,
                ctypes.c_ulong(len(text)),
                text,
                ctypes.c_ulong(0),
            )
            _check(result, kernel)
        finally:
            os.close(initrd_fd)
    finally:
        os.close(kernel_fd)


def kexec_unload() -> None:
    """Forget the kernel that kexec_file_load() loaded."""
    _check(
        _syscall(_NR_KEXEC_FILE_LOAD, -1, -1, ctypes.c_ulong(0), None, KEXEC_FILE_UNLOAD),
        "kexec unload",
    )


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A descriptor of another process as one of ours, close-on-exec. Raises OSError."""
    return _check(
        _syscall(_NR_PIDFD_GETFD, pidfd, number, ctypes.c_uint(0)), f"descriptor {number}"
    )


def take_descriptor(pid: int, number: int) -> int:
    """pidfd_getfd() for who has no pidfd. Raises OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        return pidfd_getfd(pidfd, number)
    finally:
        os.close(pidfd)


def open_by_handle(directory: int, kind: int, handle: bytes) -> int:
    """open_by_handle_at(2), for its path only. ``directory``: an open one of the file system.

    Raises OSError (ESTALE: no such file any more).
    """
    packed = struct.pack("Ii", len(handle), kind) + handle
    flags = os.O_PATH | os.O_CLOEXEC
    return _check(_syscall(_NR_OPEN_BY_HANDLE_AT, directory, packed, flags), "file handle")


def ioprio_get(thread: int) -> int:
    """A thread's own I/O priority, class and level in one; 0 if it follows the nice value."""
    return _check(_syscall(_NR_IOPRIO_GET, _IOPRIO_WHO_PROCESS, thread), f"thread {thread}")


def ioprio_set(thread: int, priority: int) -> None:
    """Set what :func:`ioprio_get` returned."""
    _check(_syscall(_NR_IOPRIO_SET, _IOPRIO_WHO_PROCESS, thread, priority), f"thread {thread}")


def process_madvise(pidfd: int, address: int, length: int, advice: int) -> None:
    """process_madvise(2) on one range. Raises OSError (EINVAL: not for this range)."""
    vector = struct.pack("QQ", address, length)
    result = _syscall(
        _NR_PROCESS_MADVISE,
        pidfd,
        vector,
        ctypes.c_ulong(1),
        ctypes.c_int(advice),
        ctypes.c_uint(0),
    )
    _check(result, f"process_madvise at {address:#x}")


def reboot_kexec() -> None:
    """Jump into the loaded kernel at once. Does not return unless none is loaded (OSError)."""
    _check(
        _libc.reboot(ctypes.c_int(LINUX_REBOOT_CMD_KEXEC)),
        "no kernel is loaded for kexec",
    )


def reboot_firmware() -> NoReturn:
    """Reset the machine at once: its boot loader starts what it always starts."""
    _libc.reboot(ctypes.c_int(LINUX_REBOOT_CMD_RESTART))
    raise OSError("the machine does not reboot")


def freeze_filesystem(mountpoint: str) -> None:
    """FIFREEZE: sync and hold all writes, so that the next mount replays no journal."""
    _on_directory(mountpoint, FIFREEZE)


def thaw_filesystem(mountpoint: str) -> None:
    """FITHAW. Raises OSError (EINVAL) if it was not frozen."""
    _on_directory(mountpoint, FITHAW)


def sync_filesystem(mountpoint: str) -> None:
    """syncfs(2): write what is not written yet of one file system. Raises OSError."""
    fd = os.open(mountpoint, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(fd), mountpoint)
    finally:
        os.close(fd)


def _on_directory(path: str, request: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, 0)
    finally:
        os.close(fd)


# x86-64 only, as the whole product: `rdtsc; shl $32,%rdx; or %rdx,%rax; ret`.
_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")


def _make_rdtsc() -> Callable[[], int]:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_RDTSC)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
    # The page stays mapped as long as the function can be called.
    function._page = page  # type: ignore[attr-defined]
    return function


_tsc: Callable[[], int] | None = None


def rdtsc() -> int:
    """The time stamp counter: the one clock that runs through a kexec."""
    global _tsc
    if _tsc is None:
        _tsc = _make_rdtsc()
    return _tsc()
