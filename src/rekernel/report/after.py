"""What is seen on the new kernel, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rekernel.census import connections
from rekernel.errors import RekernelError
from rekernel.report.builder import After, UnitAfter
from rekernel.systemd.units import processes_of, show


def names(agent: Mapping[str, Any], *verdicts: str) -> list[str]:
    """The units of the old side's report with one of these verdicts."""
    units = agent.get("report", {}).get("units", [])
    return [str(item["unit"]) for item in units if not verdicts or item["verdict"] in verdicts]


def observe(agent: Mapping[str, Any]) -> After:
    """Units as systemd sees them, and the connections of those that were carried.

    Raises RekernelError if systemd does not answer.
    """
    wanted = names(agent)
    units = {}
    pids: list[int] = []
    carried = set(names(agent, "carried"))
    # systemctl names a unit by its own Id, so it is paired by order.
    for name, unit in zip(wanted, show(wanted), strict=False):
        processes = sorted(processes_of(unit.cgroup)) if unit.cgroup else []
        units[name] = UnitAfter(
            active=unit.active == "active",
            main_pid=unit.main_pid,
            cgroup=unit.cgroup,
            processes=tuple(processes),
        )
        if name in carried:
            pids += processes
    try:
        open_now = connections.established(pids)
    except RekernelError:
        open_now = []
    return After(units, open_now)
