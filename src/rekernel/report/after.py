"""What is seen on the new kernel, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rekernel.census import connections, snapshot
from rekernel.errors import RekernelError
from rekernel.report.builder import After, UnitAfter
from rekernel.report.history import History
from rekernel.systemd.units import processes_of, show


def names(agent: Mapping[str, Any], *verdicts: str) -> list[str]:
    """The units of the old side's report with one of these verdicts."""
    units = agent.get("report", {}).get("units", [])
    return [str(item["unit"]) for item in units if not verdicts or item["verdict"] in verdicts]


def observe(agent: Mapping[str, Any], history: History) -> After:
    """Units as systemd sees them; the connections and processes of those that were carried.

    What the processes are like is kept in the history. Raises RekernelError if systemd does not
    answer.
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
    before = history.kept(str(agent["id"]), snapshot.BEFORE)
    if before is None:
        return After(units, open_now)
    seen = snapshot.take(pids)
    with suppress(OSError):
        history.keep(str(agent["id"]), snapshot.AFTER, {"schema": 1, "processes": seen})
    common = before["processes"].keys() & seen.keys()
    differences = snapshot.differences(before["processes"], seen)
    return After(units, open_now, len(common), differences)
