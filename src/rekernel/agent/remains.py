"""What is left of trees that failed: it has to end before systemd starts their units afresh.

By control group, not by PID: a restore may have failed because somebody else has its PID. And by
that of the whole unit: a criu that dies lets go of the processes that it holds (ptrace(2)). They
run on, and may have started others anywhere below it.

Not imported unless something failed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping

from rekernel import smallfiles
from rekernel.carry.cgroups import restore as cgroups
from rekernel.handover.manifest import Tree
from rekernel.handover.paths import NOT_ENDED
from rekernel.pid1.console import Tolerated, say

SYSTEMD = "/run/systemd/system"
_DROP_IN = "50-rekernel-not-ended.conf"
_TEXT = """\
# Processes of before the upgrade could not be ended: there would be two of it.
[Unit]
AssertPathExists=!{marker}
"""


def end(ending: Collection[Tree], sparing: Collection[Tree]) -> None:
    """Kill all of these, and what else is in their units; does not wait.

    ``sparing``: trees of others, which may have processes in control groups of these.
    """
    spared = _paths(sparing)
    own = _pids(ending) - _pids(sparing)
    for top in _tops(ending):
        if _is_all_theirs(top, spared) and _kill_group(top):
            continue
        for pid in _inside(top, spared, own):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def left(
    ending: Collection[Tree], sparing: Collection[Tree], timeout: float
) -> dict[str, list[int]]:
    """End them, and wait for that; returns unit -> processes that are still there after so long."""
    spared = _paths(sparing)
    own = _pids(ending) - _pids(sparing)
    deadline = time.monotonic() + timeout
    while True:
        end(ending, sparing)
        found: dict[str, list[int]] = {}
        for unit in dict.fromkeys(tree.unit for tree in ending):
            tops = _tops(tree for tree in ending if tree.unit == unit)
            pids = {pid for top in tops for pid in _inside(top, spared, own)}
            if pids:
                found[unit] = sorted(pids)
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(0.01)


def keep_from_starting(units: Mapping[str, Collection[int]]) -> None:
    """systemd would start them beside what is left of them (unit -> processes)."""
    for unit, pids in units.items():
        say(f"{unit} is not started afresh: {', '.join(map(str, pids))} could not be ended")
        if not unit.endswith(".service"):
            # Nobody starts a scope again.
            continue
        marker = f"{NOT_ENDED}/{unit}"
        text = _TEXT.format(marker=marker)
        with Tolerated(f"{unit} may run twice"):
            os.makedirs(NOT_ENDED, exist_ok=True)
            smallfiles.create(marker, b"")
            os.makedirs(f"{SYSTEMD}/{unit}.d", exist_ok=True)
            smallfiles.create(f"{SYSTEMD}/{unit}.d/{_DROP_IN}", text.encode())


def free_pids(tree: Tree, timeout: float = 5.0) -> None:
    """End what a tree had, for a second attempt, and wait: orphans keep their PIDs until then.

    Only these: the same control group may have other trees, which stand.
    """
    deadline = time.monotonic() + timeout
    for pid, path in tree.cgroups.items():
        with contextlib.suppress(OSError):
            if smallfiles.read(f"/proc/{pid}/cgroup").decode().strip().endswith(f"::{path}"):
                os.kill(int(pid), signal.SIGKILL)
    left = list(tree.cgroups)
    while left and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(pid), os.WNOHANG)
        left = [pid for pid in left if os.path.exists(f"/proc/{pid}")]
        time.sleep(0.002 if left else 0)


def _paths(trees: Iterable[Tree]) -> set[str]:
    return {path for tree in trees for path in tree.cgroups.values()}


def _pids(trees: Iterable[Tree]) -> set[int]:
    return {int(pid) for tree in trees for pid in tree.cgroups}


def _tops(trees: Iterable[Tree]) -> list[str]:
    """The control groups of their units; of a process that is somewhere else, its own."""
    return list(
        dict.fromkeys(_top(tree.unit, path) for tree in trees for path in tree.cgroups.values())
    )


def _top(unit: str, path: str) -> str:
    parts = path.split("/")
    # systemd puts that before names that the kernel has a use for (cg_escape() in cgroup-util.c).
    for name in (unit, f"_{unit}"):
        if name in parts:
            return "/".join(parts[: parts.index(name) + 1])
    return path


def _is_all_theirs(top: str, spared: Collection[str]) -> bool:
    # Never the whole machine, whoever was in there.
    return top != "/" and not any(f"{path}/".startswith(f"{top}/") for path in spared)


def _kill_group(path: str) -> bool:
    try:
        smallfiles.write(f"{cgroups.ROOT}{path}/cgroup.kill", b"1")
    except FileNotFoundError:
        # There is none, or its kernel is older than 5.14.
        return False
    except OSError as error:
        say(f"what is in {path} could not be ended at once: {error.strerror}")
        return False
    return True


def _inside(top: str, spared: Collection[str], own: Collection[int]) -> Iterator[int]:
    """Processes of a control group and of those below, in the spared ones only ``own``."""
    root = str(cgroups.ROOT)
    for directory, _, _ in os.walk(f"{root}{top}"):
        theirs = top != "/" and directory.removeprefix(root) not in spared
        # It may vanish meanwhile.
        with contextlib.suppress(OSError):
            for pid in map(int, smallfiles.read(f"{directory}/cgroup.procs").split()):
                if pid != os.getpid() and (theirs or pid in own):
                    yield pid
