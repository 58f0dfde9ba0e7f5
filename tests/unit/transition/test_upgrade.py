"""Whole attempts on a machine that is not this one: every phase fails, and all is as it was."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rekernel import syscalls
from rekernel.attempt.undo import UndoList
from rekernel.carry.memory import recorder
from rekernel.carry.memory.recorder import RECORDER
from rekernel.carry.unix_sockets import observe as unix_sockets
from rekernel.carry.unix_sockets.observe import Taken, UnsettledError
from rekernel.census.usage import Usage
from rekernel.census.verdicts import Verdict
from rekernel.criu.descriptors import External
from rekernel.criu.entry import Inherited
from rekernel.errors import (
    BlockedError,
    CancelledError,
    NotUndoneError,
    RekernelError,
    RolledBackError,
)
from rekernel.plan.room import Disk, Free
from rekernel.records import replace
from rekernel.report import builder
from rekernel.transition import staging, trees
from rekernel.transition.dumps import Dumps
from rekernel.transition.upgrade import Upgrade
from transition.machine import Machine, verdict

PHASES = [
    "load kernel",
    "swap off",
    "describe host",
    "gather strays",
    "take room",
    "wait for kernel",
    "stop what restarts",
    "sync",
    "look at processes",
    "make ready",
    "freeze",
    "lock network",
    "dump",
    "hand over",
    "freeze file systems",
]
# What is on the undo list at the end, and from which phase on.
STEPS = [
    ("load kernel", ["remove", "unload-kernel"]),
    ("swap off", ["swap-on"]),
    ("describe host", ["write", "write", "profile"]),
    ("stop what restarts", ["start-unit"]),
    ("freeze", ["flush-journal", "thaw", "thaw"]),
    ("lock network", ["unlock-network"]),
    # Once the network is locked, before the dump begins.
    ("dump", ["write", "end-repair", "wait-dumps", "thaw", "thaw", "thaw", "thaw", "end-repair"]),
    ("freeze file systems", ["thaw-filesystem"]),
]


def until(phase: str) -> list[str]:
    """This phase and all before it."""
    return PHASES[: PHASES.index(phase) + 1]


def steps_until(phase: str) -> list[str]:
    """Of this phase and all before it."""
    begun = until(phase)
    return [step for name, steps in STEPS if name in begun for step in steps]


def fail(upgrade: Upgrade) -> BaseException:
    """How an attempt ends, which never returns."""
    with pytest.raises(Exception) as caught:
        upgrade.run()
    return caught.value


def outcome(upgrade: Upgrade, error: BaseException) -> tuple[str, int]:
    """As the report has it."""
    assert isinstance(error, RekernelError)
    report = builder.undone({"id": upgrade.id}, error, (), upgrade.left)
    return report["outcome"], report["exit_code"]


def assert_as_before(machine: Machine, before: dict[str, object]) -> None:
    """And nothing is left on the list, nor a process."""
    assert machine.state() == before
    assert machine.undone[-len(machine.listed) :] == machine.listed[::-1]
    assert not machine.undo_file.exists()
    assert_nobody_is_left(machine)


def assert_nobody_is_left(machine: Machine) -> None:
    deadline = time.monotonic() + 20
    for words, process in machine.processes:
        # criu ends by itself when its hook does; all else must have been waited for.
        if words.startswith("criu dump"):
            process.wait(max(0.1, deadline - time.monotonic()))
        assert process.returncode is not None, words


def test_to_the_jump(machine: Machine) -> None:
    """All is in the new kernel's hands; a jump that fails after that is undone, too."""
    before = machine.state()
    started = time.time_ns()
    upgrade = machine.upgrade()
    error = fail(upgrade)
    assert isinstance(error, RolledBackError)
    assert error.message == "the upgrade failed: [Errno 16] Device or resource busy"
    assert error.hint == "everything runs on as before"
    assert outcome(upgrade, error) == ("rolled-back", 5)
    assert machine.phases == [*PHASES, "undo"]
    assert machine.listed == steps_until(PHASES[-1])
    assert_as_before(machine, before)

    then = machine.at_the_jump
    assert then["frozen"] == [True, True]
    assert then["loaded"] and then["locked"]
    assert (then["active"], then["journal"]) == (set(), "in memory")
    assert then["file systems"] == ["/"]
    assert b"vda2" not in then["swaps"]
    assert (then["khugepaged"], then["ksm"], then["overcommit"]) == (b"0", b"0", b"1")
    # In complain mode.
    assert then["apparmor/.replace"] != before["apparmor/.replace"]

    manifest = machine.handed_over
    assert manifest is not None
    assert [tree.unit for tree in manifest.trees] == ["db.service", "web.service"]
    assert [tree.root_pid for tree in manifest.trees] == [*machine.pids.values()]
    assert started <= manifest.frozen_ns <= time.time_ns()
    frozen = next(event for event in machine.events if event.name == "freeze")
    assert manifest.frozen_ns >= frozen.at_ns
    assert [phase.name for phase in manifest.phases] == PHASES
    assert manifest.report["pages_in_place"] == 3
    assert {unit["unit"]: unit["verdict"] for unit in manifest.report["units"]} == {
        "db.service": "carried",
        "web.service": "carried",
        "kvm.service": "restarted",
    }


