"""Scenario directories: scenario.toml and up to four executables.

scenario.toml   packages, memory_mib, region_mib, disk_mib, carry, from, upgrades, timeout_s,
                client_s
guest-prepare   in the guest as root, before the first upgrade
guest-check     in the guest as root, after each upgrade, when all of its memory is home
host-client     on the host, in the guest's network, through all upgrades (GUEST_IP, OUT_DIR);
                may create OUT_DIR/ready when its connections are open; SIGTERM ends it
guest-verify    in the guest as root, after the last upgrade
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekernel_lab.errors import UsageError

GUEST_PREPARE = "guest-prepare"
GUEST_CHECK = "guest-check"
HOST_CLIENT = "host-client"
GUEST_VERIFY = "guest-verify"
SCRIPTS = (GUEST_PREPARE, GUEST_CHECK, HOST_CLIENT, GUEST_VERIFY)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One workload and the kernels it is carried through."""

    name: str
    directory: Path
    packages: tuple[str, ...] = ()
    memory_mib: int = 6144
    region_mib: int = 2048
    # Of a second, empty disk (/dev/vdb); 0 for none.
    disk_mib: int = 0
    # None: the product's own policy decides.
    carry: tuple[str, ...] | None = None
    kernel_from: str = "6.12"
    upgrades: tuple[str, ...] = ("7",)
    timeout_s: int = 1800
    # 0: as long as it usually may take.
    client_s: int = 0

    def script(self, name: str) -> Path | None:
        """Return the path of one of SCRIPTS, None if the scenario has none.

        Raises UsageError if it is there but cannot be executed.
        """
        path = self.directory / name
        if not path.exists():
            return None
        if not os.access(path, os.X_OK):
            raise UsageError(f"{path} is not executable", hint=f"chmod +x {path}")
        return path

    def override(
        self, *, kernel_from: str = "", upgrades: Sequence[str] = (), memory_mib: int = 0
    ) -> Scenario:
        """Return the scenario with what was given on the command line in place of its own."""
        return dataclasses.replace(
            self,
            kernel_from=kernel_from or self.kernel_from,
            upgrades=tuple(upgrades) or self.upgrades,
            memory_mib=memory_mib or self.memory_mib,
        )


def load(directory: Path) -> Scenario:
    """Read a scenario directory. Raises UsageError that says what is wrong with it."""
    path = directory / "scenario.toml"
    try:
        scenario = parse(path.read_text(), directory.resolve())
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", hint="a scenario is a directory") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    for name in SCRIPTS:
        scenario.script(name)
    return scenario


def parse(content: str, directory: Path) -> Scenario:
    """Return the scenario that the text of a scenario.toml describes."""
    try:
        raw = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not TOML: {error}") from None
    fields: dict[str, Any] = {}
    readers = {
        "packages": _words,
        "memory_mib": _positive,
        "region_mib": _positive,
        "disk_mib": _positive,
        "carry": _words,
        "from": _word,
        "upgrades": _words,
        "timeout_s": _positive,
        "client_s": _positive,
    }
    for key, value in raw.items():
        if key not in readers:
            raise UsageError(f"unknown key {key!r} (known: {', '.join(readers)})")
        fields["kernel_from" if key == "from" else key] = readers[key](key, value)
    if "upgrades" in fields and not fields["upgrades"]:
        raise UsageError("upgrades is empty")
    scenario = Scenario(name=directory.name, directory=directory, **fields)
    if scenario.region_mib >= scenario.memory_mib:
        raise UsageError("region_mib must be less than memory_mib")
    return scenario


def _words(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise UsageError(f"{key} must be a list of strings")
    return tuple(value)


def _word(key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{key} must be a string")
    return value


def _positive(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UsageError(f"{key} must be a positive whole number")
    return value
