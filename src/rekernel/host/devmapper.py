"""Devices of the device mapper that file systems lie on: which the agent can set up again."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rekernel.agent import superblocks
from rekernel.errors import RekernelError
from rekernel.handover.config import MappedDevice, MappedTarget
from rekernel.run import run

# Those whose table says it all: nothing is kept in the kernel's memory, and no key.
_KINDS = ("linear", "striped")
_DEV_BLOCK = Path("/sys/dev/block")
_CLASS_BLOCK = Path("/sys/class/block")
_UDEV_DATA = Path("/run/udev/data")
# Drivers that stand on other devices, and disks of another machine.
_VIRTUAL = re.compile(r"/devices/virtual/|/session\d+/")
_NUMBER = re.compile(r"\d+:\d+")


class NoWayBackError(Exception):
    """A device that the agent cannot have on the next kernel; says why."""


class Stack:
    """What some block devices stand on, down to the disks."""

    def __init__(self) -> None:
        self._mapped: dict[str, MappedDevice] = {}
        self._disks: dict[str, None] = {}

    @property
    def mapped(self) -> tuple[MappedDevice, ...]:
        """Each below those that stand on it."""
        return tuple(self._mapped.values())

    @property
    def disks(self) -> tuple[str, ...]:
        """Disks and partitions, by their names in /dev."""
        return tuple(self._disks)

    def add(self, path: str) -> None:
        """A device, by its node. Raises NoWayBackError, or OSError if it is gone."""
        self._add(_number_of(path))

    def _add(self, number: str) -> Path:
        block = (_DEV_BLOCK / number).resolve(strict=True)
        if (block / "dm").exists():
            self._add_mapped(block, number)
        elif _VIRTUAL.search(str(block)):
            raise NoWayBackError("no plain disk")
        else:
            self._disks.setdefault(f"/dev/{block.name}")
        return block

    def _add_mapped(self, block: Path, number: str) -> None:
        name = _line(block / "dm" / "name")
        if name in self._mapped:
            return
        major, minor = number.split(":")
        try:
            lines = run(["dmsetup", "table", "-j", major, "-m", minor]).splitlines()
        except RekernelError as error:
            raise NoWayBackError(f"whose table cannot be read: {error.message}") from None
        below: dict[str, None] = {}
        targets = []
        for line in lines:
            start, sectors, kind, parameters = line.split(" ", 3)
            if kind not in _KINDS:
                raise NoWayBackError(f'a "{kind}" of the device mapper')
            text = _NUMBER.sub(lambda match: self._place(match[0], below), parameters)
            targets.append(MappedTarget(int(start), int(sectors), kind, text))
        if _line(block / "dm" / "suspended") != "0":
            raise NoWayBackError("which is suspended")
        self._mapped[name] = MappedDevice(
            name=name,
            uuid=_line(block / "dm" / "uuid"),
            read_only=_line(block / "ro") == "1",
            targets=tuple(targets),
            below=tuple(below),
            udev=_known_to_udev(number),
        )

    def _place(self, number: str, below: dict[str, None]) -> str:
        """What stands in a table for this device: "{0}" for the first of ``below``."""
        block = self._add(number)
        if (block / "dm").exists():
            key = f"mapped={_line(block / 'dm' / 'name')}"
        else:
            key = f"volume={_volume(block.name)}"
        below.setdefault(key)
        return f"{{{list(below).index(key)}}}"


def _number_of(path: str) -> str:
    number = os.stat(path).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def _volume(name: str) -> str:
    """The UUID of the physical volume on a disk or partition. Raises NoWayBackError."""
    uuid = superblocks.volume_on(f"/dev/{name}")
    if uuid is None:
        raise NoWayBackError(f"on {name}, which is no volume of LVM")
    others = (superblocks.volume_on(f"/dev/{entry.name}") for entry in _CLASS_BLOCK.iterdir())
    if sum(other == uuid for other in others) > 1:
        raise NoWayBackError(f"on {name}, whose UUID another disk has")
    return uuid


def _known_to_udev(number: str) -> tuple[str, ...]:
    try:
        lines = (_UDEV_DATA / f"b{number}").read_text().splitlines()
    except OSError:
        return ()
    return tuple(line for line in lines if line.startswith("E:DM_"))


def _line(path: Path) -> str:
    return path.read_text().removesuffix("\n")
