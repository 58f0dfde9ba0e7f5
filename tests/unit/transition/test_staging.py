"""Before anything is frozen: command line, clock, and a kernel that does not want to be loaded."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from recorded import Recorded, on_each_kernel

from rekernel import syscalls
from rekernel.errors import BlockedError, NotPermittedError, RekernelError
from rekernel.handover.config import RootConfig
from rekernel.host import mounts
from rekernel.kernel import initrd, modules
from rekernel.kernel.installed import Kernel
from rekernel.kernel.modules import ModuleSet
from rekernel.transition import staging
from rekernel.transition.undo import UndoList


@on_each_kernel
def test_command_line(recorded: Recorded) -> None:
    kept = recorded.text("cmdline").strip()
    assert staging.new_cmdline(kept + "\n") == kept
    before = f"BOOT_IMAGE=/boot/vmlinuz-6.12 initrd=\\old.img {kept} rdinit=/init"
    assert staging.new_cmdline(before) == kept


def test_clock() -> None:
    calibration = staging.TscCalibration()
    time.sleep(0.02)
    assert 100_000_000 < calibration.hertz() < 10_000_000_000


def test_a_clock_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "rdtsc", lambda: 5)
    with pytest.raises(BlockedError, match="the time stamp counter of this machine stands still"):
        staging.TscCalibration().hertz()


def test_parents() -> None:
    assert staging.parents()[os.getpid()] == os.getppid()


@pytest.mark.parametrize(
    ("number", "kind", "message", "code"),
    [
        (errno.EPERM, NotPermittedError, "the kernel refuses kexec_file_load: ", 8),
        (errno.ENOEXEC, RekernelError, "the kernel cannot load /boot/k: Exec format error", 1),
        (errno.ENOENT, RekernelError, "the kernel cannot load /boot/k: No such file", 1),
        (errno.ENOMEM, RekernelError, "the kernel cannot load /boot/k: Cannot allocate", 1),
    ],
)
def test_a_kernel_that_is_not_loaded(
    number: int,
    kind: type[RekernelError],
    message: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(kernel: str, initrd: str, cmdline: str) -> None:
        assert Path(initrd).read_bytes() == b"archive"
        raise OSError(number, os.strerror(number), kernel)

    root = RootConfig("uuid", "ext4", 0, "")
    monkeypatch.setattr(staging, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(staging, "machine_id", lambda: "id")
    monkeypatch.setattr(mounts, "root_config", lambda table: (root, "/dev/vda"))
    monkeypatch.setattr(modules, "needed_aliases", lambda device, fstypes: [])
    monkeypatch.setattr(modules, "resolve", lambda release, aliases: ModuleSet(()))
    monkeypatch.setattr(initrd, "build", lambda config, chosen: b"archive")
    monkeypatch.setattr(syscalls, "kexec_file_load", refuse)
    undo = UndoList(tmp_path / "undo.json")
    with pytest.raises(kind, match=message) as error:
        _load(Kernel("7.3", Path("/boot/k"), Path("/m")), undo)
    assert error.value.exit_code == code
    # Half loaded or not: it is unloaded.
    assert (tmp_path / "undo.json").read_text() == '[["unload-kernel", ""]]'


def _load(kernel: Kernel, undo: UndoList) -> None:
    staging.load_kernel(kernel, None, Path("/store"), "root=x", undo=undo)
