"""A report as text: what a person wants to know, in the order in which they ask."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rekernel.attempt.problem import Problem
from rekernel.containers.model import is_container
from rekernel.report.layout import (
    PLAIN,
    Paint,
    bar,
    human_bytes,
    human_seconds,
    plural,
    short,
    table,
)
from rekernel.report.losses import Loss

_PAGE = 4096
_DIFFERENCES = 12
# More processes than this with the same difference share a line.
_ALIKE = 3

# Those of which an administrator must know.
BAD = ("failed", "not-undone")
_OUTCOMES = {
    "done": "done",
    "degraded": "done, but not everything was carried over",
    "rolled-back": "undone: everything runs on under the old kernel",
    "not-undone": "failed, and not all of it is undone",
    "failed": "failed",
    "refused": "refused: nothing was touched",
}


def outcome_words(report: Mapping[str, Any], paint: Paint = PLAIN) -> str:
    """The outcome in words."""
    outcome = str(report["outcome"])
    words = _OUTCOMES.get(outcome, outcome)
    if outcome == "done":
        return paint.good(words)
    return paint.bad(words) if outcome in BAD else paint.warn(words)


def not_undone(report: Mapping[str, Any]) -> list[str]:
    """What is not undone of an attempt, a line each."""
    # Reports of earlier versions have it not.
    return [f"not undone: {Problem(**item)}" for item in report.get("not_undone", ())]


def when(identifier: str) -> str:
    """The start of an attempt, from its ID, for people."""
    day, clock = identifier[:8], identifier[9:15]
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]}:{clock[4:]} UTC"


def blackout_phases(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The phases between the freeze and the moment when everything ran again."""
    if not report.get("frozen_ns"):
        return []
    # A phase that began a moment before the freeze was noted still belongs to it.
    return [item for item in report["phases"] if item["end_ns"] > report["frozen_ns"]]


def unaccounted(report: Mapping[str, Any]) -> float:
    """Seconds of the blackout that are in no phase; phases may lie within each other."""
    if report.get("blackout_s") is None:
        return 0.0
    at, rest = int(report["frozen_ns"]), 0
    for item in sorted(blackout_phases(report), key=lambda item: int(item["start_ns"])):
        rest += max(0, int(item["start_ns"]) - at)
        at = max(at, int(item["end_ns"]))
    return (rest + max(0, int(report["resumed_ns"]) - at)) / 1e9


def render(report: Mapping[str, Any], paint: Paint = PLAIN, *, everything: bool = False) -> str:
    """The report; ends with a newline.

    ``everything``: with each difference between processes before and after, also those that a
    program may have made by itself.
    """
    lines = [
        f"{paint.bold(report['old_release'] or '?')} → {paint.bold(report['new_release'] or '?')}"
        f"   {outcome_words(report, paint)}",
        paint.dim(f"{when(report['id'])}   {report['id']}"),
    ]
    if report["error"]:
        lines.append(paint.bad(report["error"]))
        if report["hint"]:
            lines.append(paint.dim(report["hint"]))
    lines += [paint.bad(line) for line in not_undone(report)]
    lines += [paint.warn(f"note: {note}") for note in report["notes"]]
    blocks = [
        _units(report, paint),
        _connections(report, paint),
        _processes(report, paint, everything),
        *(section(report, paint) for section in (_blackout, _memory, _others)),
    ]
    for block in filter(None, blocks):
        lines += ["", *block]
    return "\n".join(lines) + "\n"


def _pids(unit: Mapping[str, Any], paint: Paint) -> tuple[str, str]:
    same = set(unit["processes_before"]) & set(unit["processes_after"])
    # A login has no main process: the first of those that there were.
    first = min(unit["processes_before"], default=0)
    before = unit["main_pid_before"] or first
    after = unit["main_pid_after"] or (first if first in same else 0)
    count = f"{len(same)}/{len(unit['processes_before'])}"
    if unit["kept"] and is_container(unit["unit"]):
        # Where its processes have numbers of their own they are the same.
        return paint.good("restored ✓"), str(len(unit["processes_after"]))
    if unit["kept"] and not after:
        # A login: whoever came back has left since.
        return f"{before}, ended since", count
    if unit["kept"]:
        return paint.good(f"{before} = {after} ✓"), count
    return paint.bad(f"{before} → {after or '-'} ✗"), count


def _units(report: Mapping[str, Any], paint: Paint) -> list[str]:
    carried = [unit for unit in report["units"] if unit["verdict"] == "carried"]
    if not carried:
        return []
    kept = sum(1 for unit in carried if unit["kept"])
    rows = []
    for unit in carried:
        pids, count = _pids(unit, paint)
        active = paint.good("active") if unit["active_after"] else paint.bad("not active")
        note = unit["failure"]
        rows.append([unit["unit"], pids, count, active, paint.bad(note) if note else ""])
    return [
        paint.bold(f"{kept} of {plural(len(carried), 'unit')} carried over"),
        *table(rows, ("unit", "main PID", "processes", "state", ""), paint=paint, right=(2,)),
    ]


def _connections(report: Mapping[str, Any], paint: Paint) -> list[str]:
    connections = report["connections"]
    before = connections["before"]
    if not before:
        return []
    lost = connections["lost"]
    kept = len(before) - len(lost)
    head = f"{kept} of {plural(len(before), 'connection')} still open"
    if not lost:
        return [f"{paint.bold(head)} {paint.good('✓')}   same addresses and ports, no reconnect"]
    rows = [[item[0], item[1], "↔", item[2]] for item in lost]
    return [paint.bold(head) + "; no longer there (closed by either end, or lost):", *table(rows)]


