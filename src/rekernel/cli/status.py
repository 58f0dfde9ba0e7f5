"""``rekernel status``: what is under way, what was last, how the region stands."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from rekernel.attempt import brownout
from rekernel.attempt import state as attempt
from rekernel.attempt.undo import UndoList
from rekernel.carry.memory import dax, region
from rekernel.cli.common import VerbParsers, add_verb, paint_for_stdout, print_json
from rekernel.records import asdict
from rekernel.report.history import History
from rekernel.report.layout import Paint, human_bytes, human_seconds
from rekernel.report.text import not_undone, outcome_words, when

_LAST = ("id", "outcome", "exit_code", "old_release", "new_release", "blackout_s", "brownout_s")


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    add_verb(
        subparsers,
        "status",
        "show what is under way, the last upgrade, and the carry region",
    )


def run(args: argparse.Namespace) -> int:
    """Returns 0. Raises RekernelError."""
    found = document()
    if args.json:
        print_json(found)
    else:
        print(render(found, paint_for_stdout()))
    return 0


def _upgrade() -> dict[str, Any] | None:
    if not attempt.unit_active():
        return None
    state = attempt.progress()
    return {
        "phase": state.phase,
        "phase_since_ns": state.since_ns,
        "phases": [{"name": name, "seconds": seconds} for name, seconds in state.done],
    }


def _region() -> dict[str, Any] | None:
    where = region.current()
    if where is None:
        return None
    found = dax.find_region(where.whole)
    devices = region.devices(found) if found is not None else []
    mapped = sum(
        item.size
        for device in devices
        if device.driver == "device_dax" and device.ranges != (where.store,)
        for item in device.ranges
    )
    return {
        "start": where.whole.start,
        "size": where.whole.size,
        "store_bytes": where.store.size,
        "ram_bytes": sum(item.size for item in region.ram_ranges(where)),
        "drain_bytes": mapped,
    }


def document() -> dict[str, Any]:
    """What --json prints."""
    last = next(History().reports(), None)
    state = brownout.observe()
    drain: dict[str, Any] | None = None
    if state.drain is not None:
        drain = {**state.drain, "finished": not state.under_way}
    elif state.under_way:
        drain = {"state": "waiting", "finished": False}
    return {
        "schema": 1,
        "running_release": os.uname().release,
        "upgrade": (upgrade := _upgrade()),
        "not_undone": [asdict(problem) for problem in ([] if upgrade else UndoList().left())],
        "last": {name: last[name] for name in _LAST} if last else None,
        "region": _region(),
        "handover": state.handover,
        "brownout": state.under_way,
        "drained": not state.under_way,
        "drain": drain,
    }


def _drain_words(drain: dict[str, Any]) -> str:
    if drain["finished"]:
        return "every carried page is home"
    total, home = drain.get("pages_total", 0), drain.get("pages_home", 0)
    words = str(drain.get("state", ""))
    if total:
        words += f", {home / total:.0%} of {total:,} pages home"
    if drain.get("bytes_left"):
        words += f", {human_bytes(drain['bytes_left'])} left"
    return words


def render(found: dict[str, Any], paint: Paint) -> str:
    """What people see."""
    lines = [f"kernel   {paint.bold(found['running_release'])}"]
    upgrade = found["upgrade"]
    if upgrade is None:
        lines.append("upgrade  none under way")
    else:
        age = (time.time_ns() - upgrade["phase_since_ns"]) / 1e9
        where = f"{upgrade['phase']} for {human_seconds(age)}" if upgrade["phase"] else "starting"
        lines.append(f"upgrade  {paint.warn(where)}")
    if found["not_undone"]:
        lines += [paint.bad(line) for line in not_undone(found)]
        lines.append("         to undo what is left: rekernel abort")
    last = found["last"]
    if last:
        lines.append(
            f"last     {last['old_release'] or '?'} → {last['new_release'] or '?'}, "
            f"{when(last['id'])}: {outcome_words(last, paint)}"
        )
    where = found["region"]
    if where is None:
        lines.append("region   none: memory would go through images on disk")
    else:
        text = (
            f"region   {human_bytes(where['size'])} at {where['start']:#x}: "
            f"store {human_bytes(where['store_bytes'])}, RAM {human_bytes(where['ram_bytes'])}"
        )
        if where["drain_bytes"]:
            text += f", still to drain {human_bytes(where['drain_bytes'])}"
        lines.append(text)
    if found["drain"]:
        lines.append(f"drain    {_drain_words(found['drain'])}")
    return "\n".join(lines)
