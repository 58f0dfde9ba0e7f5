"""Runs in the guest: how long the verbs of one of two installed versions take.

``verbs.py TREE RELEASE`` puts the version of /root/verbs/TREE in its place, and prints a line of
JSON: seconds of `check` and `plan`, and from `upgrade --yes RELEASE` to the freeze, by phase: of an
attempt that finds nothing made before, and of one right after it. Each ends there, by a fault as
the VM tests have them, and is undone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

TREES = Path("/root/verbs")
# Each version's own: what dpkg has put there.
PARTS = ("usr/lib/python3/dist-packages/rekernel", "usr/lib/rekernel")
EVENTS = Path("/run/rekernel/events.jsonl")
FAULT = {"phase": "freeze", "do": "term"}


def use(tree: str) -> None:
    """Put a version in its place; a rename, so that nothing is read or compiled anew."""
    current = TREES / "current"
    was = current.read_text() if current.exists() else ""
    if was == tree:
        return
    for part in PARTS:
        place = Path("/", part)
        if was:
            place.rename(TREES / was / part)
        else:
            # The package's own, which is one of the two.
            subprocess.run(["rm", "-r", str(place)], check=True)
        (TREES / tree / part).rename(place)
    current.write_text(tree)


def timed(*words: str) -> float:
    """Seconds that a command takes; it must succeed."""
    began = time.time()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.time() - began


def to_the_freeze(release: str) -> dict[str, float]:
    """Phase -> seconds; "before" until the attempt's own process begins, "between" the rest."""
    Path("/etc/rekernel-fault.json").write_text(json.dumps(FAULT))
    began = time.time()
    done = subprocess.run(
        ["rekernel", "upgrade", "--yes", release],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 5:
        raise SystemExit(f"the attempt ended with {done.returncode}: {done.stderr}")
    events = [json.loads(line) for line in EVENTS.read_text().splitlines()]
    begins = {event["name"]: event["at_ns"] / 1e9 for event in events if event["kind"] == "begin"}
    ends = {event["name"]: event["at_ns"] / 1e9 for event in events if event["kind"] == "end"}
    phases = {"before": begins["plan"] - began}
    for name, start in begins.items():
        if start < begins["freeze"]:
            phases[name] = ends[name] - start
    total = begins["freeze"] - began
    return {**phases, "between": total - sum(phases.values()), "all": total}


def main() -> None:
    """Measure one version once."""
    tree, release = sys.argv[1:]
    use(tree)
    found: dict[str, object] = {
        "check": timed("rekernel", "check"),
        "plan": timed("rekernel", "plan", release),
    }
    subprocess.run(["rm", "-rf", "/var/cache/rekernel"], check=True)
    found["first"], found["again"] = to_the_freeze(release), to_the_freeze(release)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
