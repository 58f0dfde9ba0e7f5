"""What file systems lie on, down to the disks: what of it the agent can set up again."""

from __future__ import annotations

import re
from pathlib import Path

from rekernel.carry.block import observe as sysblock
from rekernel.carry.block import superblocks
from rekernel.carry.block.observe import NoWayBackError, line
from rekernel.carry.device_mapper.entry import MappedDevice, MappedTarget
from rekernel.carry.raid import observe as raid
from rekernel.carry.raid.entry import RaidArray
from rekernel.errors import RekernelError
from rekernel.run import run

# Of the device mapper, those whose table says it all: nothing is only in memory, and no key.
_KINDS = ("linear", "striped")
_DEV_BLOCK = Path("/sys/dev/block")
# Drivers that stand on other devices, and disks of another machine.
_VIRTUAL = re.compile(r"/devices/virtual/|/session\d+/")
_NUMBER = re.compile(r"\d+:\d+")


class Stack:
    """What some block devices stand on, down to the disks."""

    def __init__(self) -> None:
        self._arrays: dict[str, RaidArray] = {}
        self._mapped: dict[str, MappedDevice] = {}
        self._disks: dict[str, None] = {}

    @property
    def arrays(self) -> tuple[RaidArray, ...]:
        """Arrays of the md driver; each on disks only."""
        return tuple(self._arrays.values())

    @property
    def mapped(self) -> tuple[MappedDevice, ...]:
        """Devices of the device mapper, each below those that stand on it."""
        return tuple(self._mapped.values())

    @property
    def disks(self) -> tuple[str, ...]:
        """Disks and partitions, by their names in /dev."""
        return tuple(self._disks)

    def add(self, path: str) -> None:
        """A device, by its node. Raises NoWayBackError, or OSError if it is gone."""
        self._add(sysblock.number_of(path))

    def _add(self, number: str) -> Path:
        block = (_DEV_BLOCK / number).resolve(strict=True)
        if (block / "dm").exists():
            self._add_mapped(block, number)
        elif raid.is_array(block):
            self._add_array(block)
        elif _VIRTUAL.search(str(block)):
            raise NoWayBackError("no plain disk")
        else:
            self._disks.setdefault(f"/dev/{block.name}")
        return block

    def _add_array(self, block: Path) -> None:
        if block.name not in self._arrays:
            disks = [self._add(number) for number in raid.disks(block)]
            self._arrays[block.name] = raid.observe(block, disks)

    def _add_mapped(self, block: Path, number: str) -> None:
        name = line(block / "dm" / "name")
        if name in self._mapped:
            return
        major, minor = number.split(":")
        try:
            lines = run(["dmsetup", "table", "-j", major, "-m", minor]).splitlines()
        except RekernelError as error:
            raise NoWayBackError(f"whose table cannot be read: {error.message}") from None
        below: dict[str, None] = {}
        targets = []
        for entry in lines:
            start, sectors, kind, parameters = entry.split(" ", 3)
            if kind not in _KINDS:
                raise NoWayBackError(f'a "{kind}" of the device mapper')
            text = _NUMBER.sub(lambda match: self._place(match[0], below), parameters)
            targets.append(MappedTarget(int(start), int(sectors), kind, text))
        if line(block / "dm" / "suspended") != "0":
            raise NoWayBackError("which is suspended")
        self._mapped[name] = MappedDevice(
            name=name,
            uuid=line(block / "dm" / "uuid"),
            read_only=line(block / "ro") == "1",
            targets=tuple(targets),
            below=tuple(below),
            udev=sysblock.known_to_udev(number, "E:DM_"),
        )

    def _place(self, number: str, below: dict[str, None]) -> str:
        """What stands in a table for this device: "{0}" for the first of ``below``."""
        block = self._add(number)
        if (block / "dm").exists():
            key = f"mapped={line(block / 'dm' / 'name')}"
        else:
            reader = superblocks.volume_on
            uuid = sysblock.only_here(block.name, reader, "no volume of LVM")
            key = f"volume={uuid}"
        below.setdefault(key)
        return f"{{{list(below).index(key)}}}"
