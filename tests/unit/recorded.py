"""The fixtures of tests/fixtures: one directory for each kernel release that was recorded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rekernel.carry.mounts.observe import MountInfo, parse_mountinfo
from rekernel.carry.network import packetfilter
from rekernel.carry.network.observe import NetworkFacts
from rekernel.carry.network.packetfilter import PacketFilter
from rekernel.criu.descriptors import Descriptor


@dataclass(frozen=True)
class Recorded:
    """One machine under one kernel."""

    directory: Path

    @property
    def release(self) -> str:
        return self.directory.name

    def text(self, name: str) -> str:
        return (self.directory / name).read_bytes().decode(errors="surrogateescape")

    def json(self, name: str) -> Any:
        return json.loads(self.text(name))

    def mounts(self, name: str = "mountinfo") -> list[MountInfo]:
        return parse_mountinfo(self.text(name))

    def network(self, name: str) -> NetworkFacts:
        """Assembled as `network.observe()` does it."""
        return NetworkFacts(
            links=self.json(f"{name}/link.json"),
            addresses=self.json(f"{name}/address.json"),
            routes=[
                route | {"family": family}
                for family in ("-4", "-6")
                for route in self.json(f"{name}/route{family[1]}.json")
            ],
            neighbours=self.json(f"{name}/neighbour.json"),
            filter=PacketFilter(dict(packetfilter.split(self.text(f"{name}/ruleset.nft")))),
        )

    def descriptors(self, name: str) -> list[Descriptor]:
        """Assembled as `criu.descriptors` does it."""
        pid = int(self.text(f"{name}/pid"))
        found = []
        for line in self.text(f"{name}/fds").splitlines():
            number, inode, link = line.split(" ", 2)
            info = dict(
                entry.split(":", 1)
                for entry in self.text(f"{name}/fdinfo/{number}").splitlines()
                if entry.startswith(("mnt_id:", "flags:"))
            )
            found.append(
                Descriptor(
                    pid, int(number), link, int(info["mnt_id"]), int(info["flags"], 8), int(inode)
                )
            )
        return sorted(found, key=lambda item: item.number)

    def sysfs(self, name: str, root: Path) -> Path:
        """Make files and links of a recorded sysfs below a directory; returns it."""
        for line in self.text(name).splitlines():
            path, is_link, target = line.partition(" -> ")
            if is_link:
                where = root / path
                where.parent.mkdir(parents=True, exist_ok=True)
                (where.parent / target).resolve().mkdir(parents=True, exist_ok=True)
                where.symlink_to(target)
            else:
                path, _, value = line.partition(" = ")
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(value + "\n")
        return root


RECORDED = [
    Recorded(path.parent)
    for path in sorted((Path(__file__).parents[1] / "fixtures").glob("*/mountinfo"))
]
OLD, NEW = RECORDED

# For tests that hold on every kernel.
on_each_kernel = pytest.mark.parametrize("recorded", RECORDED, ids=lambda item: item.release)
