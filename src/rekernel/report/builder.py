"""The report of an attempt, from what both sides wrote down and what is seen afterwards.

docs/json.md describes every member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rekernel.attempt.problem import Problem
from rekernel.containers.model import is_container
from rekernel.errors import (
    EXIT_DEGRADED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_ROLLED_BACK,
    RekernelError,
)
from rekernel.handover.manifest import Phase
from rekernel.handover.paths import NOT_ENDED
from rekernel.records import asdict, field, record
from rekernel.report import losses
from rekernel.report.layout import plural
from rekernel.systemd.units import is_login

SCHEMA = 1
_PAGE = 4096

DONE = "done"
DEGRADED = "degraded"
ROLLED_BACK = "rolled-back"
FAILED = "failed"
REFUSED = "refused"
NOT_UNDONE = "not-undone"

_EXIT_CODES = {
    DONE: EXIT_DONE,
    FAILED: EXIT_FAILED,
    NOT_UNDONE: EXIT_FAILED,
    DEGRADED: EXIT_DEGRADED,
    ROLLED_BACK: EXIT_ROLLED_BACK,
}


@record
class UnitAfter:
    """A unit on the new kernel."""

    active: bool
    main_pid: int
    cgroup: str
    processes: tuple[int, ...]


@record
class After:
    """What is seen on the new kernel. ``connections``: as census.connections has them.

    ``compared``: how many processes were compared with what they were like before, None if that is
    not known; ``differences``: in words, ``changes``: those that a program may have made by itself.
    """

    units: Mapping[str, UnitAfter] = field(default_factory=dict)
    connections: Sequence[Sequence[str]] = ()
    compared: int | None = None
    differences: Sequence[str] = ()
    changes: Sequence[str] = ()


def phase_record(phase: Phase) -> dict[str, Any]:
    """A phase as reports have it."""
    return {
        "name": phase.name,
        "start_ns": phase.start_ns,
        "end_ns": phase.end_ns,
        "side": phase.side,
        "seconds": round((phase.end_ns - phase.start_ns) / 1e9, 4),
    }


def _phases(raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        phase_record(Phase(item["name"], item["start_ns"], item["end_ns"], item["side"]))
        for item in raw
    ]


def _unit(
    before: Mapping[str, Any],
    after: UnitAfter | None,
    trees: Sequence[Mapping[str, Any]],
    not_ended: Sequence[int],
) -> dict[str, Any]:
    carried = before["verdict"] == "carried"
    failed = [tree for tree in trees if tree["failure"]]
    failure = str(failed[0]["failure"]) if failed else ""
    if carried and not trees:
        failure = "it was not handed over"
    # Who has logged in may have ended anything since, or have left.
    ends_at_will = carried and not failure and is_login(before["unit"])
    kept = ends_at_will or (
        carried
        and not failure
        and after is not None
        and after.active
        and after.main_pid == before["main_pid"]
        and after.cgroup == before["cgroup"]
        # Where systemd knows no main process, and of what it does not know: the top ones.
        and all(tree["root_pid"] in after.processes for tree in trees)
    )
    if carried and not kept and not failure:
        failure = _difference(before, after)
    return {
        "unit": before["unit"],
        "verdict": before["verdict"],
        "reason": before["reason"],
        "main_pid_before": before["main_pid"],
        "main_pid_after": after.main_pid if after else 0,
        "processes_before": list(before["processes"]),
        "processes_after": list(after.processes) if after else [],
        "active_after": after.active if after else False,
        "control_group_before": before["cgroup"],
        "control_group_after": after.cgroup if after else "",
        "kept": kept,
        "failure": failure,
        "not_ended": list(not_ended),
        "log": str(failed[0]["log"]) if failed else "",
    }


def _not_started(agent: Mapping[str, Any]) -> list[str]:
    """Of which units something is left that could not be ended, and what to do then, in words."""
    return [
        f"{unit}: process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))} of before the "
        "upgrade could not be ended. It was not started afresh, as there would be two of it: "
        f"restart the machine, or once they have ended: {_start_words(unit)}"
        for unit, pids in agent.get("not_ended", {}).items()
    ]


def _start_words(unit: str) -> str:
    if is_container(unit):
        return f"podman start {unit.removeprefix('libpod-').removesuffix('.scope')[:12]}"
    return f"rm {NOT_ENDED}/{unit}, systemctl start {unit}"


def _difference(before: Mapping[str, Any], after: UnitAfter | None) -> str:
    if after is None or not after.active:
        return "it is not active on the new kernel"
    if after.main_pid != before["main_pid"]:
        return f"its main process was {before['main_pid']} and is {after.main_pid}"
    if after.cgroup != before["cgroup"]:
        return f"its control group was {before['cgroup']} and is {after.cgroup}"
    return "its first process is gone"


def _memory(
    agent: Mapping[str, Any], drain: Mapping[str, Any] | None, lost: Sequence[losses.Loss]
) -> dict[str, Any]:
    old = agent.get("report", {})
    strays = int(old.get("stray_pages", 0))
    images = int(old.get("image_bytes", 0))
    tmpfs = int(old.get("tmpfs_bytes", 0))
    disk = int(old.get("disk_bytes", 0))
    return {
        "backend": agent.get("memory", {}).get("backend", old.get("backend", "")),
        "pages_in_place": int(old.get("pages_in_place", 0)),
        "stray_pages": strays,
        "image_bytes": images,
        "tmpfs_bytes": tmpfs,
        "disk_bytes": disk,
        "resident_bytes": int(old.get("resident_bytes", 0)),
        "container_bytes": int(old.get("container_bytes", 0)),
        "bytes_copied": strays * _PAGE + images + tmpfs + disk,
        "drain": dict(drain) if drain else None,
        "losses": [asdict(item) for item in lost],
    }


def _connections(before: Sequence[Sequence[str]], after: After) -> dict[str, Any]:
    open_now = {tuple(item) for item in after.connections}
    return {
        "before": [list(item) for item in before],
        "after": [list(item) for item in after.connections],
        "lost": [list(item) for item in before if tuple(item) not in open_now],
    }


def carried_over(
    agent: Mapping[str, Any],
    after: After,
    *,
    drain: Mapping[str, Any] | None = None,
    brownout_s: float | None = None,
    unserved: bool = False,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The report after a handover that was used; ``agent`` is the agent's own result.

    ``brownout_s``: None while pages are still on their way. ``unserved``: the pager is gone and
    they never come.
    """
    old = agent.get("report", {})
    failed = "resumed_ns" not in agent
    trees = agent.get("trees", [])
    units = [
        _unit(
            item,
            after.units.get(item["unit"]),
            [tree for tree in trees if tree["unit"] == item["unit"]],
            agent.get("not_ended", {}).get(item["unit"], ()),
        )
        for item in old.get("units", [])
    ]
    # To be carried, and restarted by a second attempt.
    left_out = old.get("left_out", [])
    holes = losses.find(drain, units, unserved=unserved)
    _blame(units, holes)
    lost = [
        item
        for item in units
        if (item["unit"] in left_out or (item["verdict"] == "carried" and not item["kept"]))
        and item["unit"] not in {loss.unit for loss in holes}
    ]
    missing = agent.get("missing", [])
    outcome = FAILED if failed else DEGRADED if lost or missing or holes else DONE
    error = hint = ""
    if failed:
        error = str(agent.get("reason", "the agent did not finish"))
        hint = "the machine was booted normally; the kernel log has the agent's messages"
    elif lost:
        names = [item["unit"] for item in lost]
        error = f"not carried over: {', '.join([*names, *missing])}"
        hint = "started afresh where systemd knows how to; criu's logs are kept beside this report"
    elif missing:
        error = f"not carried over: {', '.join(missing)}"
        hint = "set that up again by hand; the kernel log and the logs beside this report say more"
    if holes and not failed:
        error = "; ".join(filter(None, (losses.summary(holes), error)))
        hint = "; ".join(filter(None, (losses.hint(holes), hint)))
    frozen, resumed = agent.get("frozen_ns"), agent.get("resumed_ns")
    return {
        "schema": SCHEMA,
        "id": agent["id"],
        "outcome": outcome,
        "exit_code": _EXIT_CODES[outcome],
        "old_release": agent.get("old_release", ""),
        "new_release": agent.get("new_release", ""),
        "backend": agent.get("memory", {}).get("backend", old.get("backend", "")),
        "frozen_ns": frozen,
        "resumed_ns": resumed,
        "blackout_s": round((resumed - frozen) / 1e9, 4) if frozen and resumed else None,
        "phases": _phases(agent.get("phases", [])),
        "units": units,
        "connections": _connections(old.get("connections", []), after),
        "compared": after.compared,
        "differences": list(after.differences),
        "changes": list(after.changes),
        "memory": _memory(agent, drain, holes),
        "brownout_s": brownout_s,
        "notes": [*old.get("notes", []), *_not_started(agent), *notes, *_restarts(drain)],
        "not_undone": [],
        "error": error,
        "hint": hint,
    }


