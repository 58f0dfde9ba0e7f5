"""The new side: podman brings the containers back, once systemd runs; others are started again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rekernel.containers.checkpoint import TABLE, WANTED
from rekernel.containers.model import STOPPED
from rekernel.containers.podman import LEFT, left_behind
from rekernel.criu.log import first_error
from rekernel.errors import RekernelError
from rekernel.run import run, run_json

RESULT = Path("/run/rekernel/containers-up.json")
_LOGS = Path("/run/rekernel/restore")
_CGROUPS = Path("/sys/fs/cgroup")
# Seconds; images of gigabytes come from a disk.
_LIMIT_S = 600
# Seconds until each engine answers, and between two attempts.
_ENGINE_S = 120.0
_AGAIN_S = 3.0
# Seconds for what was killed, and between two looks.
_END_S = 10.0
_LOOK_S = 0.1
_log = logging.getLogger(__name__)


def run_all(wanted: Path = Path(WANTED), result: Path = RESULT) -> int:
    """Bring them all back and write down what came of it; returns how many failed.

    The result has a member of the report's ``trees`` for each container. Goes on where a run that
    was killed has ended. Raises RekernelError if the list cannot be read.
    """
    try:
        lists = json.loads(wanted.read_text())
    except FileNotFoundError:
        lists = {"restore": []}
    except (OSError, ValueError) as error:
        raise RekernelError(f"{wanted}: {error}", "podman start --all") from None
    trees = _restored_before(result)
    try:
        if lists["restore"]:
            # Without a filter for bridges they may meet a moment too early.
            run(["nft", "-f", "-"], stdin=lists["bridge_rules"], check=False)
        for item in lists["restore"]:
            if item["unit"] not in [tree["unit"] for tree in trees]:
                trees.append(_restore(item))
                _write(result, trees)
    finally:
        problems = unlock()
    # Once is enough. What nothing was restored from would come between later.
    if not lists["restore"]:
        forget()
    wanted.unlink(missing_ok=True)
    LEFT.unlink(missing_ok=True)
    _write(result, trees, [*problems, *start_stopped()])
    STOPPED.unlink(missing_ok=True)
    return sum(bool(item["failure"]) for item in trees)


def _restored_before(result: Path) -> list[dict[str, Any]]:
    try:
        trees: list[dict[str, Any]] = json.loads(result.read_text())["trees"]
    except FileNotFoundError:
        return []
    return trees


def _write(result: Path, trees: list[dict[str, Any]], problems: Sequence[str] = ()) -> None:
    whole = result.with_suffix(".new")
    text = json.dumps({"schema": 1, "trees": trees, "problems": list(problems)})
    whole.write_text(text + "\n")
    whole.rename(result)


def unlock() -> list[str]:
    """Let everybody get to them again; returns what still keeps them from that, in words."""
    problems = []
    for family in ("inet", "bridge"):
        # In one transaction: to delete what is not there fails, and nothing but words tells why.
        table = f"table {family} {TABLE}"
        try:
            run(["nft", "-f", "-"], stdin=f"{table}\ndelete {table}\n")
        except RekernelError as error:
            problems.append(f"nobody may get to containers yet: {table}: {error}")
    return problems


def start_stopped(stopped: Path = STOPPED) -> list[str]:
    """Start those that were stopped for an upgrade, whatever has come of that.

    Returns which did not start, in words.
    """
    try:
        found = json.loads(stopped.read_text())
    except FileNotFoundError:
        return []
    deadline = time.monotonic() + _ENGINE_S
    # Docker may not be there yet; who does not start keeps no other one waiting.
    while (found := [item for item in found if not _start(*item)]) and time.monotonic() < deadline:
        time.sleep(_AGAIN_S)
    return [
        f"container {name[:12]} was not started again: {engine} start" for engine, name in found
    ]


def _start(engine: str, container: str) -> bool:
    """One that does not start, or hangs, must not keep the others from it."""
    try:
        run([engine, "start", container], timeout=_LIMIT_S)
    except RekernelError as error:
        _log.warning("container %s was not started: %s", container[:12], error.message)
        return False
    return True


def forget() -> None:
    """Remove what was written for containers by an attempt from which nothing came over.

    Raises RekernelError.
    """
    paths = left_behind()
    if paths:
        run(["rm", "-rf", "--", *paths])
    LEFT.unlink(missing_ok=True)


def _restore(item: Mapping[str, Any]) -> dict[str, Any]:
    failure = ""
    not_ended: list[int] = []
    log = _LOGS / f"libpod-{item['id'][:12]}"
    argv = ["podman", "container", "restore", "--tcp-established", "--file-locks", item["id"]]
    try:
        run(argv, timeout=_LIMIT_S)
    except RekernelError as error:
        # Podman goes on if who started it is killed: then it has come back meanwhile.
        if not _is_back(item["id"]):
            failure = (
                f"podman could not restore it: {first_error(Path(item['log'])) or error.message}"
            )
            _keep_log(item, log)
            not_ended = _end(item["unit"])
            if not not_ended:
                _start_afresh(item)
    return {
        "name": item["name"],
        "unit": item["unit"],
        "root_pid": _pid_of(item["id"]),
        "failure": failure,
        "not_ended": not_ended,
        "log": str(log),
        "resumed_ns": time.time_ns(),
    }


def _keep_log(item: Mapping[str, Any], log: Path) -> None:
    with suppress(OSError):
        log.mkdir(parents=True, exist_ok=True)
        shutil.copy(item["log"], log)


def _end(unit: str) -> list[int]:
    """Nothing of it may run beside its fresh start: a criu that dies lets go of what it restored.

    Returns the processes that could not be ended.
    """
    # Not rglob(): others end, too, and what vanishes meanwhile would be an error.
    groups = [Path(path, unit) for path, names, _ in os.walk(_CGROUPS) if unit in names]
    for group in groups:
        with suppress(OSError):
            (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + _END_S
    while (left := _processes_in(groups)) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    return left


def _processes_in(groups: Sequence[Path]) -> list[int]:
    found: list[int] = []
    for path in (path for group in groups for path, _, _ in os.walk(group)):
        # It may be gone meanwhile.
        with suppress(OSError):
            found += map(int, Path(path, "cgroup.procs").read_text().split())
    return sorted(found)


def _start_afresh(item: Mapping[str, Any]) -> None:
    """Without the checkpoint: nobody shall restore that at any later time."""
    run(["rm", "-rf", "--", *item["leftovers"]], check=False)
    _start(item["engine"], item["id"])


def _is_back(container: str) -> bool:
    state = _state_of(container)
    return bool(state.get("Running") and state.get("Restored"))


def _pid_of(container: str) -> int:
    """Its first process; 0 if it does not run."""
    return int(_state_of(container).get("Pid", 0))


def _state_of(container: str) -> dict[str, Any]:
    with suppress(RekernelError, LookupError):
        shown = run_json(["podman", "inspect", "--type", "container", container])
        state: dict[str, Any] = shown[0]["State"]
        return state
    return {}
