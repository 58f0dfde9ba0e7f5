"""What a run of the suite found, test by test, and what counts as a failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = 1


class Verdict(StrEnum):
    """How a test ended."""

    PASSED = "passed"
    # Carried, and then not content with what it found.
    FAILED = "failed"
    # Its process did not come across.
    LOST = "lost"
    # It does not run as a service.
    NOT_STARTED = "not started"
    # With criu alone, without an upgrade.
    FAILS_PLAIN = "fails plain"
    # It says itself, or criu says, that it cannot run here.
    SKIPPED = "skipped"
    LEFT_OUT = "left out"

    @property
    def counts(self) -> bool:
        """Whether a test that criu alone can carry ended so."""
        return self in (Verdict.PASSED, Verdict.FAILED, Verdict.LOST, Verdict.NOT_STARTED)


@dataclass(frozen=True, slots=True)
class Known:
    """A loss that is known. `beforehand`: excused only if the plan named it before the upgrade."""

    why: str
    beforehand: bool = False


KNOWN: Mapping[str, Known] = {
    "static/cow00": Known("pages that a fork shares are copied, not shared, afterwards"),
    "static/cow01": Known("pages that a fork shares are copied, not shared, afterwards"),
    "static/socket-tcp-ipt-nfconntrack": Known("a network namespace of its own", beforehand=True),
    "static/socket-tcp-nft-nfconntrack": Known("a network namespace of its own", beforehand=True),
    "static/socket_udplite": Known("kernels of 2026 have no UDP-Lite", beforehand=True),
}

# Tests that compare their clocks with how long they ran: excused if they fail with criu alone, too,
# while all others run.
MEASURES_TIME: tuple[str, ...] = ("static/timers01",)


@dataclass(frozen=True, slots=True)
class Finding:
    """One test. `why` is empty if it passed; `beforehand` is what the plan said of its unit."""

    name: str
    verdict: Verdict
    why: str = ""
    beforehand: str = ""
    # Whether it fails with criu alone while all other tests run; None if that was not tried.
    fails_under_load: bool | None = None
    # Of criu and of the product, where it failed.
    logs: tuple[str, ...] = ()

    @property
    def excuse(self) -> str:
        """Why this need not be mended now; empty if it must be."""
        if self.verdict is Verdict.PASSED or not self.verdict.counts:
            return ""
        known = KNOWN.get(self.name)
        if known and (self.beforehand or not known.beforehand):
            return known.why
        if self.name in MEASURES_TIME and self.fails_under_load:
            return "fails under the same load with criu alone, too"
        return ""

    @property
    def bad(self) -> bool:
        """Whether this makes the run a failure."""
        return self.verdict.counts and self.verdict is not Verdict.PASSED and not self.excuse

    def to_json(self) -> dict[str, Any]:
        """Return it as results have it."""
        return {
            "test": self.name,
            "verdict": self.verdict.value,
            "why": self.why or None,
            "beforehand": self.beforehand or None,
            "fails_under_load": self.fails_under_load,
            "excuse": self.excuse or None,
            "logs": list(self.logs),
        }


@dataclass(slots=True)
class Result:
    """Everything; filled while the run goes on."""

    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    upgrades: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether all tests that pass plain pass across, but for those that are excused."""
        carried = [one for one in self.findings if one.verdict.counts]
        return bool(carried) and not self.error and not any(one.bad for one in carried)

    def counts(self) -> dict[str, int]:
        """Return how many tests ended how."""
        counted = Counter(one.verdict for one in self.findings)
        return {verdict.value: counted[verdict] for verdict in Verdict if counted[verdict]}

    def to_json(self) -> dict[str, Any]:
        """Return it in its stable form."""
        return {
            "schema": SCHEMA,
            **self.facts,
            "passed": self.passed,
            "error": self.error or None,
            "counts": self.counts(),
            "upgrades": self.upgrades,
            "tests": [one.to_json() for one in self.findings],
        }


def table(result: Result) -> str:
    """Return the result for people: what was left out by reason, then a line per test."""
    lines = [", ".join(f"{key} {value}" for key, value in result.facts.items()), ""]
    reasons: dict[str, list[str]] = {}
    for one in result.findings:
        if one.verdict is Verdict.LEFT_OUT:
            reasons.setdefault(one.why, []).append(one.name)
    for reason, names in sorted(reasons.items()):
        lines.append(f"left out, {reason}: {_few(names)}")
    lines.append("")
    shown = [one for one in result.findings if one.verdict is not Verdict.LEFT_OUT]
    width = max((len(one.name) for one in shown), default=0)
    for one in shown:
        words = " | ".join(word for word in (_one_line(one.why), one.excuse) if word)
        mark = "!" if one.bad else " "
        lines.append(f"{mark} {one.name:{width}}  {one.verdict.value:11}  {words}".rstrip())
        lines += [f"    {path}" for path in one.logs if one.bad]
    counts = ", ".join(f"{number} {name}" for name, number in result.counts().items())
    excused = sum(1 for one in result.findings if one.excuse)
    bad = sum(1 for one in result.findings if one.bad)
    lines += ["", f"{counts}; {excused} excused, {bad} to be mended"]
    return "\n".join(lines)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{len(names)} tests"


def _one_line(words: str) -> str:
    return " / ".join(line.strip() for line in words.splitlines() if line.strip())[:200]
