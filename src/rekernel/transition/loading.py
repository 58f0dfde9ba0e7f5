"""The next kernel on its way into memory, beside all else that is prepared."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from rekernel import syscalls
from rekernel.attempt.undo import UndoList
from rekernel.errors import NotPermittedError, RekernelError

# How often whoever waits looks whether the attempt shall end.
_LOOK_S = 0.05


class Loading:
    """kexec_file_load(2) in a thread: the kernel reads, unpacks and hashes for seconds."""

    def __init__(
        self, image: Path, initrd: Path, cmdline: str, undo: UndoList, *, only_once: bool
    ) -> None:
        """Begins. ``only_once``: the initrd is removed when the kernel has its own copy."""
        self._image = image
        undo.push("unload-kernel")
        pool = ThreadPoolExecutor(1)
        self._done: Future[None] = pool.submit(_load, image, initrd, cmdline, only_once)
        pool.shutdown(wait=False)

    def finish(self, check: Callable[[], None]) -> None:
        """Wait until it is loaded. ``check`` raises if the attempt shall end.

        Raises RekernelError; nothing is loaded then.
        """
        while not self._done.done():
            check()
            wait([self._done], _LOOK_S)
        try:
            self._done.result()
        except PermissionError as error:
            raise NotPermittedError(
                f"the kernel refuses kexec_file_load: {error}",
                "see kernel.kexec_load_disabled and /sys/kernel/security/lockdown",
            ) from None
        except OSError as error:
            raise RekernelError(
                f"the kernel cannot load {self._image}: {error.strerror}"
            ) from error

    def end(self) -> None:
        """Wait for it, however it ends: before that nothing can be unloaded."""
        wait([self._done])


def _load(image: Path, initrd: Path, cmdline: str, only_once: bool) -> None:
    syscalls.kexec_file_load(str(image), str(initrd), cmdline)
    if only_once:
        initrd.unlink(missing_ok=True)


def jump() -> None:
    """Into the kernel that was loaded. Returns only by raising OSError."""
    syscalls.reboot_kexec()
