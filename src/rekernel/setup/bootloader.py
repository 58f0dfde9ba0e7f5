"""How words get on the kernel command line: GRUB, systemd-boot, or by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rekernel.carry.memory import region
from rekernel.errors import RekernelError
from rekernel.kernel import cmdline
from rekernel.records import record
from rekernel.setup.host import Host

GRUB_DROP_IN = "/etc/default/grub.d/rekernel.cfg"
GRUB_CFG = "/boot/grub/grub.cfg"
KERNEL_CMDLINE = "/etc/kernel/cmdline"
_ESP = ("/boot", "/boot/efi", "/efi")


class BootLoader(Protocol):
    """One way to give the kernel its words."""

    @property
    def name(self) -> str:
        """The name in the record of setup."""
        ...

    @property
    def file(self) -> str | None:
        """The configuration file that is written."""
        ...

    @property
    def command(self) -> str:
        """What :meth:`update` runs, for people; "" if nothing."""
        ...

    def content(self, host: Host, before: bytes | None, words: Sequence[str]) -> bytes:
        """The file with these words, given what it was."""
        ...

    def without(self, current: bytes) -> bytes | None:
        """The file without our words, if someone changed it since; None: remove it."""
        ...

    def update(self, host: Host, words: Sequence[str]) -> None:
        """Make the configuration take effect. Raises RekernelError unless the words arrived."""
        ...


@record
class Grub:
    """Debian's GRUB: a drop-in file that update-grub reads with sh."""

    name: str = "grub"
    file: str | None = GRUB_DROP_IN
    command: str = "update-grub"

    def content(self, host: Host, before: bytes | None, words: Sequence[str]) -> bytes:
        """Within double quotes sh takes `!`, `%`, `+` and `#` as they are, and so does GRUB."""
        if any(set(word) & set("$`\"\\' ;|&<>{}") for word in words):
            raise RekernelError(f"GRUB would not keep these words: {' '.join(words)}")
        return (
            "# Written by `rekernel setup`; taken back by `rekernel setup --undo`.\n"
            "# The carry region: memory whose pages stay where they are in a kernel upgrade.\n"
            f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {" ".join(words)}"\n'
        ).encode()

    def without(self, current: bytes) -> bytes | None:
        """Remove the file, which is ours as a whole."""
        return None

    def update(self, host: Host, words: Sequence[str]) -> None:
        """Run update-grub, and look at what came out of it."""
        host.run(["update-grub"], timeout=300)
        entries = [
            line.split()
            for line in host.text(GRUB_CFG).splitlines()
            if line.split()[:1] in (["linux"], ["linuxefi"])
        ]
        if words and not any(set(words) <= set(entry) for entry in entries):
            raise RekernelError(
                f"update-grub did not take over {GRUB_DROP_IN}",
                f"no entry in {GRUB_CFG} has {words[0]}: is GRUB_CMDLINE_LINUX set elsewhere?",
            )


@record
class SystemdBoot:
    """systemd-boot: one file with the command line, and an entry per kernel made from it."""

    name: str = "systemd-boot"
    file: str | None = KERNEL_CMDLINE
    command: str = "kernel-install"

    def content(self, host: Host, before: bytes | None, words: Sequence[str]) -> bytes:
        """What is there, or else what kernel-install itself falls back to, and the words."""
        if before is None:
            running = host.text("/usr/lib/kernel/cmdline") or host.text("/proc/cmdline")
            present = cmdline.lasting(running)
        else:
            present = before.decode().split()
        return (" ".join([*_foreign(present), *words]) + "\n").encode()

    def without(self, current: bytes) -> bytes | None:
        """The file is the administrator's."""
        return (" ".join(_foreign(current.decode().split())) + "\n").encode()

    def update(self, host: Host, words: Sequence[str]) -> None:
        """Make the entries of all installed kernels again."""
        for image in sorted(host.path("/boot").glob("vmlinuz-*")):
            version = image.name.removeprefix("vmlinuz-")
            host.run(["kernel-install", "add", version, f"/boot/{image.name}"], timeout=300)
        options = [
            line.split()
            for entry in _entries(host)
            for line in host.text(entry).splitlines()
            if line.startswith("options")
        ]
        if words and not any(set(words) <= set(entry) for entry in options):
            raise RekernelError(
                f"kernel-install did not take over {KERNEL_CMDLINE}",
                f"no boot loader entry has {words[0]}",
            )


@record
class ByHand:
    """A boot loader that we do not know: the administrator adds the words."""

    name: str = "by hand"
    file: str | None = None
    command: str = ""

    def content(self, host: Host, before: bytes | None, words: Sequence[str]) -> bytes:
        """Never asked for."""
        raise NotImplementedError

    def without(self, current: bytes) -> bytes | None:
        """Never asked for."""
        raise NotImplementedError

    def update(self, host: Host, words: Sequence[str]) -> None:
        """Nothing to run."""


def _foreign(words: Sequence[str]) -> list[str]:
    """The words that neither reserve a carry region nor divide it."""
    reserved = region.from_cmdline(" ".join(words))
    ours = set(region.parameters(reserved)) if reserved is not None else set()
    return [word for word in words if word not in ours and not region.is_store_word(word)]


def _entries(host: Host) -> list[str]:
    return [
        f"/{entry.relative_to(host.root)}"
        for place in _ESP
        for entry in sorted(host.path(f"{place}/loader/entries").glob("*.conf"))
    ]


def detect(host: Host) -> BootLoader:
    """The boot loader of this machine, as far as it can be told."""
    if host.program("update-grub"):
        return Grub()
    if host.program("kernel-install") and any(
        host.path(f"{place}/loader/entries").is_dir() for place in _ESP
    ):
        return SystemdBoot()
    return ByHand()


def by_name(name: str) -> BootLoader:
    """The boot loader on record. Raises RekernelError for one that we do not know."""
    known: tuple[BootLoader, ...] = (Grub(), SystemdBoot(), ByHand())
    for loader in known:
        if loader.name == name:
            return loader
    raise RekernelError(f"the record of setup names an unknown boot loader: {name}")