def test_the_order_of_what_everybody_notices(machine: Machine) -> None:
    """What restarts is stopped before the freeze, and nothing runs before the network does."""
    fail(machine.upgrade())
    first = {words: at for at, words in reversed([*enumerate(machine.called)])}
    order = ["swapoff -- /dev/vda2", "systemctl stop -- kvm.service",
             "journalctl --relinquish-var", "nft -f -", "freeze /", "reboot"]  # fmt: skip
    assert sorted(order, key=first.__getitem__) == order
    assert first["kexec_file_load"] < first["systemctl stop -- kvm.service"]
    assert machine.undone.index("thaw-filesystem") < machine.undone.index("thaw")
    assert machine.undone.index("wait-dumps") < machine.undone.index("unlock-network")
    assert machine.undone[-2:] == ["unload-kernel", "remove"]


def image_larger_than_the_store(machine: Machine) -> None:
    machine.image_bytes = machine.store_bytes


def unfreezable(machine: Machine) -> None:
    """A control group whose last process ends just then."""
    machine.at["freeze"] = (machine.group("web.service") / "cgroup.events").unlink


def refusing(name: str) -> Callable[[Machine], None]:
    """A call that the kernel refuses."""

    def refuse(machine: Machine) -> None:
        machine.refuses[name] = OSError(errno.EIO, "Input/output error")

    return refuse


def broken(start: str) -> Callable[[Machine], None]:
    """A program that fails once."""

    def break_it(machine: Machine) -> None:
        machine.broken[start] = 1

    return break_it


def unwilling(machine: Machine) -> None:
    machine.criu_says = ["Can't dump file 4 of that type [20600] (chr 250:0)"]


FAILURES = [
    ("load kernel", refusing("initrd"), "the upgrade failed: .*Input/output error", 1),
    ("swap off", broken("swapoff"), "swap on /dev/vda2 cannot be turned off", 0),
    # Its settings are changed after that.
    ("describe host", broken("criu check"), r"criu failed \(1\): it is broken", 3),
    ("gather strays", broken(f"{RECORDER} stat"), r"rekernel-pagemap failed \(1\)", 0),
    ("take room", refusing("room"), "the upgrade failed: .*Input/output error", 0),
    ("wait for kernel", refusing("kexec_file_load"), "kernel cannot load /boot/vmlinuz-7.3.4", 0),
    ("stop what restarts", broken("systemctl stop"), r"systemctl failed \(1\)", 0),
    ("sync", refusing("sync"), "the upgrade failed: .*Input/output error", 0),
    ("look at processes", broken("ss"), r"ss failed \(1\)", 0),
    ("make ready", refusing("ptrace"), "the upgrade failed: .*Input/output error", 0),
    ("freeze", unfreezable, "web.service ended while the upgrade was prepared", 0),
    ("lock network", broken("nft"), r"nft failed \(1\)", 0),
    # The trees are not frozen again.
    ("dump", unwilling, r"\.service could not be dumped: Can't dump file 4 of that type", 3),
    ("hand over", image_larger_than_the_store, "the handover store is full", 0),
    ("freeze file systems", refusing("freeze /"), "the upgrade failed: .*Input/output error", 0),
]


@pytest.mark.parametrize(("phase", "prepare", "words", "missing"), FAILURES)
def test_a_phase_that_fails(
    phase: str,
    prepare: Callable[[Machine], None],
    words: str,
    missing: int,
    machine: Machine,
) -> None:
    before = machine.state()
    prepare(machine)
    upgrade = machine.upgrade()
    error = fail(upgrade)
    assert outcome(upgrade, error) == ("rolled-back", 5)
    assert re.search(words, str(error)), error
    assert machine.phases == [*until(phase), "undo"]
    steps = steps_until(phase)
    assert machine.listed == steps[: len(steps) - missing]
    assert_as_before(machine, before)


