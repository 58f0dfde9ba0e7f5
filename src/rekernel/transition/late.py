"""Units that criu stood still with: a second attempt restarts them, if policy lets it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

from rekernel.carry.runtime_units.observe import is_transient
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.errors import RekernelError
from rekernel.records import replace
from rekernel.transition.dumps import DumpAgainError, DumpFailedError
from rekernel.transition.places import Places
from rekernel.transition.trees import CarriedTree, remaining

_REASON = "criu stood still with it, so it was left out of the second attempt"


def to_restart(error: DumpAgainError, trees: Sequence[CarriedTree]) -> list[UnitVerdict]:
    """The units of a failed dump that the second attempt restarts; none if it was none of them.

    Raises DumpFailedError if one is not to be restarted: policy wants it carried, or nobody could
    start it again.
    """
    found = {
        tree.verdict.unit.name: tree.verdict
        for tree in trees
        if tree.verdict.unit.name in error.late
    }
    for name in error.late:
        # What is no tree of ours is a container.
        why_not = _why_not(found[name]) if name in found else "it is a container"
        if why_not:
            raise DumpFailedError(f"{error}; it is not restarted: {why_not}", error.hint)
    return [replace(item, verdict=Verdict.RESTARTED, reason=_REASON) for item in found.values()]


def _why_not(item: UnitVerdict) -> str:
    if item.wish in ("carry", "block"):
        return f"policy says {item.wish}"
    if item.unit.is_login or item.unit.is_manager:
        return "somebody is logged in there"
    if is_transient(item.unit):
        return "it is transient, and nobody could start it again"
    return ""


def without(
    ended: Sequence[UnitVerdict],
    carried: Sequence[CarriedTree],
    note: Callable[[str], None],
    stop: Callable[[str], None],
) -> tuple[list[CarriedTree], list[UnitVerdict]]:
    """The trees that are left without these units, and all units that have ended with them.

    ``stop``: a unit that is started again later. Raises RekernelError if policy wants one carried.
    """
    gone: dict[str, UnitVerdict] = {}
    left = list(carried)
    while ended:
        for item in ended:
            if item.verdict is Verdict.RESTARTED and item.wish in ("carry", "block"):
                raise RekernelError(
                    f"{item.unit.name} cannot be carried: {item.reason}; policy says {item.wish}",
                    "carry what it depends on, too, or let it be restarted: see rekernel.toml(5)",
                )
            gone[item.unit.name] = item
            note(f"{item.unit.name}: {item.reason}")
            if item.verdict is Verdict.RESTARTED:
                stop(item.unit.name)
        left, ended = remaining([tree for tree in left if tree.verdict.unit.name not in gone])
    return left, list(gone.values())


def forget(places: Places, trees: Sequence[CarriedTree], left_out: Sequence[UnitVerdict]) -> None:
    """Remove what a first attempt has written of these: whatever is there is handed over."""
    names = {item.unit.name for item in left_out}
    for tree in trees:
        if tree.verdict.unit.name in names:
            directory = places.images(tree.verdict.unit.name, tree.name)
            shutil.rmtree(directory, ignore_errors=True)
