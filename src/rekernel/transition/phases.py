"""Phases: the steps of an attempt, one after the other, as its timeline shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rekernel.records import record
from rekernel.transition.state import State


def _always(state: State) -> bool:
    return True


@record
class Phase:
    """``name``: as the timeline has it. ``do``: its work; each step of that is on the undo list
    before it is taken. ``applies``: whether there is anything to do.
    """

    name: str
    do: Callable[[State], None]
    applies: Callable[[State], bool] = _always


def run(phases: Sequence[Phase], state: State) -> None:
    """Run phases one after the other. Raises what one raises, and CancelledError between two."""
    for phase in phases:
        if phase.applies(state):
            with state.events.phase(phase.name):
                phase.do(state)
            state.check()
