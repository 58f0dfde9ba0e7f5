"""What the blackout benchmark found: as JSON, as a table, and against what is wanted."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

IN_PLACE = "in place"
IMAGE = "image"
KEXEC = "kexec reboot"
COLD = "cold reboot"

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Measurement:
    """One change of kernel. Seconds; phases are those of the blackout, in their order.

    A reboot has no blackout of ours: there is only what a client saw.
    """

    method: str
    size_mib: int
    client_gap_s: float
    blackout_s: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    resident_bytes: int = 0
    bytes_copied: int = 0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure and what it should be."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether it is what it should be."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(slots=True)
class Found:
    """Filled while the benchmark goes on."""

    facts: dict[str, Any] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    # From the reboot system call to the first instruction of /init.
    floor_s: list[float] = field(default_factory=list)

    @property
    def floor(self) -> float | None:
        """The floor in seconds."""
        return statistics.median(self.floor_s) if self.floor_s else None

    def sizes(self) -> list[int]:
        """The sizes that were measured, ascending."""
        return sorted({one.size_mib for one in self.measurements if one.method == IN_PLACE})

    def of(self, method: str, size: int) -> list[Measurement]:
        """All rounds of one measurement."""
        return [one for one in self.measurements if (one.method, one.size_mib) == (method, size)]

    def blackout(self, method: str, size: int) -> float | None:
        """The median of all rounds, None if there is none."""
        found = [one.blackout_s for one in self.of(method, size) if one.blackout_s is not None]
        return statistics.median(found) if found else None

    def typical(self) -> list[Measurement]:
        """For each way of carrying memory the round in the middle, by its blackout."""
        rounds: dict[tuple[str, int], list[Measurement]] = {}
        for one in self.measurements:
            if one.blackout_s is not None:
                rounds.setdefault((one.method, one.size_mib), []).append(one)
        return [
            sorted(group, key=lambda one: one.blackout_s or 0.0)[(len(group) - 1) // 2]
            for group in rounds.values()
        ]

    def ratios(self) -> list[Ratio]:
        """What can be said about what was measured."""
        sizes = self.sizes()
        if not sizes:
            return []
        small, large = sizes[0], sizes[-1]
        in_place = {size: self.blackout(IN_PLACE, size) or 0.0 for size in sizes}
        found = []
        if small != large:
            name = f"in place, {large} MiB / {small} MiB"
            found.append(Ratio(name, in_place[large] / in_place[small], 1.15))
        image = self.blackout(IMAGE, large)
        if image is not None:
            name = f"image / in place, {large} MiB"
            found.append(Ratio(name, image / in_place[large], 4, at_least=True))
        if self.floor:
            worst = max(in_place.values()) / self.floor
            found.append(Ratio("in place / floor, the worst size", worst, 2.5))
        shares = [
            one.bytes_copied / one.resident_bytes
            for one in self.measurements
            if one.method == IN_PLACE and one.size_mib >= 512 and one.resident_bytes
        ]
        if shares:
            found.append(Ratio("copied / resident, 512 MiB and more", max(shares), 0.01))
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, in its stable form."""
        return {
            "schema": SCHEMA,
            **self.facts,
            "measurements": [asdict(one) for one in self.measurements],
            "floor_s": self.floor_s,
            "ratios": [asdict(one) | {"reached": one.reached} for one in self.ratios()],
        }


def phases_of_blackout(report: Mapping[str, Any]) -> dict[str, float]:
    """Phase -> seconds, for the phases between the first freeze and the last resume.

    Where one runs beside another they add up to more than the blackout.
    """
    frozen, resumed = report["frozen_ns"], report["resumed_ns"]
    found: dict[str, float] = {}
    for phase in report["phases"]:
        start, end = max(phase["start_ns"], frozen), min(phase["end_ns"], resumed)
        if end > start:
            found[phase["name"]] = found.get(phase["name"], 0.0) + (end - start) / 1e9
    return {name: round(seconds, 3) for name, seconds in found.items()}


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = cells
    padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
    return "  ".join([first.ljust(widths[0]), *padded]).rstrip()


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_row(row, widths) for row in rows]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(one: Measurement) -> str:
    return f"{one.bytes_copied / one.resident_bytes:.2%}" if one.resident_bytes else "-"


def table(found: Found) -> str:
    """The result for people."""
    lines = [", ".join(f"{name} {value}" for name, value in found.facts.items()), ""]
    rows = [("method", "MiB", "blackout s", "client gap s", "copied")]
    for one in found.measurements:
        rows.append(
            (one.method, str(one.size_mib), _seconds(one.blackout_s),
             _seconds(one.client_gap_s), _share(one))
        )  # fmt: skip
    floors = ", ".join(_seconds(one) for one in found.floor_s)
    lines += [*grid(rows), "", f"floor: reboot(2) to /init: {floors} s", ""]
    columns = {f"{one.method} {one.size_mib}": one.phases for one in found.typical() if one.phases}
    lines += ["blackout by phase in the middle round, s", *phase_lines(columns), ""]
    return "\n".join([*lines, *ratio_lines(found.ratios())])


def ratio_lines(ratios: Sequence[Ratio]) -> list[str]:
    """Each with what it should be, and whether it is."""
    rows = [
        (
            ratio.name,
            f"{ratio.value:.3f}",
            f"{'>=' if ratio.at_least else '<='} {ratio.limit:g}",
            "reached" if ratio.reached else "NOT REACHED",
        )
        for ratio in ratios
    ]
    return grid(rows) if rows else []


def phase_lines(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Phases of several blackouts beside each other: name of each -> phase -> seconds."""
    names = list(dict.fromkeys(name for phases in columns.values() for name in phases))
    head = ("", *columns)
    rows = [(name, *(_seconds(one.get(name)) for one in columns.values())) for name in names]
    return grid([head, *rows]) if columns else []
