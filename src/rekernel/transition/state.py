"""What one attempt knows and has made so far: each phase reads it, and adds its own."""

from __future__ import annotations

import mmap
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from rekernel.attempt.events import EventStream
from rekernel.attempt.undo import UndoList
from rekernel.carry.memory.recorder import PageRecord
from rekernel.carry.pidfd.observe import StandIn
from rekernel.carry.raid.entry import RaidArray
from rekernel.carry.swap.observe import SwapArea
from rekernel.carry.unix_sockets.observe import Taken
from rekernel.census.snapshot import Snapshot
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.handover.store import StoreWriter
from rekernel.plan import room
from rekernel.plan.plan import Plan
from rekernel.run import end, run
from rekernel.transition import host_facts, late, staging
from rekernel.transition.containers import Containers
from rekernel.transition.contract import Cut
from rekernel.transition.dumps import Dumps
from rekernel.transition.host_facts import HostFacts
from rekernel.transition.loading import Loading
from rekernel.transition.places import Places
from rekernel.transition.trees import CarriedTree


class State:
    """The state of one attempt. What has no value here is there from the phase on that makes it."""

    # Of "load kernel": whether criu can do with this kernel, and the arrays that the initrd knows.
    criu_checked: Future[None]
    arrays: tuple[RaidArray, ...]
    # Of "describe host": settings that are set again, and what travels.
    settings: dict[str, str]
    carried: list[CarriedTree]
    host: HostFacts
    # Of "look at processes": their connections, and the frequency of the TSC.
    connections: list[list[str]]
    hertz: int
    # Of "freeze": the trees as they stand still, and what leads out of each. A second cut begins
    # with ``carried`` again.
    frozen: list[CarriedTree]
    taken: Taken
    # Of "dump".
    cut: Cut
    # The handover store as memory, open from before the freeze; and what writes to it.
    area: mmap.mmap
    writer: StoreWriter
    # Of "hand over": bytes of images and of tmpfs in the store.
    image_bytes: int
    tmpfs_bytes: int

    def __init__(
        self,
        id: str,
        plan: Plan,
        events: EventStream,
        undo: UndoList,
        check: Callable[[], None],
        remember: Callable[[Snapshot], object],
    ) -> None:
        """``check`` raises CancelledError if the attempt shall end. ``remember`` keeps what the
        processes were like, for who compares them afterwards.
        """
        self.id = id
        self.plan = plan
        self.events = events
        self.undo = undo
        self.check = check
        self.remember = remember
        self.notes: list[str] = []
        self.dumps = Dumps(undo)
        self.places = Places(id, plan.where, undo)
        self.containers = Containers(plan)
        self.calibration = staging.TscCalibration()
        self.loading: Loading | None = None
        self.swap_areas: Sequence[SwapArea] = ()
        # Policies of AppArmor that confine what is carried.
        self.profiles: list[bytes] = []
        # Descriptors that keep the names of watched files in the kernel's memory.
        self.pinned: list[int] = []
        # Bytes of pages outside of the carry region, which are copied.
        self.stray_bytes = 0
        # Units that ended before the freeze; and all that are not carried after all.
        self.just_ended: list[UnitVerdict] = []
        self.ended: list[UnitVerdict] = []
        self.stand_in = StandIn(())
        # The program that closes the journal on disk.
        self.journal: subprocess.Popen[bytes] | None = None
        # Since when everything stands still, in nanoseconds of real time.
        self.frozen_ns = 0
        # The page map as of now; None without a region.
        self.record: PageRecord | None = None

    @property
    def pids(self) -> list[int]:
        """The processes of all trees."""
        return [pid for tree in self.carried for pid in tree.pids]

    @property
    def everyone(self) -> list[int]:
        """All processes that are carried, those in containers, too."""
        return [*self.pids, *self.containers.pids]

    @property
    def frozen_pids(self) -> list[int]:
        """The processes of all trees that stand still."""
        return [pid for tree in self.frozen for pid in tree.pids]

    @property
    def in_place(self) -> bool:
        """Whether memory stays in a carry region."""
        return self.plan.where is not None

    @property
    def strays_at(self) -> int:
        """Where in the store copies of strays lie; 0 without a region."""
        return room.stray_offset(len(self.area), self.stray_bytes) if self.in_place else 0

    def note(self, text: str) -> None:
        """Note something for the report, and tell whoever listens."""
        self.notes.append(text)
        self.events.emit("note", text)

    def stop(self, unit: str) -> None:
        """Stop a unit that starts again afterwards. Raises CommandFailedError, CancelledError."""
        self.undo.push("start-unit", unit)
        run(["systemctl", "stop", "--", unit])
        self.check()

    def observe_host(self) -> None:
        """What travels beside the trees. Raises RekernelError, OSError."""
        restarted = [*self.plan.own(Verdict.RESTARTED), *self.ended]
        self.host = host_facts.observe(self.carried, [item.unit for item in restarted])

    def leave_out(self, ended: Sequence[UnitVerdict]) -> None:
        """Go on without these units. Raises RekernelError if policy wants one carried."""
        self.carried, gone = late.without(ended, self.carried, self.note, self.stop)
        self.ended += gone
        # What was described for them must not come back.
        self.observe_host()

    def end_journal(self) -> None:
        """End the program that closes the journal.

        What it has asked for by then journald does before it is asked to flush.
        """
        if self.journal is not None:
            end(self.journal)
            self.journal = None
