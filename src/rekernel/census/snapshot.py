"""What every carried process is like, to be compared before and after.

Taken while all runs, so what a program changes by itself in between shows, too: of descriptors only
those are compared that a running program rarely touches (files and devices, not connections).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rekernel import syscalls

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
_ANONYMOUS = re.compile(r"(socket|pipe):\[\d+\]$")


def take(pids: Iterable[int], proc: Path = Path("/proc")) -> Snapshot:
    """PID -> attribute -> value; a process that ends meanwhile is left out."""
    found: Snapshot = {}
    for pid in pids:
        with suppress(OSError):
            found[str(pid)] = _of_process(proc / str(pid), proc)
    return found


def _text(path: Path) -> str:
    return os.fsdecode(path.read_bytes())


def _of_process(directory: Path, proc: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for line in _text(directory / "status").splitlines():
        name, _, value = line.partition(":")
        if name in _STATUS:
            values[_STATUS[name]] = " ".join(value.split())
    # The name is in parentheses and may hold anything; field 3 is what follows it.
    fields = _text(directory / "stat").rpartition(")")[2].split()
    values |= {words: fields[number - 3] for number, words in _STAT.items()}
    for name, words in _FILES.items():
        # Not every kernel is built with each of them.
        with suppress(FileNotFoundError):
            values[words] = _text(directory / name).strip()
    for line in _text(directory / "limits").splitlines()[1:]:
        # "Max open files            1024                 524288               files"
        name, *limits = re.split(r"\s{2,}", line.strip())
        values[f"limit: {name.lower()}"] = " / ".join(limits[:2])
    with suppress(ProcessLookupError):
        values["I/O priority"] = syscalls.ioprio_get(int(directory.name))
    values |= {words: os.readlink(directory / name) for name, words in _LINKS.items()}
    for name in _NAMESPACES:
        own = os.readlink(directory / "ns" / name) != os.readlink(proc / "self" / "ns" / name)
        values[f"{name} name space"] = "its own" if own else "the host's"
    values["descriptors"] = dict(_descriptors(directory / "fd"))
    return values


def _descriptors(directory: Path) -> Iterator[tuple[str, str]]:
    for number in sorted(os.listdir(directory), key=int):
        with suppress(FileNotFoundError):
            link = os.readlink(directory / number)
            match = _ANONYMOUS.match(link)
            yield number, f"a {match[1]}" if match else link


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """In words, of every process that is in both."""
    found = []
    for pid in sorted(before.keys() & after.keys(), key=int):
        old, new = before[pid], after[pid]
        who = f"process {pid} ({old['name']})"
        for name in old:
            if name != "descriptors" and old[name] != new.get(name):
                found.append(f"{who}: {name} was {old[name]} and is {new.get(name, 'unknown')}")
        for number, kind in old["descriptors"].items():
            now = new["descriptors"].get(number, "closed")
            if not kind.startswith("a ") and now != kind:
                found.append(f"{who}: descriptor {number} was {kind} and is {now}")
    return found