def test_every_phase_fails_somehow() -> None:
    assert [phase for phase, *_ in FAILURES] == PHASES


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_that_is_stopped(phase: str, machine: Machine) -> None:
    before = machine.state()
    machine.at[phase] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    upgrade = machine.upgrade()
    error = fail(upgrade)
    assert isinstance(error, CancelledError)
    assert (error.message, error.hint) == ("stopped by SIGTERM", "everything runs on as before")
    assert outcome(upgrade, error) == ("rolled-back", 5)
    # What was begun by then, and perhaps what came before somebody looked.
    assert machine.phases[: len(until(phase))] == until(phase)
    steps = steps_until(PHASES[-1])
    assert machine.listed
    assert machine.listed == steps[: len(machine.listed)]
    assert_as_before(machine, before)


@pytest.mark.parametrize("phase", [*PHASES[1:], "jump"])
def test_a_phase_that_is_killed(phase: str, machine: Machine) -> None:
    """Somebody else undoes it, with the list alone."""

    class KilledError(BaseException):
        pass

    def die() -> None:
        raise KilledError

    before = machine.state()
    # Whatever ends the attempt, its process does not come to undo anything.
    machine.at |= {"undo": die, phase: die}
    with pytest.raises(KilledError):
        machine.upgrade().run()
    # With it those that it has started; criu, as the hook sees the end of its connection.
    machine.end_processes()
    assert machine.undone == []
    if phase != PHASES[1]:
        assert machine.state() != before
    assert UndoList(machine.undo_file).run() == ()
    assert_as_before(machine, before)


def test_a_hang_up_is_heard_as_well(machine: Machine) -> None:
    machine.at["hand over"] = lambda: os.kill(os.getpid(), signal.SIGHUP)
    assert str(fail(machine.upgrade())) == "stopped by SIGHUP"


AGAIN = "Control messages in queue, not supported"


def test_a_dump_that_is_made_again(machine: Machine) -> None:
    before = machine.state()
    machine.criu_says = [AGAIN]
    between: list[dict[str, object]] = []
    machine.at["freeze"] = lambda: machine.at.update(
        {"freeze": lambda: between.append(machine.state())}
    )
    upgrade = machine.upgrade()
    fail(upgrade)
    cut_again = [*until("dump"), "give the dump up", *PHASES[PHASES.index("make ready") :]]
    assert machine.phases == [*cut_again, "undo"]
    assert_as_before(machine, before)
    # All ran in between, and what was stopped before the freeze stayed stopped.
    (then,) = between
    assert then["frozen"] == [False, False]
    assert not then["locked"]
    assert (then["journal"], then["overcommit"]) == ("on disk", b"7")
    assert then["loaded"]
    assert then["active"] == set()
    # The blackout is that of the second cut; of the first one there is a note.
    given_up = next(
        event for event in machine.events
        if event.name == "give the dump up" and event.kind == "end"
    )  # fmt: skip
    manifest = machine.handed_over
    assert manifest is not None
    assert manifest.frozen_ns >= given_up.at_ns
    (note,) = manifest.report["notes"]
    assert AGAIN in note
    assert re.search(r"; tried once more, after a pause of \d+\.\d s$", note)
    # The program that closes the journal, that of each cut, was waited for.
    closing = [item for words, item in machine.processes if words.startswith("journalctl")]
    assert [item.returncode is not None for item in closing] == [True, True]


