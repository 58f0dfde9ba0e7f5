"""A machine made of a directory: its update-grub is real sh, its systemctl a table."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rekernel.run import CommandFailedError
from rekernel.setup.host import Host
from rekernel_lab.images.guestfiles import DEFAULT_GRUB, UPDATE_GRUB

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass
class Machine:
    """What runs on it, recorded; ``fail`` names a program that fails from now on."""

    root: Path
    calls: list[list[str]] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    fail: str = ""
    interrupt: str = ""

    @property
    def host(self) -> Host:
        return Host(self.root, self.run)

    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float | None = 120) -> str:
        self.calls.append(list(argv))
        if self.interrupt == argv[0]:
            self.interrupt = ""
            raise KeyboardInterrupt
        if self.fail and self.fail == " ".join(argv[: len(self.fail.split())]):
            raise CommandFailedError(argv, 1, "as the test wishes")
        if argv[0] == "update-grub":
            environment = {**os.environ, "LAB_ROOT": str(self.root)}
            program = str(self.root / "usr/sbin/update-grub")
            subprocess.run(["sh", program], env=environment, check=True)
        if argv[:2] == ["systemctl", "is-enabled"]:
            return self.states.get(argv[-1], "enabled") + "\n"
        if argv[:2] == ["systemctl", "enable"]:
            self.states[argv[-1]] = "enabled"
        if argv[:2] == ["systemctl", "disable"]:
            self.states[argv[-1]] = "disabled"
        return ""

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        where = self.root / path.lstrip("/")
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)
        where.chmod(mode)
        return where

    def tree(self) -> dict[str, tuple[int, bytes | None]]:
        """Everything below /etc and /boot: mode, and content of files."""
        return {
            str(path.relative_to(self.root)): (
                path.stat().st_mode,
                path.read_bytes() if path.is_file() else None,
            )
            for top in ("etc", "boot")
            for path in sorted((self.root / top).rglob("*"))
        }

    def booted(self) -> str:
        """The kernel command line that the boot loader would use."""
        words = (self.root / "boot/grub/grub.cfg").read_text().splitlines()[-1].split()
        return " ".join(words[2:])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Debian with GRUB and 4 GiB, as recorded in a guest."""
    made = Machine(tmp_path)
    made.write("/proc/iomem", (FIXTURES / "iomem-6.12-4g").read_text())
    made.write("/proc/cmdline", "root=LABEL=lab-root ro console=ttyS0,115200 quiet\n")
    made.write("/sys/devices/system/memory/block_size_bytes", "8000000\n")
    made.write("/etc/default/grub", DEFAULT_GRUB)
    made.write("/usr/sbin/update-grub", UPDATE_GRUB, 0o755)
    made.write("/etc/rekernel/rekernel.toml", "")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    made.run(["update-grub"])
    made.calls.clear()
    return made
