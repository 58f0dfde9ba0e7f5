"""Runs the VM test files, several at a time, each with a pytest of its own.

Usage: python -m rekernel_lab.testfiles [--jobs N] [PYTEST OPTION ...]

A guest uses hardly more than one processor most of the time: it boots, or somebody waits for it.
On two processors two files at a time take little more than half of what they take one by one. The
output of each is shown when it ends; what pytest says until then is in .cache/vm-tests.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab.cache import REPOSITORY

TESTS = REPOSITORY / "tests" / "vm"

# The longest first, so that none of them is left for the end; the others in any order before them,
# as they are slow tests only, and mostly none of theirs is selected.
LONGEST_FIRST = ("failures", "pages", "logins", "services", "between", "containers", "demo")

# What the largest guest takes of the host, QEMU and page cache included.
_GUEST_MIB = 9 << 10
_MOST = 4

# How often to say what is under way (seconds).
_TELL_S = 300.0

# How many of the slowest tests are named at the end.
_SLOWEST = 25

# pytest's exit code if nothing was selected.
_NO_TESTS = 5

_DURATION = re.compile(r"^ *(\d+\.\d+)s (?:setup|call|teardown) +\S+$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Run:
    """A test file under way: its pytest, and when that began (seconds, monotonic)."""

    path: Path
    process: subprocess.Popen[bytes]
    log: Path
    began: float


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Return test files as they are to be started."""

    def place(path: Path) -> tuple[int, str]:
        name = path.stem.removeprefix("test_")
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else -1, name

    return sorted(paths, key=place)


def slowest(output: str) -> list[str]:
    """Return the lines of pytest's --durations in the outputs of several, the slowest first."""
    found = {match[0].strip(): float(match[1]) for match in _DURATION.finditer(output)}
    return sorted(found, key=lambda line: -found[line])[:_SLOWEST]


def at_once(cpus: int, available_mib: int) -> int:
    """Return how many files to run at a time with so many processors and so much free memory."""
    return max(1, min(cpus, available_mib // _GUEST_MIB, _MOST))


def _available_mib() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) >> 10


def _start(path: Path, options: Sequence[str], logs: Path) -> Run:
    log = logs / f"{path.stem}.log"
    words = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider",
             "--durations=0", "--durations-min=1", *options, str(path)]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            # Its guests end with it.
            ["setpriv", "--pdeathsig", "TERM", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
        )
    return Run(path, process, log, time.monotonic())


def run(paths: Sequence[Path], options: Sequence[str], jobs: int) -> int:
    """Run test files, so many at a time; return 0 if all passed, else 1."""
    logs = REPOSITORY / ".cache" / "vm-tests"
    logs.mkdir(parents=True, exist_ok=True)
    waiting, under_way = in_order(paths), list[Run]()
    summary, outputs = list[str](), list[str]()
    failed, told = False, time.monotonic()
    while waiting or under_way:
        while waiting and len(under_way) < jobs:
            under_way.append(_start(waiting.pop(0), options, logs))
        try:
            time.sleep(0.2)
        except KeyboardInterrupt:
            # They were interrupted as well, and end their guests in order.
            for one in under_way:
                one.process.wait()
            raise
        if time.monotonic() - told > _TELL_S:
            told = time.monotonic()
            names = (f"{one.path.stem} ({told - one.began:.0f} s)" for one in under_way)
            print("-- under way:", ", ".join(names), flush=True)
        for ended in [one for one in under_way if one.process.poll() is not None]:
            under_way.remove(ended)
            code = ended.process.returncode
            if code == _NO_TESTS:
                continue
            failed |= code != 0
            seconds = time.monotonic() - ended.began
            result = "FAILED" if code else "passed"
            summary.append(f"{ended.path.stem:24} {result} {seconds:6.0f} s")
            outputs.append(ended.log.read_text(errors="replace"))
            print(f"\n-- {summary[-1]}\n{outputs[-1]}", flush=True)
    print("\n".join(["-- the slowest tests", *slowest("\n".join(outputs)), "-- files", *summary]))
    return 1 if failed else 0


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=0, help="how many files at a time")
    known, options = parser.parse_known_args()
    jobs = known.jobs or at_once(os.cpu_count() or 1, _available_mib())
    try:
        sys.exit(run(sorted(TESTS.glob("test_*.py")), options, jobs))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
