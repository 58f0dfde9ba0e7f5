"""What of the last upgrade is still under way: the drain of pages that are not home yet.

Read from what the agent, the pager and ``rekernel finish`` leave in /run/rekernel; all of it is
gone after an ordinary boot, and then nothing is under way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rekernel.carry.memory.paths import DRAIN_STATUS
from rekernel.handover.paths import AGENT_RESULT
from rekernel.records import record

RUN = Path("/run/rekernel")
AGENT = Path(AGENT_RESULT).name
DRAIN = Path(DRAIN_STATUS).name
FINISHED = "finished"


@record
class Brownout:
    """``drain``: the pager's own figures, None if there was nothing to drain."""

    under_way: bool
    handover: str
    drain: dict[str, Any] | None

    @property
    def pager_died(self) -> bool:
        """Whether all that held the carried pages are gone and left some behind."""
        return (
            self.drain is not None
            and self.drain.get("state") != "drained"
            and not any(Path(f"/proc/{pid}").exists() for pid in holders(self.drain))
        )

    @property
    def is_stuck(self) -> bool:
        """Whether processes wait for pages that nobody can bring any more."""
        return self.drain is not None and self.drain.get("state") in ("stopped", "damaged")


def holders(drain: Mapping[str, Any]) -> list[int]:
    """The PIDs of the pager's processes (native/pager/guard.h): any of them can go on alone."""
    found = [int(drain.get(name, 0)) for name in ("pid", "worker", "witness")]
    return [pid for pid in found if pid > 0]


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object in a file; None if the file is missing, half written or something else."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return raw if isinstance(raw, dict) else None


def observe(run: Path = RUN) -> Brownout:
    """How far the last upgrade of this boot is."""
    agent = read_json(run / AGENT) or {}
    handover = str(agent.get("handover", "none"))
    in_place = agent.get("memory", {}).get("backend") == "region"
    drain = read_json(run / DRAIN) if in_place else None
    under_way = handover == "used" and not (run / FINISHED).exists()
    return Brownout(under_way, handover, drain)
