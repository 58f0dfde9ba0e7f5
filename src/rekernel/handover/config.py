"""What is fixed when the initrd is built, and lies inside of it. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rekernel.carry.device_mapper.entry import MappedDevice
from rekernel.carry.disks.entry import RootConfig
from rekernel.carry.memory.entry import Extent
from rekernel.carry.mounts.entry import Mount
from rekernel.carry.raid.entry import RaidArray
from rekernel.records import asdict, field, record
from rekernel.typed_json import build


@record
class AgentConfig:
    """Enough to find the handover, and to boot the machine normally without one."""

    machine_id: str
    root: RootConfig
    # Modules by wave: each wave needs only what earlier ones loaded. Paths in the initrd.
    modules: tuple[tuple[str, ...], ...]
    # The carry region and, inside of it, the store; None for the image back-end.
    region: Extent | None
    store: Extent | None
    # The store's file, for the image back-end; "" with a region.
    store_file: str
    init: tuple[str, ...]
    # Lets criu check the kernel once, before the trees are restored in parallel.
    criu_check: tuple[str, ...]
    # Programs that the restore starts, with their libraries: read ahead while other work runs.
    prefetch: tuple[str, ...] = ()
    # Of modules: path in the initrd -> text.
    parameters: dict[str, str] = field(default_factory=dict)
    # Those that file systems lie on: arrays, and on these or on disks what is mapped, each below
    # those that stand on it.
    arrays: tuple[RaidArray, ...] = ()
    mapped: tuple[MappedDevice, ...] = ()
    # Mounted right after the root, as programs of the agent lie there.
    early: tuple[Mount, ...] = ()
    # What the store's file lies in, mounted for that alone; None for the root file system.
    store_mount: Mount | None = None
    # What the kernel before did when it panicked (kernel.panic), for init; "": it stays as it is.
    panic: str = ""


def dump_config(config: AgentConfig) -> dict[str, Any]:
    """The configuration as plain data, which can be used before this module is imported."""
    raw: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return raw


def load_config(raw: Mapping[str, Any]) -> AgentConfig:
    """Raises ShapeError if something is missing or wrong."""
    config = build(AgentConfig, raw, "configuration")
    assert isinstance(config, AgentConfig)
    return config
