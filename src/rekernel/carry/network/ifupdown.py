"""What ifupdown knows of interfaces, which are as before on the next kernel.

It would add their addresses a second time, and fail. Those for which it has left a program running
(a DHCP client) it sets up again, as that does not travel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rekernel.systemd.units import active, processes_of, show

_RUN = Path("/run/network")
_SERVICES = ("networking.service", "ifup@*.service")


def files(run: Path = _RUN) -> dict[str, str]:
    """Path -> text of its notes (interfaces(5), ifup(8)); none where it is not used."""
    try:
        lines = (run / "ifstate").read_text().splitlines()
    except OSError:
        return {}
    served = _served()
    kept = [line for line in lines if not served & {_device(line), line.partition("=")[0]}]
    noted = {"ifstate": "".join(f"{line}\n" for line in kept)}
    for line in kept:
        name, _, logical = line.partition("=")
        noted[f"ifstate.{name}"] = f"{logical}\n"
    return {f"{run}/{name}": text for name, text in noted.items()}


def _device(line: str) -> str:
    """Of an alias, eth0:1, what it is an alias of."""
    return line.partition("=")[0].partition(":")[0]


def _served() -> set[str]:
    """What programs that it has left running were told: their interfaces are among these words."""
    units = show(active(".service", states=["active"], patterns=_SERVICES))
    return set(_words(pid for unit in units if unit.cgroup for pid in processes_of(unit.cgroup)))


def _words(pids: Iterable[int]) -> Iterable[str]:
    for pid in pids:
        try:
            command = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            continue
        yield from command.replace("\0", " ").split()
