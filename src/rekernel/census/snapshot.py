"""What every carried process is like, to be compared before and after.

Taken while all runs, before the freeze and some time after the commit: in the blackout it would
take 0.4 ms of each process on either side, to the 5 or so of its dump and restore (both without
emulation). So what a program has opened, closed or set meanwhile cannot be told from what was
restored wrongly: a difference is only what it is given from outside (rights, limits, priorities,
namespaces) and keeps as it runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rekernel import smallfiles, syscalls

# Names of the files beside a report.
BEFORE, AFTER = "processes-before.json", "processes-after.json"
Snapshot = dict[str, dict[str, Any]]

# Lines of /proc/PID/status and fields of /proc/PID/stat (proc(5)), with words for them.
_STATUS = {
    "Umask": "file mode mask",
    "Uid": "user IDs",
    "Gid": "group IDs",
    "Groups": "supplementary groups",
    "NoNewPrivs": "no-new-privileges flag",
    "Seccomp": "seccomp mode",
    "Seccomp_filters": "number of seccomp filters",
    "CapInh": "inheritable capabilities",
    "CapPrm": "permitted capabilities",
    "CapEff": "effective capabilities",
    "CapBnd": "capability bounding set",
    "CapAmb": "ambient capabilities",
    "Cpus_allowed": "CPU affinity",
    "SigIgn": "ignored signals",
    "SigCgt": "caught signals",
}
_STAT = {
    5: "process group",
    6: "session",
    7: "terminal",
    19: "nice value",
    40: "real-time priority",
    41: "scheduling policy",
}
_FILES = {
    "oom_score_adj": "out-of-memory score",
    "coredump_filter": "core dump filter",
    "timerslack_ns": "timer slack",
    "personality": "personality",
    "comm": "name",
    "cgroup": "control group",
}
_LINKS = {"exe": "program", "cwd": "working directory", "root": "root directory"}
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
# Of the above, what a program changes by itself in the course of its work.
_OWN = frozenset(
    {
        "caught signals",
        "file mode mask",
        "ignored signals",
        "name",
        "process group",
        "session",
        "terminal",
        "working directory",
    }
)
_ANONYMOUS = re.compile(r"(socket|pipe):\[\d+\]$")


def take(pids: Iterable[int], proc: Path = Path("/proc")) -> Snapshot:
    """PID -> attribute -> value; a process that ends meanwhile is left out."""
    found: Snapshot = {}
    ours = {name: os.readlink(f"{proc}/self/ns/{name}") for name in _NAMESPACES}
    for pid in pids:
        with suppress(OSError):
            found[str(pid)] = _of_process(pid, f"{proc}/{pid}", ours)
    return found


def _text(path: str) -> str:
    return os.fsdecode(smallfiles.read(path))


def _of_process(pid: int, directory: str, ours: Mapping[str, str]) -> dict[str, Any]:
    """``directory``: of the process below /proc. ``ours``: the links of our own namespaces."""
    values: dict[str, Any] = {}
    for line in _text(f"{directory}/status").splitlines():
        name, _, value = line.partition(":")
        if name in _STATUS:
            values[_STATUS[name]] = " ".join(value.split())
    # The name is in parentheses and may hold anything; field 3 is what follows it.
    fields = _text(f"{directory}/stat").rpartition(")")[2].split()
    values |= {words: fields[number - 3] for number, words in _STAT.items()}
    for name, words in _FILES.items():
        # Not every kernel is built with each of them.
        with suppress(FileNotFoundError):
            values[words] = _text(f"{directory}/{name}").strip()
    for line in _text(f"{directory}/limits").splitlines()[1:]:
        # "Max open files            1024                 524288               files"
        name, *limits = re.split(r"\s{2,}", line.strip())
        values[f"limit: {name.lower()}"] = " / ".join(limits[:2])
    with suppress(ProcessLookupError):
        values["I/O priority"] = syscalls.ioprio_get(pid)
    values |= {words: os.readlink(f"{directory}/{name}") for name, words in _LINKS.items()}
    for name in _NAMESPACES:
        own = os.readlink(f"{directory}/ns/{name}") != ours[name]
        values[f"{name} name space"] = "its own" if own else "the host's"
    values["descriptors"] = dict(_descriptors(f"{directory}/fd"))
    return values


def _descriptors(directory: str) -> Iterator[tuple[str, str]]:
    for number in sorted(os.listdir(directory), key=int):
        with suppress(FileNotFoundError):
            link = os.readlink(f"{directory}/{number}")
            match = _ANONYMOUS.match(link)
            yield number, f"a {match[1]}" if match else link


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What no program changes as it runs, in words, of every process that is in both."""
    return [
        f"{who}: {name} was {old[name]} and is {new.get(name, 'unknown')}"
        for who, old, new in _pairs(before, after)
        for name in old
        if name not in _OWN and name != "descriptors" and old[name] != new.get(name)
    ]


def changes(before: Snapshot, after: Snapshot) -> list[str]:
    """What a program may have changed by itself, in words, of every process that is in both.

    Of descriptors files and devices, not connections, which come and go.
    """
    found = []
    for who, old, new in _pairs(before, after):
        for name in old:
            if name in _OWN and old[name] != new.get(name):
                found.append(f"{who}: {name} was {old[name]} and is {new.get(name, 'unknown')}")
        for number, kind in old["descriptors"].items():
            now = new["descriptors"].get(number, "closed")
            if not kind.startswith("a ") and now != kind:
                found.append(f"{who}: descriptor {number} was {kind} and is {now}")
    return found


def _pairs(
    before: Snapshot, after: Snapshot
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Who it is, what it was and what it is."""
    for pid in sorted(before.keys() & after.keys(), key=int):
        yield f"process {pid} ({before[pid]['name']})", before[pid], after[pid]
