"""``rekernel finish``: report on an upgrade and release its memory; rekernel-finish.service.

Runs once after every boot that followed an upgrade; may be run again at any time.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rekernel.attempt import brownout
from rekernel.attempt import state as attempt
from rekernel.carry.memory import pager, region
from rekernel.carry.runtime_units import observe as runtime_units
from rekernel.carry.swap import observe as swap
from rekernel.carry.sysctls import observe as sysctls
from rekernel.cli.aftermath import new_id
from rekernel.cli.common import VerbParsers, add_verb, require_root
from rekernel.containers.checkpoint import WANTED
from rekernel.containers.model import STOPPED, is_container
from rekernel.containers.restore import RESULT, forget, unlock
from rekernel.errors import RekernelError
from rekernel.report import after, builder
from rekernel.report.history import History
from rekernel.run import run as run_command
from rekernel.systemd.units import show

_log = logging.getLogger(__name__)

RUN = Path("/run/rekernel")
_CONTAINERS = "rekernel-containers.service"
# Seconds until systemd has begun with it.
_BOOT_S = 300
_SETTLED = ("active", "inactive", "failed")
_UNITS_DEADLINE = 60.0
# Longer where a look costs a process or two.
_UNITS_POLL = 1.0
_DRAIN_POLL = 0.25


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    add_verb(
        subparsers,
        "finish",
        "report on the upgrade before this boot, wait for the drain, release its memory; "
        "rekernel-finish.service runs this",
        hidden=True,
    )


def run(args: argparse.Namespace) -> int:
    """Returns 0, also if there is nothing to finish. Raises RekernelError."""
    require_root()
    if (RUN / brownout.FINISHED).exists() or attempt.unit_runs():
        return 0
    history = History()
    agent = brownout.read_json(RUN / brownout.AGENT)
    try:
        if agent is not None and agent.get("handover") == "used":
            _finish_used(agent, history)
        elif agent is not None and agent.get("handover") in ("refused", "failed"):
            _finish_failed(agent, history)
    finally:
        try:
            runtime_units.forget()
        except RekernelError as error:
            _log.warning("drop-ins of the upgrade are still in force: %s", error)
    close_stale(history)
    _mark_finished()
    return 0


def close_stale(history: History) -> None:
    """Attempts of other boots without a report: the machine died, or was booted otherwise."""
    cut_off = [item for item in history.unfinished() if item.get("boot_id") != attempt.boot_id()]
    for item in cut_off:
        # Else rekernel-containers.service restores from it, and forgets it then.
        if not Path(WANTED).exists():
            forget()
        _remove_images(item)
        _record(history, builder.cut_off(item), RUN / "none")
    # Of attempts that have their report, but were cut off before these were removed.
    open_still = {str(item["id"]) for item in history.unfinished()}
    for path in attempt.IMAGES.glob("*"):
        if path.name not in open_still:
            shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        history.release_room()


def _remove_images(item: dict[str, Any]) -> None:
    """Of an attempt from which nothing comes any more: as large as what it carried."""
    shutil.rmtree(attempt.IMAGES / str(item["id"]), ignore_errors=True)


def _attempt_of(agent: dict[str, Any], history: History) -> dict[str, Any]:
    """The attempt behind a handover that was not used."""
    unfinished = history.unfinished()
    if "id" in agent:
        known = history.attempt(str(agent["id"]))
        return known or {"id": agent["id"], "new_release": os.uname().release}
    return unfinished[0] if unfinished else {"id": new_id(), "new_release": os.uname().release}


def _finish_failed(agent: dict[str, Any], history: History) -> None:
    # Else rekernel-containers.service restores from it: the agent failed when that was decided.
    if not Path(WANTED).exists():
        forget()
    # Nothing that ran needs the mapped pages any more.
    state = brownout.read_json(RUN / brownout.DRAIN)
    if pager.ask("abort") is not None and state is not None:
        _wait_for_exit(state)
    _settle()
    reason = str(agent.get("reason", "no reason given"))
    # Their images are on a disk.
    trees, notes = _containers()
    notes += agent.get("missing", [])
    for item in trees:
        became = item["failure"] or "it was carried over all the same"
        notes.append(f"container {item['name']}: {became}")
    item = _attempt_of(agent, history)
    _remove_images(item)
    _record(history, builder.not_carried(item, agent, reason, notes))


def _finish_used(agent: dict[str, Any], history: History) -> None:
    _start_what_restarts(agent)
    notes = runtime_units.start_again(agent["report"].get("triggers", []))
    notes += _turn_swap_on(agent)
    notes += _add_containers(agent)
    # After systemd-sysctl, as somebody set them later than that; and when nobody needs a module.
    notes += sysctls.set_again(agent["report"].get("sysctls", {}))
    _wait_for_units(agent)
    seen = after.observe(agent, history)

    def tell() -> None:
        drain = brownout.read_json(RUN / brownout.DRAIN)
        with suppress(OSError):
            # The last one tells if it cannot be kept: memory comes back all the same.
            history.record(builder.carried_over(agent, seen, drain=drain, notes=notes), RUN)

    # Restored from; the drain may last, and nobody would remove them after another boot.
    _remove_images(agent)
    tell()
    drained_ns = _follow_drain(tell)
    # Whoever needed the old memory has it, or has zeros: nothing keeps the region any more.
    problem = _settle()
    if problem:
        notes.append(problem)
    brownout_s = None
    if drained_ns and "resumed_ns" in agent:
        brownout_s = round(max(0, drained_ns - agent["resumed_ns"]) / 1e9, 3)
    drain = brownout.read_json(RUN / brownout.DRAIN)
    report = builder.carried_over(
        agent, seen, drain=drain, brownout_s=brownout_s, unserved=not drained_ns, notes=notes
    )
    _record(history, report)
    for name in ("restore", "upgrade"):
        shutil.rmtree(RUN / name, ignore_errors=True)


def _record(history: History, report: dict[str, Any], run: Path | None = None) -> None:
    try:
        history.record(report, run or RUN)
    except OSError as error:
        raise RekernelError(
            f"the report could not be kept: {error}",
            "make room in /var, then: systemctl restart rekernel-finish",
        ) from None


def _start_what_restarts(agent: dict[str, Any]) -> None:
    """Units that ran before and that no target of the new boot wants, or whose restore failed."""
    failed = [item["unit"] for item in agent.get("trees", []) if item["failure"]]
    for unit in [*after.names(agent, "restarted"), *failed]:
        # Podman does that with its own: rekernel-containers.service. And of a transient unit nobody
        # asked for its command twice.
        if is_container(unit) or runtime_units.has_transient_file(unit):
            continue
        # What is left of it runs still.
        if unit in agent.get("not_ended", {}):
            continue
        run_command(["systemctl", "start", "--no-block", "--", unit], check=False)


def _add_containers(agent: dict[str, Any]) -> list[str]:
    """Podman's as trees of the agent; returns how long they stood still, in words."""
    trees, missing = _containers()
    # Who is locked out, or was not started again, is not as before.
    agent["missing"] = [*agent.get("missing", []), *missing]
    agent["trees"] = [*agent.get("trees", []), *trees]
    left = {item["unit"]: item["not_ended"] for item in trees if item.get("not_ended")}
    agent["not_ended"] = {**agent.get("not_ended", {}), **left}
    return [
        f"container {item['name']} ran again "
        f"{(item['resumed_ns'] - agent['frozen_ns']) / 1e9:.1f} s after the freeze"
        for item in trees
        if not item["failure"]
    ]