def _processes(report: Mapping[str, Any], paint: Paint, everything: bool) -> list[str]:
    # Reports of earlier versions have none of these.
    compared, differences = report.get("compared"), report.get("differences", ())
    if not compared:
        return []
    head = paint.bold(f"{plural(compared, 'process')} compared with before")
    if differences:
        lines = [f"{head}; what differs:", *_listed(differences, paint, everything)]
    else:
        lines = [f"{head} {paint.good('✓')}   same rights, limits, priorities and namespaces"]
    changes = report.get("changes", ())
    if changes and everything:
        lines += ["what a program may have changed by itself:", *_listed(changes, paint, True)]
    elif changes:
        words = f"{plural(len(changes), 'change')} that a program may have made by itself"
        lines.append(paint.dim(f"  {words}: rekernel report --all"))
    return lines


def _listed(differences: Sequence[str], paint: Paint, everything: bool) -> list[str]:
    lines = differences if everything else _alike(differences)
    limit = len(lines) if everything else _DIFFERENCES
    shown = [f"  {line}" for line in lines[:limit]]
    if len(lines) > limit:
        shown.append(paint.dim(f"  and {len(lines) - limit} more: rekernel report --all"))
    return shown


def _alike(differences: Sequence[str]) -> list[str]:
    """One line for many processes of which the same is different: "process PID (NAME): WHAT"."""
    same: dict[tuple[str, str], list[str]] = {}
    for line in differences:
        _, _, what = line.partition(": ")
        same.setdefault((what.partition(" was ")[0], what.rpartition(" is ")[2]), []).append(line)
    found = []
    for (what, now), lines in same.items():
        if len(lines) <= _ALIKE:
            found += lines
        else:
            found.append(f"{len(lines)} processes: {what} is {now} now")
    return found


def _blackout(report: Mapping[str, Any], paint: Paint) -> list[str]:
    if report["blackout_s"] is None:
        return []
    phases = blackout_phases(report)
    rest = unaccounted(report)
    longest = max([*(item["seconds"] for item in phases), rest])
    rows = [
        [item["name"], human_seconds(item["seconds"]), paint.mark(bar(item["seconds"], longest))]
        for item in phases
    ]
    if rest >= 0.001:
        rows.append(["in between", human_seconds(rest), paint.dim(bar(rest, longest))])
    return [
        paint.bold(f"blackout {human_seconds(report['blackout_s'])}"),
        *table(rows, right=(1,)),
    ]


def _memory(report: Mapping[str, Any], paint: Paint) -> list[str]:
    memory = report["memory"]
    if not memory:
        return []
    resident = memory["resident_bytes"]
    if memory["backend"] != "region":
        text = f"through images on disk, {human_bytes(resident)} resident"
        return [f"{paint.bold('memory')} {text}"]
    in_place = memory["pages_in_place"] * _PAGE
    copied = memory["bytes_copied"]
    share = f" ({copied / resident:.2%} of what is resident)" if resident else ""
    rows = [
        ["left in place", human_bytes(in_place), plural(memory["pages_in_place"], "page")],
        ["copied", human_bytes(copied), f"in the blackout{share}"],
    ]
    drain = memory["drain"] or {}
    if report["brownout_s"] is not None:
        rows.append(["brownout", human_seconds(report["brownout_s"]), _until(memory)])
    elif drain and drain.get("state") != "drained":
        left = human_bytes(drain.get("bytes_left", 0))
        rows.append(["brownout", "…", f"{left} still on their way home"])
    # Those of a unit are told with it.
    lost = [Loss(**item).words() for item in memory.get("losses", []) if not item["unit"]]
    return [
        paint.bold("memory"),
        *table(rows, right=(1,)),
        *(f"  {paint.bad('lost')}  {words}" for words in lost),
    ]


def _until(memory: Mapping[str, Any]) -> str:
    lost = bool(memory.get("losses"))
    return "until every page that could be read was home" if lost else "until every page was home"


def _others(report: Mapping[str, Any], paint: Paint) -> list[str]:
    lines: list[str] = []
    restarted = [unit for unit in report["units"] if unit["verdict"] == "restarted"]
    if restarted:
        rows = [
            [
                unit["unit"],
                paint.good("active") if unit["active_after"] else paint.bad("not active"),
                unit["reason"],
            ]
            for unit in restarted
        ]
        lines += [paint.bold(f"{plural(len(restarted), 'unit')} restarted"), *table(rows)]
    ended = [unit for unit in report["units"] if unit["verdict"] == "ends"]
    if ended:
        rows = [[unit["unit"], unit["reason"]] for unit in ended]
        lines += [paint.bold(f"{plural(len(ended), 'unit')} ended"), *table(rows)]
    plumbing = [unit["unit"] for unit in report["units"] if unit["verdict"] == "plumbing"]
    if plumbing:
        names = ", ".join(name.removesuffix(".service") for name in plumbing)
        lines.append(paint.dim(f"booted afresh, as plumbing: {short(names)}"))
    return lines


def render_history(reports: Sequence[Mapping[str, Any]], paint: Paint = PLAIN) -> str:
    """One line per attempt."""
    rows = []
    for report in reports:
        carried = [unit for unit in report["units"] if unit["verdict"] == "carried"]
        kept = sum(1 for unit in carried if unit["kept"])
        blackout = report["blackout_s"]
        rows.append(
            [
                report["id"],
                f"{report['old_release'] or '?'} → {report['new_release'] or '?'}",
                human_seconds(blackout) if blackout is not None else "-",
                f"{kept}/{len(carried)}" if carried else "-",
                outcome_words(report, paint),
            ]
        )
    head = ("id", "kernels", "blackout", "carried", "outcome")
    return "\n".join(table(rows, head, paint=paint, right=(2, 3), indent="")) + "\n"


def local_time(ns: int) -> str:
    """Nanoseconds of real time as a local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns / 1e9))
