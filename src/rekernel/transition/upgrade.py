"""The old side: an attempt as a sequence of phases. Undone if it ends before the kexec."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

from rekernel.attempt.events import EventStream
from rekernel.attempt.problem import Problem
from rekernel.attempt.undo import UndoList
from rekernel.census.snapshot import Snapshot
from rekernel.errors import CancelledError, NotUndoneError, RekernelError, RolledBackError
from rekernel.plan.plan import Plan
from rekernel.records import asdict
from rekernel.run import answering
from rekernel.transition import (
    handing_over,
    loading,
    phases,
    preparation,
    standstill,
    store,
)
from rekernel.transition.dumps import DumpAgainError
from rekernel.transition.phases import Phase
from rekernel.transition.state import State

_RUNS_ON = "everything runs on as before"

_PREPARATION = (
    Phase("load kernel", preparation.load_kernel),
    Phase("swap off", preparation.swap_off, applies=preparation.has_swap),
    Phase("describe host", preparation.describe_host),
    Phase("gather strays", preparation.gather_strays, applies=preparation.is_in_place),
    Phase("take room", preparation.take_room),
    Phase("wait for kernel", preparation.wait_for_kernel),
    Phase("stop what restarts", preparation.stop_what_restarts),
    Phase("sync", preparation.sync),
    Phase("describe host again", preparation.describe_again, applies=preparation.some_ended),
    Phase("look at processes", preparation.look_at_processes),
)
# The blackout begins with "freeze".
_CUT = (
    Phase("make ready", standstill.make_ready),
    Phase("freeze", standstill.freeze),
    Phase("lock network", standstill.lock_network),
    Phase("dump", standstill.dump),
)
_HANDING_OVER = (
    Phase("hand over", handing_over.hand_over),
    Phase("freeze file systems", handing_over.freeze_filesystems),
    Phase("record again", handing_over.record_again, applies=handing_over.pages_moved),
)


class Upgrade:
    """One attempt. :meth:`run` ends in the new kernel or raises after undoing everything."""

    def __init__(
        self, plan: Plan, events: EventStream, remember: Callable[[Snapshot], object]
    ) -> None:
        """``remember`` keeps what the processes were like, for who compares them afterwards."""
        self._events = events
        self._undo = UndoList()
        self._cancelled = ""
        name = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self._state = State(name, plan, events, self._undo, self._check, remember)

    @property
    def id(self) -> str:
        """Names the attempt in the history."""
        return self._state.id

    @property
    def notes(self) -> list[str]:
        """What the report shall say beside the facts; may be added to."""
        return self._state.notes

    @property
    def left(self) -> tuple[Problem, ...]:
        """What of this attempt, or of one before it, is not undone: nothing if all run on."""
        return self._undo.left()

    def run(self) -> None:
        """Returns only by raising: what failed, or RolledBackError for what is no RekernelError.

        By then all was undone that could be: see :attr:`left`.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        # Of an attempt before this one.
        left = self._undo.run()
        if left:
            raise NotUndoneError(
                f"an attempt before this one is not undone: {left[-1]}",
                "do that by hand, then: rekernel abort",
            )
        try:
            with answering(self._check):
                self._attempt()
        except BaseException as error:
            with self._events.phase("undo"):
                self._take_back()
            if isinstance(error, RekernelError):
                raise
            raise RolledBackError(f"the upgrade failed: {error}", _RUNS_ON) from error

    def _attempt(self) -> None:
        state = self._state
        preparation.begin(state)
        phases.run(_PREPARATION, state)
        with store.open_store(state.plan.where, state.places.store_file) as state.area:
            mark = len(self._undo)
            try:
                phases.run(_CUT, state)
            except DumpAgainError as error:
                standstill.give_up(state, error, mark)
                phases.run(_CUT, state)
            phases.run(_HANDING_OVER, state)
            handing_over.seal(state)
        loading.jump()

    def _take_back(self) -> None:
        state = self._state
        try:
            state.stand_in.end()
            state.end_journal()
            state.dumps.close()
        finally:
            if state.loading is not None:
                state.loading.end()
            for problem in self._undo.run():
                self._events.emit("note", f"not undone: {problem}", **asdict(problem))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._cancelled = signal.Signals(number).name

    def _check(self) -> None:
        if self._cancelled:
            raise CancelledError(f"stopped by {self._cancelled}", _RUNS_ON)
