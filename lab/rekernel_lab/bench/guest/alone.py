#!/usr/bin/python3
"""In the guest: what criu takes by itself for so many processes in one tree, without rekernel.

Usage: alone.py PROCESSES   prints the seconds of a dump and of a restore, the better of two each:
the first one finds nothing in the caches
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rekernel.census.processes import parents
from rekernel.criu.options import CRIU_CHECK

LOAD = Path(__file__).with_name("load.py")
OPTIONS = ("--tcp-established", "--network-lock", "skip", "--file-locks", "--ext-unix-sk",
           "--link-remap", "--manage-cgroups=ignore", "-v2")  # fmt: skip


def family(root: int) -> list[int]:
    """The processes of the tree, the root first."""
    return [root, *(pid for pid, parent in parents().items() if parent == root)]


def criu(action: str, directory: str, *options: str) -> float:
    """Seconds that one call takes."""
    begun = time.monotonic()
    subprocess.run(
        ["criu", action, "--images-dir", directory, *options, *OPTIONS],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - begun


def once(wanted: int) -> tuple[float, float]:
    """A dump and a restore."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        null = subprocess.DEVNULL
        load = subprocess.Popen(
            [sys.executable, LOAD, f"0-{wanted}-0"],
            stdin=null, stdout=null, stderr=null, start_new_session=True,
        )  # fmt: skip
        while len(family(load.pid)) < wanted:
            time.sleep(0.2)
        # Until the last one has executed its program.
        time.sleep(1)
        pids = family(load.pid)
        dump = criu("dump", directory, "--tree", str(load.pid))
        load.wait()
        # Until whoever reaps the others has done so: their numbers are taken until then.
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            time.sleep(0.05)
        restore = criu("restore", directory, "--restore-detached")
        for pid in family(load.pid):
            os.kill(pid, signal.SIGKILL)
    return dump, restore


def main() -> None:
    """See above."""
    wanted = int(sys.argv[1])
    subprocess.run(CRIU_CHECK, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rounds = [once(wanted) for _ in range(2)]
    print(*(f"{min(seconds):.3f}" for seconds in zip(*rounds, strict=True)))


if __name__ == "__main__":
    main()
