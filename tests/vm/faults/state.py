#!/usr/bin/python3
"""What a failed upgrade must leave as it was. Run in the guest.

Usage: state.py record|compare FILE UNIT...   prints a line per difference; exit code 1 if any
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_SETTINGS = (
    "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan",
    "/sys/kernel/mm/ksm/run",
    "/proc/sys/vm/compaction_proactiveness",
    "/sys/devices/system/memory/auto_online_blocks",
    "/sys/kernel/kexec_loaded",
)

# How often to count descriptors.
_LOOKS = 4


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout


def _frozen() -> list[str]:
    return [
        str(path.parent)
        for path in Path("/sys/fs/cgroup").glob("**/cgroup.events")
        if "frozen 1" in path.read_text()
    ]


def _processes(name: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text().strip() == name:
                found.append(entry.name)
        except OSError:
            continue
    return found


def _descriptors(pid: str) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        return 0


def _unit(name: str) -> dict[str, Any]:
    names = ("ActiveState", "SubState", "MainPID", "ControlGroup", "NRestarts")
    text = _run("systemctl", "show", name, *(f"--property={one}" for one in names))
    facts: dict[str, Any] = dict(line.split("=", 1) for line in text.splitlines())
    procs = Path("/sys/fs/cgroup", facts["ControlGroup"].lstrip("/"), "cgroup.procs")
    facts["processes"] = {}
    for pid in procs.read_text().split():
        status = Path("/proc", pid, "status").read_text().splitlines()
        fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        facts["processes"][pid] = {
            "tracer": fields["TracerPid"],
            "stopped": fields["State"][0] in "tT",
            "blocked": fields["SigBlk"],
            "descriptors": _descriptors(pid),
            "seccomp": fields["Seccomp"],
        }
    return facts


def observe(units: list[str]) -> dict[str, Any]:
    """Everything, as JSON can hold it."""
    probe = Path("/var/lib/rekernel-state-probe")
    # Hangs, and is given up by whoever waits for us, if the file system is still frozen.
    probe.write_text("x")
    probe.unlink()
    return {
        "frozen control groups": _frozen(),
        "nftables": _run("nft", "list", "tables"),
        "criu": _processes("criu"),
        "pager": _processes("rekernel-pager"),
        "mounts": sorted(
            line.split(" ", 4)[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            # These come and go with logins and with units.
            if " /run/user/" not in line and " /run/credentials/" not in line
        ),
        "settings": {path: Path(path).read_text() for path in _SETTINGS if Path(path).exists()},
        "swap": _run("swapon", "--show=NAME,PRIO", "--noheadings"),
        "undo list": Path("/run/rekernel/undo.json").exists(),
        "upgrade unit": _run(
            "systemctl", "show", "rekernel-upgrade.service", "--property=ActiveState"
        ),
        "units": {unit: _unit(unit) for unit in units},
    }


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Words for each leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted({*before, *now})
            for line in differences(before.get(key), now.get(key), f"{where}/{key}")
        ]
    return [] if before == now else [f"{where}: was {before!r}, is {now!r}"]


def settled(units: list[str]) -> dict[str, Any]:
    """Everything, when no program has a file open for an instant only.

    Redis reads /proc/self/stat ten times a second: of several looks the lowest number counts.
    Everything else is as it is at the first look.
    """
    first = observe(units)
    for _ in range(_LOOKS):
        time.sleep(0.13)
        for unit in units:
            for pid, facts in first["units"][unit]["processes"].items():
                facts["descriptors"] = min(facts["descriptors"], _descriptors(pid))
    return first


def main() -> None:
    """Do what the command line says."""
    action, file, units = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    if action == "record":
        file.write_text(json.dumps(settled(units)))
        return
    found = differences(json.loads(file.read_text()), settled(units))
    print("\n".join(found))
    sys.exit(1 if found else 0)


main()