def _containers() -> tuple[list[dict[str, Any]], list[str]]:
    """The containers that rekernel-containers.service restored, and what is missing, in words.

    Waits for that.
    """
    deadline = time.monotonic() + _BOOT_S
    while Path(WANTED).exists() or STOPPED.exists():
        state = show([_CONTAINERS])[0].active
        too_late = state == "inactive" and time.monotonic() > deadline
        if too_late or state not in ("inactive", "activating", "deactivating"):
            break
        time.sleep(_UNITS_POLL)
    notes = []
    if Path(WANTED).exists():
        notes += unlock()
        notes.append(f"{_CONTAINERS} did not bring all containers back: see its journal")
    result = brownout.read_json(RESULT) or {"trees": []}
    return result["trees"], [*notes, *result.get("problems", [])]


def _turn_swap_on(agent: dict[str, Any]) -> list[str]:
    """What was in use and systemd has not turned on; returns what could not be, in words."""
    notes = []
    for name, priority in agent["report"].get("swaps", []):
        try:
            swap.turn_on(name, priority)
        except RekernelError as error:
            notes.append(f"swap on {name} was not turned on again: {error.message}")
    return notes


def _wait_for_units(agent: dict[str, Any]) -> None:
    names = after.names(agent, "carried", "restarted")
    deadline = time.monotonic() + _UNITS_DEADLINE
    while time.monotonic() < deadline:
        waiting = [unit.name for unit in show(names) if unit.active not in _SETTLED]
        if not waiting and not _jobs(names):
            return
        time.sleep(_UNITS_POLL)


def _jobs(names: Sequence[str]) -> bool:
    """Whether systemd is still about to start one of these."""
    listed = run_command(["systemctl", "list-jobs", "--no-legend", "--plain"], check=False)
    words = {line.split()[1] for line in listed.splitlines() if len(line.split()) > 1}
    return bool(words & set(names))


def _follow_drain(tell: Callable[[], None]) -> int:
    """Until every page is home; returns when (ns), or 0 if that cannot happen any more.

    Calls ``tell`` when processes wait for pages that never come: that lasts until they are ended.
    """
    asked = told = False
    while True:
        state = brownout.observe(RUN)
        if state.drain is None:
            return time.time_ns()
        if state.drain.get("state") == "drained":
            drained_ns = (RUN / brownout.DRAIN).stat().st_mtime_ns
            _wait_for_exit(state.drain)
            return drained_ns
        # Others may have taken the place of those in the file since it was written.
        if state.pager_died and pager.ask("status") is None:
            if brownout.observe(RUN).drain == state.drain:
                return 0
        elif state.is_stuck and not told:
            told = True
            tell()
        if not asked and state.drain.get("state") in ("serving", "waiting"):
            # rekernel-region.service does this too, where it is enabled.
            asked = pager.ask("drain") is not None
        time.sleep(_DRAIN_POLL)


def _wait_for_exit(drain: Mapping[str, Any], timeout: float = 10.0) -> None:
    """Until the pager has let go of its mappings."""
    deadline = time.monotonic() + timeout
    for pid in brownout.holders(drain):
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)


def _settle() -> str:
    """Returns what went wrong, in words."""
    try:
        region.settle(drained=True)
    except (RekernelError, OSError) as error:
        _log.warning("%s", error)
        return f"the region could not be given back to the system: {error}"
    return ""


def _mark_finished() -> None:
    RUN.mkdir(parents=True, exist_ok=True)
    path = RUN / brownout.FINISHED
    path.write_text(json.dumps({"schema": 1, "at_ns": time.time_ns()}) + "\n")
