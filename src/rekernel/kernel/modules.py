"""Which modules the agent loads: those of this machine's devices, resolved for another kernel."""

from __future__ import annotations

import lzma
import os
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from rekernel.errors import BlockedError
from rekernel.records import field, record
from rekernel.run import run

# Needed whatever the hardware: the carry region and the page map's device, the packet filter.
FOR_REGION = ("dax_hmem", "device_dax")
ALWAYS = (*FOR_REGION, "nf_tables")

_MODULES = Path("/usr/lib/modules")


@record
class ModuleSet:
    """Module files in waves: each needs only modules of earlier ones."""

    waves: tuple[tuple[Path, ...], ...]
    # File -> parameters, of modprobe.d(5) and the kernel command line.
    parameters: dict[Path, str] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """All of them, in a working order."""
        return [path for wave in self.waves for path in wave]


def _device_aliases(device: Path) -> list[str]:
    """The modaliases of a device and of everything that it hangs on."""
    aliases = []
    path = Path(os.path.realpath(device))
    while path != Path("/sys/devices") and path != Path("/"):
        modalias = path / "modalias"
        if modalias.is_file():
            aliases.append(modalias.read_text().strip())
        path = path.parent
    return aliases


def needed_aliases(
    disks: Sequence[str], fstypes: Sequence[str], link_kinds: Sequence[str]
) -> list[str]:
    """What must be loaded to reach these disks, the network, and all that is mounted.

    ``link_kinds``: "vlan", "bridge", …: of the interfaces that stand on others.
    """
    aliases: list[str] = []
    for disk in disks:
        number = os.stat(disk).st_rdev
        block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        aliases += _device_aliases(block)
    for link in sorted(Path("/sys/class/net").iterdir()):
        if (link / "device").exists():
            aliases += _device_aliases(link / "device")
    aliases += [f"fs-{fstype}" for fstype in fstypes]
    aliases += [f"rtnl-link-{kind}" for kind in link_kinds]
    aliases += ALWAYS
    return list(dict.fromkeys(aliases))


def resolve(release: str, aliases: list[str]) -> ModuleSet:
    """Module files of kernel ``release`` for these names and aliases.

    A name that is built in, or that no module of that kernel answers to, contributes nothing.
    Raises BlockedError if the kernel's module index is missing.
    """
    if not (_MODULES / release / "modules.dep").exists():
        raise BlockedError(f"kernel {release} has no module index", f"run depmod {release}")
    chosen: dict[str, None] = {}
    parameters: dict[Path, str] = {}
    # It fails if one of them is unknown, and has told of the others.
    text = run(["modprobe", "-S", release, "--show-depends", "--all", "--", *aliases], check=False)
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "insmod":
            name, _, options = rest.strip().partition(" ")
            path = Path(os.path.realpath(name))
            chosen.setdefault(str(path))
            if options:
                parameters[path] = options
    depends = _dependencies(release, chosen)
    rank: dict[str, int] = {}

    def rank_of(name: str) -> int:
        if name not in rank:
            rank[name] = 0
            inner = [rank_of(other) + 1 for other in depends.get(name, ()) if other in chosen]
            rank[name] = max(inner, default=0)
        return rank[name]

    # Soft dependencies come first in modprobe's list but not in modules.dep: keep its order
    # within a wave, and ext4's crc32c helpers before everything that has no dependency.
    waves: dict[int, list[Path]] = {}
    for name in chosen:
        waves.setdefault(rank_of(name), []).append(Path(name))
    return ModuleSet(tuple(tuple(waves[level]) for level in sorted(waves)), parameters)


def _dependencies(release: str, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """What these modules, by their paths, need: some ten of several thousand."""
    base = os.path.realpath(_MODULES / release)
    found = {}
    for line in Path(base, "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        path = os.path.join(base, name)
        if path in names:
            found[path] = tuple(os.path.join(base, other) for other in rest.split())
    return found


def read_module(path: Path) -> bytes:
    """The module, decompressed, so that loading it in the blackout need not."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        done = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True)
        return done.stdout
    return data