def _restarts(drain: Mapping[str, Any] | None) -> list[str]:
    times = int((drain or {}).get("restarts", 0))
    if not times:
        return []
    return [f"the pager was killed {plural(times, 'time')} and went on where it was"]


def _blame(units: Sequence[dict[str, Any]], holes: Sequence[losses.Loss]) -> None:
    """A unit that came over with holes in its memory was not carried."""
    for unit in units:
        own = [loss.words() for loss in holes if loss.unit == unit["unit"]]
        if own and unit["verdict"] == "carried":
            unit["kept"] = False
            unit["failure"] = unit["failure"] or "; ".join(own)


def _bare(attempt: Mapping[str, Any]) -> dict[str, Any]:
    """A report of an attempt that did not carry anything over."""
    return {
        "schema": SCHEMA,
        "id": attempt["id"],
        "outcome": FAILED,
        "exit_code": _EXIT_CODES[FAILED],
        "old_release": attempt.get("old_release", ""),
        "new_release": attempt.get("new_release", ""),
        "backend": attempt.get("backend", ""),
        "frozen_ns": None,
        "resumed_ns": None,
        "blackout_s": None,
        "phases": [],
        "units": [],
        "connections": {"before": [], "after": [], "lost": []},
        "compared": None,
        "differences": [],
        "changes": [],
        "memory": None,
        "brownout_s": None,
        "notes": [],
        "not_undone": [],
        "error": "",
        "hint": "",
    }


