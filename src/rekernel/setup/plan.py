"""What setup would change on this machine: only what is not so already."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rekernel.carry.memory import region
from rekernel.carry.memory.dax import Range
from rekernel.errors import BlockedError
from rekernel.policy import Policy
from rekernel.records import record
from rekernel.setup import bootloader, dropins, files
from rekernel.setup.bootloader import BootLoader
from rekernel.setup.files import Record
from rekernel.setup.host import Host
from rekernel.setup.proposal import Memory, parse_iomem, propose
from rekernel.systemd.units import Unit

SERVICES = (
    "rekernel-pids.service",
    "rekernel-region.service",
    "rekernel-settings.service",
    "rekernel-containers.service",
    "rekernel-finish.service",
)
_BLOCK_SIZE = "/sys/devices/system/memory/block_size_bytes"


@record
class FileChange:
    """A file that gets another content."""

    path: str
    content: bytes
    why: str


@record
class Plan:
    """What setup would do, and what is left to the administrator."""

    region: Range
    # Bytes of the handover store that are asked for, 0 for the usual.
    store: int
    memory: Memory
    loader: BootLoader
    files: tuple[FileChange, ...]
    enable: tuple[str, ...]
    # Units whose drop-in takes effect when they are restarted.
    restart: tuple[str, ...]
    update_loader: bool
    # Whether the running kernel was booted without the region.
    reboot: bool
    recorded: bool

    @property
    def words(self) -> list[str]:
        """Words for the kernel command line."""
        return region.parameters(self.region, self.store)

    @property
    def store_bytes(self) -> int:
        """How large the handover store becomes."""
        return region.store_size(self.region, self.memory.block, self.store)

    @property
    def empty(self) -> bool:
        """Whether all of it is so already."""
        return not (self.files or self.enable or self.update_loader) and self.recorded


def read_memory(host: Host) -> Memory:
    """This machine's RAM. Raises BlockedError or NotPermittedError."""
    machine = os.uname().machine
    block = host.text(_BLOCK_SIZE).strip()
    if machine != "x86_64" or not block:
        raise BlockedError(
            f"this kernel cannot reserve a carry region ({machine}, "
            f"{'with' if block else 'without'} memory hot-plug)",
            "an amd64 kernel with CONFIG_MEMORY_HOTPLUG is needed, as Debian's are",
        )
    present = region.from_cmdline(host.text("/proc/cmdline"))
    return parse_iomem(host.text("/proc/iomem"), int(block, 16), present)


def _refuse_foreign_region(host: Host) -> None:
    directory = host.path("/etc/default/grub.d")
    others = [host.path("/etc/default/grub"), *sorted(directory.glob("*.cfg"))]
    for path in others:
        if path == host.path(bootloader.GRUB_DROP_IN) or not path.is_file():
            continue
        words = path.read_text(errors="replace").replace('"', " ").replace("'", " ")
        if region.from_cmdline(words) is not None:
            name = f"/{path.relative_to(host.root)}"
            raise BlockedError(
                f"{name} reserves a carry region already", f"remove its memmap= words from {name}"
            )


def _region(memory: Memory, record: Record | None, size: int | None) -> Range:
    if record is not None and size is None:
        return record.region
    proposed = propose(memory, size)
    if record is not None and record.region.size == proposed.size:
        return record.region
    return proposed


def _disabled(host: Host) -> list[str]:
    found = []
    for name in SERVICES:
        state = host.run(["systemctl", "is-enabled", "--", name], check=False).strip()
        if state in ("masked", "masked-runtime"):
            raise BlockedError(f"{name} is masked", f"systemctl unmask {name}")
        if state not in ("enabled", "disabled"):
            raise BlockedError(f"{name} is not installed", "install rekernel's package")
        if state == "disabled":
            found.append(name)
    return found


@record
class Wish:
    """Bytes of the region and of its store; None: as on record, or the usual."""

    region: int | None = None
    store: int | None = None


def _store(memory: Memory, known: Record | None, where: Range, size: int | None) -> int:
    """Bytes of the store to ask for, 0 for the usual."""
    if size is None:
        size = known.store if known is not None else 0
    step = memory.alignment
    wanted = -(-size // step) * step
    if wanted <= region.store_size(where, step):
        return 0
    if wanted + step > where.size:
        raise BlockedError(
            f"a store of {wanted // region.MIB} MiB leaves no room for pages in a region of "
            f"{where.size // region.MIB} MiB",
            f"a larger region: --region {(where.size + wanted) // region.MIB}M",
        )
    return wanted


def make(
    host: Host, record: Record | None, wish: Wish, units: Sequence[Unit], policy: Policy
) -> Plan:
    """The plan. Raises BlockedError if this machine cannot be set up."""
    memory = read_memory(host)
    where = _region(memory, record, wish.region)
    store = _store(memory, record, where, wish.store)
    loader = bootloader.detect(host)
    if record is not None and record.boot_loader != loader.name:
        raise BlockedError(
            f"setup was done for another boot loader ({record.boot_loader}, now {loader.name})",
            "run `rekernel setup --undo` first",
        )
    _refuse_foreign_region(host)
    words = region.parameters(where, store)
    wanted: list[FileChange] = []
    if loader.file is not None:
        current = files.read(host.path(loader.file))
        content = loader.content(host, current.data if current is not None else None, words)
        wanted.append(FileChange(loader.file, content, "reserves the carry region"))
    kept = [item.path for item in record.files if item.path != loader.file] if record else []
    needed = dropins.needed(units, policy)
    remedies = {dropins.path_of(name): remedies for name, remedies in needed.items()}
    for path in sorted({*kept, *remedies}):
        # What a unit was given it does not ask for a second time.
        present = files.read(host.path(path))
        all_of = [*remedies.get(path, ()), *dropins.in_effect(present.data if present else b"")]
        if not all_of:
            continue
        why = ", ".join(item.line for item in dropins.REMEDIES if item in all_of)
        wanted.append(FileChange(path, dropins.content(all_of), f"{why}: to be carried"))
    changes = []
    for change in wanted:
        present = files.read(host.path(change.path))
        if present is None or present.data != change.content:
            changes.append(change)
    # An earlier setup that was killed is completed.
    done = record is not None and record.state == "done"
    stale = any(item.path == loader.file for item in changes) or (record is not None and not done)
    booted = host.text("/proc/cmdline").split()
    return Plan(
        region=where,
        store=store,
        memory=memory,
        loader=loader,
        files=tuple(changes),
        enable=tuple(_disabled(host)),
        restart=tuple(
            name for name in needed if dropins.path_of(name) in {c.path for c in changes}
        ),
        update_loader=stale and bool(loader.command),
        reboot=not set(words) <= set(booted)
        or any(region.is_store_word(word) and word not in words for word in booted),
        recorded=done and record is not None and (record.region, record.store) == (where, store),
    )
