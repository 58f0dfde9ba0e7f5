"""What is seen on the new kernel, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rekernel.census import connections, snapshot
from rekernel.census.processes import parents
from rekernel.errors import RekernelError
from rekernel.report.builder import After, UnitAfter
from rekernel.report.history import History
from rekernel.systemd.units import members, show


def names(agent: Mapping[str, Any], *verdicts: str) -> list[str]:
    """The units of the old side's report with one of these verdicts."""
    units = agent.get("report", {}).get("units", [])
    return [str(item["unit"]) for item in units if not verdicts or item["verdict"] in verdicts]


def observe(agent: Mapping[str, Any], history: History) -> After:
    """Units as systemd sees them; the connections and processes of those that were carried.

    What the processes are like is kept in the history. Raises RekernelError if systemd does not
    answer.
    """
    # What was no unit has a control group for a name.
    wanted = [name for name in names(agent) if not name.startswith("/")]
    units = {}
    pids: list[int] = []
    carried = set(names(agent, "carried"))
    shown = show(wanted)
    found = members(shown, parents())
    # systemctl names a unit by its own Id, so it is paired by order.
    for name, unit in zip(wanted, shown, strict=False):
        processes = sorted(found[unit.name])
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
    # A user's manager has started itself anew.
    managers = {str(unit.main_pid) for unit in shown if unit.is_manager}
    common = (before["processes"].keys() & seen.keys()) - managers
    old, new = ({pid: state[pid] for pid in common} for state in (before["processes"], seen))
    return After(
        units,
        open_now,
        compared=len(common),
        differences=snapshot.differences(old, new),
        changes=snapshot.changes(old, new),
    )
