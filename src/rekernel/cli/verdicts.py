"""Units with their verdicts, as `check` and `plan` show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.report.layout import Paint, table


def unit_document(item: UnitVerdict) -> dict[str, Any]:
    """A unit and its verdict for JSON."""
    return {
        "unit": item.unit.name,
        "verdict": str(item.verdict),
        "reason": item.reason,
        "remedy": item.remedy,
        "main_pid": item.unit.main_pid,
        "processes": sorted(item.processes),
    }


def verdict_lines(units: Sequence[UnitVerdict], paint: Paint) -> list[str]:
    """The units as a table, those that matter most first."""
    painted = {
        Verdict.BLOCKS: paint.bad,
        Verdict.CARRIED: paint.good,
        Verdict.ENDS: paint.warn,
        Verdict.RESTARTED: paint.warn,
        Verdict.PLUMBING: paint.dim,
    }
    rows = []
    for verdict, colour in painted.items():
        for item in units:
            if item.verdict is verdict:
                why = item.reason
                if item.remedy:
                    why += f" {paint.dim('→')} {item.remedy}"
                pid = str(item.unit.main_pid or min(item.roots, default="-"))
                rows.append([item.unit.name, colour(str(verdict)), pid, why])
    return table(rows, ("unit", "verdict", "PID", "why, and what to do"), paint=paint, right=(2,))
