"""Memory that did not come home: what the pager counted, as facts with the process and its unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from rekernel.records import record
from rekernel.report.layout import plural


class Why(StrEnum):
    """What became of the memory of a process."""

    UNREADABLE = "unreadable"
    UNKNOWN = "unknown"
    STOPPED = "stopped"
    UNSERVED = "unserved"


_WORDS = {
    Why.UNREADABLE: "{pages} could not be read from the old memory",
    Why.UNKNOWN: "it was not in the page map and has zeros for its memory",
    Why.STOPPED: "no pager could bring {pages}: it is stopped",
    Why.UNSERVED: "the pager was killed, {pages} are zeros now",
}


@record
class Loss:
    """``pid``: 0 where the pager could not tell; ``unit``: empty if it is in none of them."""

    pid: int
    unit: str
    pages: int
    why: Why

    def words(self) -> str:
        """One line for people."""
        pages = f"{plural(self.pages, 'page') if self.pages else 'pages'} of its memory"
        process = f"process {self.pid}" if self.pid else "a process"
        return f"{process}: {_WORDS[self.why].format(pages=pages)}"


def find(
    drain: Mapping[str, Any] | None, units: Sequence[Mapping[str, Any]], *, unserved: bool
) -> list[Loss]:
    """What the pager's figures say of lost memory.

    ``units``: with ``processes_after`` and ``processes_before``. ``unserved``: every holder of the
    pager is gone although it had not finished.
    """
    if drain is None:
        return []
    found: list[Loss] = []
    kinds = [(Why.UNREADABLE, "lost", int(drain.get("pages_lost", 0)))]
    kinds.append((Why.UNKNOWN, "unknown_processes", int(drain.get("unknown", 0))))
    left = int(drain.get("bytes_left", 0)) // 4096
    # Not every child that was forked since can be found.
    kinds.append((Why.STOPPED, "stopped", left if drain.get("state") == "stopped" else 0))
    if unserved:
        kinds.append((Why.UNSERVED, "missing", left))
    for why, member, total in kinds:
        named = [
            Loss(int(item["pid"]), _unit(int(item["pid"]), units), int(item["pages"]), why)
            for item in drain.get(member, [])
        ]
        found += named
        # The pager's lists have an end.
        known = len(named) if why is Why.UNKNOWN else sum(item.pages for item in named)
        if total > known:
            found.append(Loss(0, "", total - known, why))
    if unserved and all(item.why is not Why.UNSERVED for item in found):
        # It had not yet said what it had to bring.
        found.append(Loss(0, "", 0, Why.UNSERVED))
    return found


def _unit(pid: int, units: Sequence[Mapping[str, Any]]) -> str:
    for member in ("processes_after", "processes_before"):
        for unit in units:
            if pid in unit[member]:
                return str(unit["unit"])
    return ""


def summary(found: Sequence[Loss]) -> str:
    """One sentence for all of them, with the units or processes."""
    names = list(dict.fromkeys(_names(found)))
    return f"memory was lost: {', '.join(names)}"


def _names(found: Sequence[Loss]) -> Iterator[str]:
    for loss in found:
        if loss.unit:
            yield f"{loss.unit} (process {loss.pid})"
        else:
            yield f"process {loss.pid}" if loss.pid else "a process that is not known"


def hint(found: Sequence[Loss]) -> str:
    """What to do about them."""
    services = [loss.unit for loss in found if loss.unit.endswith(".service")]
    others = [str(loss.pid) for loss in found if loss.pid and loss.unit not in services]
    words = []
    if services:
        words.append(f"systemctl restart {' '.join(dict.fromkeys(services))}")
    if others:
        words.append(f"end process {', '.join(dict.fromkeys(others))} and start it afresh")
    return "; ".join(words) or "restart the carried units: any of them may be concerned"