def not_carried(
    attempt: Mapping[str, Any],
    agent: Mapping[str, Any],
    reason: str,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The report after a jump from which nothing came over: the machine booted normally.

    ``agent`` is the agent's own result.
    """
    return _bare(attempt) | {
        "error": f"nothing was carried over: {reason}",
        "hint": "every service was started afresh; the kernel log has the agent's messages",
        "notes": [*_not_started(agent), *notes],
    }


def cut_off(attempt: Mapping[str, Any]) -> dict[str, Any]:
    """The report of an attempt of an earlier boot that came to no report: what happened is not
    known, but nothing of it can be left.
    """
    return _bare(attempt) | {
        "error": "the machine was started anew during the upgrade: nothing was carried over",
        "hint": "every service was started afresh; what a kernel said at last may be on its "
        "console, or in /var/lib/systemd/pstore",
    }


def undone(
    attempt: Mapping[str, Any],
    error: RekernelError,
    phases: Sequence[Phase] = (),
    left: Sequence[Problem] = (),
) -> dict[str, Any]:
    """The report of an attempt that ended before the jump.

    ``left``: what is not undone; without any, everything runs on as before. An attempt that failed
    and was undone counts as rolled back whatever the failure; one that was refused keeps its own
    exit code.
    """
    code = error.exit_code
    if code in (_EXIT_CODES[FAILED], _EXIT_CODES[ROLLED_BACK]):
        outcome, code = ROLLED_BACK, _EXIT_CODES[ROLLED_BACK]
    else:
        outcome = REFUSED
    report = _bare(attempt) | {
        "outcome": outcome,
        "exit_code": code,
        "phases": [phase_record(phase) for phase in phases],
        "error": error.message,
        "hint": error.hint,
    }
    return report | _not_undone(left) if left else report


def _not_undone(left: Sequence[Problem]) -> dict[str, Any]:
    return {
        "outcome": NOT_UNDONE,
        "exit_code": _EXIT_CODES[NOT_UNDONE],
        "not_undone": [asdict(problem) for problem in left],
        "hint": "not everything runs as before: `rekernel abort` tries again to undo what is left",
    }


def tried_again(report: Mapping[str, Any], left: Sequence[Problem]) -> dict[str, Any]:
    """The report of an attempt before the jump, once more was done to undo it.

    ``left``: what is not undone by now.
    """
    still = {(problem.step, problem.value) for problem in left}
    then = [
        f"undone only later: {Problem(**item)}"
        for item in report["not_undone"]
        if (item["step"], item["value"]) not in still
    ]
    ended = {
        "outcome": ROLLED_BACK,
        "exit_code": _EXIT_CODES[ROLLED_BACK],
        "not_undone": [],
        "hint": "everything runs on as before",
    }
    return {**report, **(_not_undone(left) if left else ended), "notes": [*report["notes"], *then]}
