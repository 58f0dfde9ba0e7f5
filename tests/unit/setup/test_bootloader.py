from __future__ import annotations

import subprocess

import pytest

from rekernel.carry.memory import region
from rekernel.carry.memory.dax import Range
from rekernel.errors import RekernelError
from rekernel.setup import bootloader
from rekernel.setup.bootloader import ByHand, Grub, SystemdBoot

from .conftest import Machine

WORDS = region.parameters(Range(4 << 30, 6 << 30))


@pytest.mark.parametrize("before", ["", "quiet splash", "a=$b 'c d'"])
def test_sh_keeps_every_character(machine: Machine, before: str) -> None:
    content = Grub().content(machine.host, None, WORDS).decode()
    script = f'set -e\n{content}\nprintf "%s" "$GRUB_CMDLINE_LINUX"'
    environment = {"GRUB_CMDLINE_LINUX": before, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["sh"], input=script, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{before} {' '.join(WORDS)}"


def test_words_that_grub_would_change(machine: Machine) -> None:
    with pytest.raises(RekernelError, match="would not keep"):
        Grub().content(machine.host, None, ["memmap=2G$4G"])


def test_update_grub_that_ignores_the_drop_in(machine: Machine) -> None:
    machine.write("/usr/sbin/update-grub", "#!/bin/sh\n", 0o755)
    with pytest.raises(RekernelError, match="did not take over") as error:
        Grub().update(machine.host, WORDS)
    assert "grub.cfg" in error.value.hint


def systemd_boot(machine: Machine, cmdline: str = "") -> None:
    (machine.root / "usr/sbin/update-grub").unlink()
    machine.write("/usr/bin/kernel-install", "", 0o755)
    machine.write("/boot/vmlinuz-6.12.1-amd64", "")
    machine.write("/boot/efi/loader/entries/one.conf", f"title x\noptions root=x {cmdline}\n")


def test_detection(machine: Machine) -> None:
    assert bootloader.detect(machine.host) == Grub()
    systemd_boot(machine)
    assert bootloader.detect(machine.host) == SystemdBoot()
    (machine.root / "usr/bin/kernel-install").unlink()
    assert bootloader.detect(machine.host) == ByHand()


def test_every_name_is_known() -> None:
    for loader in (Grub(), SystemdBoot(), ByHand()):
        assert bootloader.by_name(loader.name) == loader
    with pytest.raises(RekernelError, match="unknown boot loader: lilo"):
        bootloader.by_name("lilo")


def test_systemd_boot_appends(machine: Machine) -> None:
    content = SystemdBoot().content(machine.host, b"root=x ro\nquiet\n", WORDS)
    assert content.decode() == f"root=x ro quiet {' '.join(WORDS)}\n"
    assert SystemdBoot().content(machine.host, content, WORDS) == content


def test_systemd_boot_replaces_another_region(machine: Machine) -> None:
    other = region.parameters(Range(4 << 30, 5 << 30))
    before = f"root=x {' '.join(other)} quiet".encode()
    content = SystemdBoot().content(machine.host, before, WORDS).decode()
    assert content == f"root=x quiet {' '.join(WORDS)}\n"


def test_systemd_boot_without_a_file_starts_from_the_running_kernel(machine: Machine) -> None:
    machine.write("/proc/cmdline", "panic=0x1e BOOT_IMAGE=/vmlinuz initrd=\\x root=x ro\n")
    content = SystemdBoot().content(machine.host, None, WORDS).decode()
    assert content == f"root=x ro {' '.join(WORDS)}\n"


def test_systemd_boot_makes_entries_and_looks_at_them(machine: Machine) -> None:
    systemd_boot(machine, " ".join(WORDS))
    SystemdBoot().update(machine.host, WORDS)
    call = ["kernel-install", "add", "6.12.1-amd64", "/boot/vmlinuz-6.12.1-amd64"]
    assert machine.calls == [call]
    systemd_boot_entry = machine.root / "boot/efi/loader/entries/one.conf"
    systemd_boot_entry.write_text("options root=x\n")
    with pytest.raises(RekernelError, match="did not take over"):
        SystemdBoot().update(machine.host, WORDS)


def test_systemd_boot_leaves_what_others_added() -> None:
    current = f"root=x {' '.join(WORDS)} mine=1\n".encode()
    assert SystemdBoot().without(current) == b"root=x mine=1\n"
