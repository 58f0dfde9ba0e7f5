"""Swap areas. What is swapped out can be neither left in place nor dumped without reading it in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rekernel.carry.mounts.observe import unescape
from rekernel.records import record
from rekernel.run import run


@record
class SwapArea:
    """An area in use: a device or a file, how much of it is used, and its priority."""

    name: str
    used_bytes: int
    priority: int


def observe(proc: Path = Path("/proc")) -> list[SwapArea]:
    """Swap areas that are in use (proc(5), swaps)."""
    found = []
    path = proc / "swaps"
    # A kernel may be built without.
    for line in path.read_text().splitlines()[1:] if path.exists() else []:
        name, _, _, used, priority = line.split()
        found.append(SwapArea(unescape(name), int(used) * 1024, int(priority)))
    return found


def shortage(areas: Sequence[SwapArea], proc: Path = Path("/proc")) -> str:
    """Why what is swapped out would not fit into memory, in words; "" if it does."""
    used = sum(area.used_bytes for area in areas)
    fields = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    if used <= available:
        return ""
    return f"{used >> 20} MiB are swapped out, {available >> 20} MiB of memory are available"


def turn_on(name: str, priority: int) -> None:
    """Use an area, unless it is in use. Raises CommandFailedError."""
    if name not in [area.name for area in observe()]:
        # Negative ones are the kernel's own choice.
        wish = ["--priority", str(priority)] if priority >= 0 else []
        run(["swapon", *wish, "--", name])