def test_a_second_cut_begins_with_the_trees_as_they_were_described(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What led out of them at the first one may be gone, and has other numbers."""
    given = Inherited("unix", "fd[{fd}]:socket:[7]", connection=3)
    leading_out = [((External("unix[7]", given),), ()), ((), ())]

    def take(members: object) -> Taken:
        return Taken((), (), frozenset(), leading_out.pop(0), {})

    monkeypatch.setattr(unix_sockets, "take", take)
    machine.criu_says = [AGAIN]
    fail(machine.upgrade())
    assert not leading_out
    assert machine.handed_over is not None
    assert [tree.inherited for tree in machine.handed_over.trees] == [(), ()]
    *_, second = [words for words in machine.called if words.startswith("criu dump")]
    assert "unix[7]" not in second


def test_a_dump_that_fails_again(machine: Machine) -> None:
    before = machine.state()
    machine.criu_says = [AGAIN] * 9
    error = fail(machine.upgrade())
    assert AGAIN in str(error)
    assert machine.phases.count("dump") == 2
    assert_as_before(machine, before)


def test_nobody_cuts_again_before_all_is_undone(machine: Machine) -> None:
    """nft fails while the first dump is given up; what it did not do stays on the list."""
    before = machine.state()
    machine.criu_says = [AGAIN]
    machine.at["give the dump up"] = lambda: machine.broken.update({"nft": 1})
    upgrade = machine.upgrade()
    error = fail(upgrade)
    assert machine.phases == [*until("dump"), "give the dump up", "undo"]
    # It was done in the end, with all the rest.
    assert outcome(upgrade, error) == ("rolled-back", 5)
    assert machine.listed == [*steps_until("stop what restarts"), "unlock-network"]
    assert machine.state() == before
    assert not machine.undo_file.exists()


def test_what_stays_undone_after_a_first_dump(machine: Machine) -> None:
    before = machine.state()
    machine.criu_says = [AGAIN]
    machine.at["give the dump up"] = lambda: machine.broken.update({"nft": -1})
    upgrade = machine.upgrade()
    error = fail(upgrade)
    assert outcome(upgrade, error) == ("not-undone", 1)
    assert machine.state() == before | {"locked": True}
    (problem,) = upgrade.left
    assert (problem.step, problem.error) == ("unlock-network", "nft failed (1): it is broken")
    assert UndoList(machine.undo_file).left() == (problem,)


@pytest.mark.parametrize("prepare", [refusing("reboot"), unwilling])
def test_what_cannot_be_undone(prepare: Callable[[Machine], None], machine: Machine) -> None:
    before = machine.state()
    prepare(machine)
    machine.at["undo"] = lambda: machine.broken.update({"nft": -1, "swapon": -1})
    upgrade = machine.upgrade()
    error = fail(upgrade)
    assert outcome(upgrade, error) == ("not-undone", 1)
    assert [(item.step, item.remedy) for item in upgrade.left] == [
        ("swap-on", "swapon --priority 7 /dev/vda2"),
        ("unlock-network", "nft delete table inet rekernel_lock"),
    ]
    # All else is as before: one problem keeps nothing else from being undone.
    state = machine.state()
    assert {name for name in before if state[name] != before[name]} == {"locked", "swaps"}
    assert machine.undone == machine.listed[::-1]
    told = [event for event in machine.events if event.kind == "note"]
    assert [event.detail["step"] for event in told] == ["swap-on", "unlock-network"]
    assert told[1].name == f"not undone: {upgrade.left[1]}"
    # Whoever comes next, in a process of its own, has only the list.
    machine.broken.clear()
    assert UndoList(machine.undo_file).run() == ()
    assert machine.state() == before


def test_an_attempt_before_that_is_not_undone(machine: Machine) -> None:
    """Nothing begins on top of it."""
    machine.locked = True
    left = [["write", f"{machine.directory}/ksm=7", ""], ["unlock-network", "", ""]]
    machine.undo_file.write_text(json.dumps(left))
    (machine.directory / "ksm").write_text("0")
    machine.broken["nft"] = 1
    upgrade = machine.upgrade()
    error = fail(upgrade)
    assert isinstance(error, NotUndoneError)
    assert "an attempt before this one is not undone: unlock-network: nft failed" in str(error)
    assert error.hint == "do that by hand, then: rekernel abort"
    assert outcome(upgrade, error) == ("not-undone", 1)
    assert machine.phases == []
    assert (machine.directory / "ksm").read_text() == "7"
    # The next one undoes it first.
    before = machine.state() | {"locked": False}
    machine.undone.clear()
    fail(machine.upgrade())
    assert machine.undone[0] == "unlock-network"
    assert machine.phases[0] == "load kernel"
    assert machine.state() == before


def test_a_defect_while_letting_go(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the list is undone whatever happens before it."""
    before = machine.state()
    close = Dumps.close

    def close_and_fail(self: Dumps) -> None:
        close(self)
        raise ValueError("a defect")

    monkeypatch.setattr(Dumps, "close", close_and_fail)
    upgrade = machine.upgrade()
    with pytest.raises(ValueError, match="a defect"):
        upgrade.run()
    assert upgrade.left == ()
    assert_as_before(machine, before)


def test_nothing_is_unloaded_while_it_loads(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else fails while an attempt is taken back."""

    def load_slowly(*words: object) -> None:
        time.sleep(1)
        machine.load(*words)

    def fail_to_close(self: Dumps) -> None:
        raise ValueError("a defect")

    before = machine.state()
    monkeypatch.setattr(syscalls, "kexec_file_load", load_slowly)
    monkeypatch.setattr(Dumps, "close", fail_to_close)
    machine.at["swap off"] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(ValueError, match="a defect"):
        machine.upgrade().run()
    assert machine.called.index("kexec_file_load") < machine.called.index("kexec_unload")
    assert machine.state() == before


def test_what_must_settle(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs for a moment, and is frozen again; for so long only."""
    unsettled = [True, True, False]
    states: list[object] = []

    def take(trees: object) -> unix_sockets.Taken:
        states.append(machine.state()["frozen"])
        if unsettled.pop(0):
            raise UnsettledError("somebody knocked")
        return unix_sockets.Taken((), (), frozenset(), ((), ()), {})

    monkeypatch.setattr(unix_sockets, "take", take)
    fail(machine.upgrade())
    assert states == [[True, True]] * 3
    assert machine.phases == [*PHASES, "undo"]
    monkeypatch.setattr("rekernel.transition.standstill._SETTLE_S", 0.0)
    unsettled = [True] * 9
    before = machine.state()
    assert str(fail(machine.upgrade())) == "somebody knocked"
    assert machine.state() == before


def test_a_stop_while_it_must_settle(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(trees: object) -> unix_sockets.Taken:
        os.kill(os.getpid(), signal.SIGTERM)
        raise UnsettledError("somebody knocked")

    before = machine.state()
    monkeypatch.setattr(unix_sockets, "take", take)
    assert isinstance(fail(machine.upgrade()), CancelledError)
    assert_as_before(machine, before)


@pytest.mark.parametrize(
    "program",
    [
        f"{RECORDER} record",
        "journalctl --relinquish-var",
        "nft",
        "/usr/lib/rekernel/rekernel-images",
    ],
)
def test_who_waits_for_a_program_can_be_stopped(program: str, machine: Machine) -> None:
    """In the blackout, and long before the limit."""
    before = machine.state()
    machine.endless = (program,)
    waits = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    machine.at |= {"lock network": waits.start, "undo": lambda: setattr(machine, "endless", ())}
    began = time.monotonic()
    error = fail(machine.upgrade())
    assert isinstance(error, CancelledError)
    assert time.monotonic() - began < 9
    assert_as_before(machine, before)


def test_a_recorder_that_does_not_end(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.state()
    machine.endless = (f"{RECORDER} record",)
    monkeypatch.setattr(recorder, "_RECORDER_S", 1)
    upgrade = machine.upgrade()
    error = fail(upgrade)
    assert str(error) == "the recorder of the page map did not end within 1 s"
    assert outcome(upgrade, error) == ("rolled-back", 5)
    assert_as_before(machine, before)


def test_pages_that_were_moved_are_recorded_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.at["freeze file systems"] = lambda: setattr(machine, "moves", 1)
    fail(machine.upgrade())
    assert machine.phases == [*PHASES, "record again", "undo"]
    assert machine.handed_over is not None
    # One that keeps on moving them.
    before = machine.state()
    numbers = iter(range(100, 200))
    monkeypatch.setattr("rekernel.carry.memory.migrations.count", lambda: next(numbers))
    error = fail(machine.upgrade())
    assert (str(error), getattr(error, "hint", "")) == (
        "the kernel keeps on moving pages",
        "try again in a moment",
    )
    assert machine.state() == before


def test_a_criu_that_dies_while_it_holds(machine: Machine) -> None:
    before = machine.state()
    machine.at["freeze file systems"] = lambda: machine.end_processes("criu dump")
    error = fail(machine.upgrade())
    assert "while it held the dumped processes" in str(error)
    assert_as_before(machine, before)


def test_what_ended_before_the_freeze(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It restarts; what was described for it is described again, and does not come back."""
    machine.at["sync"] = lambda: (machine.group("web.service") / "cgroup.procs").write_text("")
    fail(machine.upgrade())
    assert machine.phases == [
        *until("sync"),
        "describe host again",
        *PHASES[PHASES.index("sync") + 1 :],
        "undo",
    ]
    manifest = machine.handed_over
    assert manifest is not None
    assert [tree.unit for tree in manifest.trees] == ["db.service"]
    verdicts = {unit["unit"]: unit["verdict"] for unit in manifest.report["units"]}
    assert verdicts["web.service"] == "restarted"
    assert "systemctl start --no-block -- web.service" in machine.called


def test_a_tree_that_ended_in_a_unit_that_did_not(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a login: nothing is described again, and it is not dumped."""
    monkeypatch.setattr(trees, "remaining", lambda carried: (carried[:1], []))
    fail(machine.upgrade())
    assert machine.phases == [*PHASES, "undo"]
    assert machine.handed_over is not None
    assert len(machine.handed_over.trees) == 1


def test_the_journal_that_is_not_closed_is_told(machine: Machine) -> None:
    machine.broken["journalctl --relinquish-var"] = 1
    fail(machine.upgrade())
    assert machine.handed_over is not None
    assert machine.handed_over.report["notes"] == [
        "the journal could not be closed on disk: see journalctl.log"
    ]


def test_without_a_region(machine: Machine) -> None:
    """Through a disk: the store is a file, and nothing of it stays."""
    before = machine.state()
    upgrade = machine.upgrade(machine.plan(in_place=False))
    store = machine.directory / "disk" / upgrade.id / "store"
    machine.refuses["freeze /"] = OSError(errno.EIO, "Input/output error")
    there: list[bool] = []
    machine.at["freeze file systems"] = lambda: there.append(store.exists())
    error = fail(upgrade)
    assert "Input/output error" in str(error)
    assert there == [True]
    assert machine.listed[:3] == ["remove", "remove", "unload-kernel"]
    assert_as_before(machine, before)


def test_what_blocks(machine: Machine) -> None:
    before = machine.state()
    plan = machine.plan(verdict("vm.service", Verdict.BLOCKS, 1 << 29))
    upgrade = machine.upgrade(plan)
    error = fail(upgrade)
    assert isinstance(error, BlockedError)
    assert str(error) == "these units block the upgrade: vm.service (a reason)"
    assert error.hint == "a remedy"
    assert outcome(upgrade, error) == ("refused", 3)
    assert machine.listed == []
    assert_as_before(machine, before)


def test_nothing_to_carry(machine: Machine) -> None:
    machine.pids.clear()
    upgrade = machine.upgrade()
    error = fail(upgrade)
    assert str(error) == "nothing would be carried"
    assert outcome(upgrade, error) == ("refused", 3)


def test_no_room_is_known_before_anything_is_frozen(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine.state()
    full = Free(1 << 20, 1 << 30, Disk("/var/lib/rekernel/images", 7, 0))
    monkeypatch.setattr("rekernel.plan.room.observe", lambda where, containers: full)
    usage = Usage("db.service", False, 1, 1 << 30, 0, 1 << 30, 0)
    upgrade = machine.upgrade(replace(machine.plan(), usages=(usage,)))
    error = fail(upgrade)
    assert "/var/lib/rekernel/images has 0 MiB free" in str(error)
    assert outcome(upgrade, error) == ("refused", 3)
    assert machine.phases == [*until("take room"), "undo"]
    assert machine.listed == steps_until("gather strays")
    assert_as_before(machine, before)


def test_strays_are_counted_as_of_now(machine: Machine) -> None:
    """Not as of the plan: a process may have got memory since."""
    before = machine.state()
    machine.strays = 200_000
    upgrade = machine.upgrade()
    error = fail(upgrade)
    assert "781 MiB of the services' memory lie outside of the carry region" in str(error)
    assert outcome(upgrade, error) == ("refused", 3)
    assert machine.phases[-2:] == ["take room", "undo"]
    assert_as_before(machine, before)


def test_a_list_that_cannot_be_written(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is taken that is not on disk before."""
    before = machine.state()
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if target == machine.undo_file and '"unlock-network"' in self.read_text():
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    error = fail(machine.upgrade())
    assert "No space left on device" in str(error)
    assert "nft -f -" in machine.called  # only that of the undoing
    assert machine.state() == before


def test_the_scratch_directory_is_for_nobody_else(machine: Machine) -> None:
    fail(machine.upgrade())
    assert staging.SCRATCH.stat().st_mode & 0o777 == 0o700
    assert json.loads((staging.SCRATCH / "recorder.json").read_text())["pages"] == 3
