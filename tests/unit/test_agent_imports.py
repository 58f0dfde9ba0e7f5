"""The agent imports nothing that its initrd lacks, or that costs blackout time, as it really runs.

What its modules may name is checked by `make lint` (import-linter, in pyproject.toml).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"

# Printed by a fresh interpreter, isolated as in the initrd.
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import rekernel.agent.main, rekernel.agent.resume
if sys.argv[2:]:
    before = set(sys.modules)
    __import__(sys.argv[2])
found = sorted(set(sys.modules) - before)
import json
print(json.dumps(found))
"""

_SLOW = {
    "argparse",
    "asyncio",
    "dataclasses",
    "inspect",
    "logging",
    "multiprocessing",
    "subprocess",
    "tomllib",
    "traceback",
}


def imported(*more: str) -> list[str]:
    """The modules that the agent's import brings in; or what ``more`` then does."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _PROGRAM, str(SOURCE), *more],
        capture_output=True,
        text=True,
        check=True,
    )
    names: list[str] = json.loads(done.stdout)
    return names


def test_only_the_standard_library() -> None:
    tops = {name.partition(".")[0] for name in imported()} - {"rekernel"}
    assert not tops - set(sys.stdlib_module_names)


def test_nothing_slow() -> None:
    assert not {name.partition(".")[0] for name in imported()} & _SLOW


def test_what_is_for_failures_costs_nothing_else() -> None:
    assert imported("rekernel.agent.remains") == ["rekernel.agent.remains"]
