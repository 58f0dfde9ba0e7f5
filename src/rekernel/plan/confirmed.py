"""What was confirmed, on its way to the process that does it; and whether it still holds.

Between the two a service may have opened what criu cannot dump, or somebody may have logged in.
Nobody is to lose more than the plan said: what has become worse since refuses the upgrade.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from rekernel import smallfiles
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.errors import BlockedError, RekernelError
from rekernel.records import asdict, record, replace
from rekernel.typed_json import ShapeError, build

RUN = Path("/run/rekernel")

# From the best to the worst. What boots afresh is not comparable: it became something else.
_RANKS = {Verdict.CARRIED: 0, Verdict.RESTARTED: 1, Verdict.ENDS: 2, Verdict.BLOCKS: 3}
_WORDS = {
    Verdict.CARRIED: "be carried",
    Verdict.RESTARTED: "be restarted",
    Verdict.ENDS: "end",
    Verdict.PLUMBING: "boot afresh",
    Verdict.BLOCKS: "block the upgrade",
}


@record
class Expected:
    """A unit in the plan, and what was to become of it."""

    unit: str
    verdict: str
    reason: str = ""


@record
class Confirmed:
    """``image`` and ``modules``: paths of the kernel. ``blackout_s``: the one that was predicted,
    by ``basis`` and ``samples`` as in a Prediction.
    """

    release: str
    image: str
    modules: str
    running: str
    backend: str
    units: tuple[Expected, ...]
    blackout_s: float
    basis: str
    samples: int


@record
class Comparison:
    """``units``: as confirmed, with what they are by now. ``notes``: what is worth a word.

    ``worse`` and ``new``: what nobody has confirmed, in words.
    """

    units: tuple[UnitVerdict, ...]
    notes: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    def refuse(self) -> None:
        """Raises BlockedError if more would be lost than was confirmed."""
        if self.worse or self.new:
            raise BlockedError(
                f"not what was confirmed: {'; '.join((*self.worse, *self.new))}",
                "nothing was touched: look at `rekernel plan`, then decide anew",
            )


def own_path() -> Path:
    """Where this process leaves what was confirmed. One of its own: two may be at it at once."""
    return RUN / f"confirmed-{os.getpid()}.json"


def leave(confirmed: Confirmed, path: Path) -> None:
    """Write it, for root only. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    smallfiles.create(str(path), json.dumps(asdict(confirmed)).encode())


def take(path: Path) -> Confirmed:
    """Read it and remove it: it holds once. Raises RekernelError."""
    try:
        raw = json.loads(smallfiles.read(str(path)))
        confirmed = build(Confirmed, raw, "plan")
    except (OSError, ValueError, ShapeError) as error:
        raise RekernelError(
            f"the plan that was confirmed cannot be read: {error}", "start it as `rekernel upgrade`"
        ) from None
    finally:
        path.unlink(missing_ok=True)
    assert isinstance(confirmed, Confirmed)
    return confirmed


def compare(
    confirmed: Sequence[Expected], now: Sequence[UnitVerdict], asked: Collection[str] = ()
) -> Comparison:
    """``now``: as judged anew. ``asked``: units that must be carried.

    A better verdict changes nothing: what was confirmed is what is done. What has started since
    must not lose anything either: it is carried, or boots afresh as it would in any case.
    """
    expected = {item.unit: item for item in confirmed}
    present = {item.unit.name for item in now}
    units, notes, worse, new = [], [], [], []
    for item in now:
        before = expected.get(item.unit.name)
        if before is None:
            if item.verdict in (Verdict.RESTARTED, Verdict.ENDS, Verdict.BLOCKS):
                new.append(
                    f"{item.unit.name} has started since and would {_words(item.verdict, item)}"
                )
            elif item.verdict is Verdict.CARRIED:
                notes.append(f"{item.unit.name} has started since, and is carried too")
            units.append(item)
            continue
        verdict = Verdict(before.verdict)
        if _is_worse(item.verdict, verdict):
            worse.append(
                f"{item.unit.name} was to {_WORDS[verdict]} and would now "
                f"{_words(item.verdict, item)}"
            )
        elif item.verdict is not verdict:
            notes.append(f"{item.unit.name} could {_WORDS[item.verdict]} by now; as confirmed it "
                         f"will {_WORDS[verdict]}")  # fmt: skip
            item = replace(item, verdict=verdict, reason=before.reason, remedy="")
        units.append(item)
    for name in expected.keys() - present:
        if name in asked:
            worse.append(f"{name} has ended, and was to be carried by all means")
        elif expected[name].verdict != Verdict.PLUMBING:
            notes.append(f"{name} has ended since the plan was confirmed")
    return Comparison(tuple(units), tuple(sorted(notes)), tuple(worse), tuple(new))


def _words(verdict: Verdict, item: UnitVerdict) -> str:
    return f"{_WORDS[verdict]} ({item.reason})" if item.reason else _WORDS[verdict]


def _is_worse(now: Verdict, before: Verdict) -> bool:
    if now is before:
        return False
    if Verdict.PLUMBING in (now, before):
        return True
    return _RANKS[now] > _RANKS[before]
