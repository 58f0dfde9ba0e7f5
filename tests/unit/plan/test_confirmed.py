"""A plan on its way from who confirmed it to who does it, and what has happened since."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.errors import BlockedError, RekernelError
from rekernel.plan import confirmed
from rekernel.plan.confirmed import Comparison, Confirmed, Expected, compare
from rekernel.systemd.units import Unit

CARRIED, RESTARTED, ENDS = Verdict.CARRIED, Verdict.RESTARTED, Verdict.ENDS
PLUMBING, BLOCKS = Verdict.PLUMBING, Verdict.BLOCKS
TOLD = Confirmed(
    "7.3.4", "/boot/vmlinuz-7.3.4", "/usr/lib/modules/7.3.4", "6.12.1", "region",
    (Expected("a.service", "carried"), Expected("b.service", "restarted", "io_uring")),
    4.5, "history", 3,
)  # fmt: skip


def now(name: str, verdict: Verdict, reason: str = "") -> UnitVerdict:
    facts = Unit(name, "active", "running", "simple", 9, f"/{name}", "", {})
    return UnitVerdict(facts, verdict, reason, "", {9: facts.cgroup}, (9,))


def test_it_comes_through_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "plan.json"
    confirmed.leave(TOLD, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert confirmed.take(path) == TOLD
    with pytest.raises(RekernelError, match=r"cannot be read: .*No such file") as caught:
        confirmed.take(path)
    assert caught.value.hint == "start it as `rekernel upgrade`"


@pytest.mark.parametrize("text", ["", "[]", '{"release": 7}', "{"])
def test_what_is_no_plan(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(RekernelError, match="the plan that was confirmed cannot be read"):
        confirmed.take(path)
    assert not path.exists()


def compared(before: Verdict, after: Verdict) -> Comparison:
    return compare([Expected("a.service", before, "why")], [now("a.service", after, "x")])


def test_nothing_has_changed() -> None:
    for verdict in Verdict:
        found = compared(verdict, verdict)
        assert found == Comparison((now("a.service", verdict, "x"),))
        found.refuse()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (CARRIED, RESTARTED, "was to be carried and would now be restarted (x)"),
        (CARRIED, ENDS, "was to be carried and would now end (x)"),
        (CARRIED, BLOCKS, "was to be carried and would now block the upgrade (x)"),
        (RESTARTED, ENDS, "was to be restarted and would now end (x)"),
        # A user's manager that ran nothing, and does now.
        (PLUMBING, CARRIED, "was to boot afresh and would now be carried (x)"),
        (CARRIED, PLUMBING, "was to be carried and would now boot afresh (x)"),
    ],
)
def test_worse(before: Verdict, after: Verdict, words: str) -> None:
    found = compared(before, after)
    assert found.worse == (f"a.service {words}",)
    with pytest.raises(BlockedError) as caught:
        found.refuse()
    assert caught.value.message == f"not what was confirmed: a.service {words}"
    assert caught.value.hint == "nothing was touched: look at `rekernel plan`, then decide anew"


@pytest.mark.parametrize(
    ("before", "after"),
    [(RESTARTED, CARRIED), (ENDS, CARRIED), (ENDS, RESTARTED), (BLOCKS, CARRIED)],
)
def test_better_is_done_as_confirmed(before: Verdict, after: Verdict) -> None:
    found = compared(before, after)
    found.refuse()
    (item,) = found.units
    assert (item.verdict, item.reason, item.processes) == (before, "why", {9: "/a.service"})
    assert found.notes[0].startswith("a.service could ")


def test_what_has_ended() -> None:
    told = [Expected("a.service", "carried"), Expected("p.service", "plumbing")]
    found = compare(told, [])
    found.refuse()
    assert found.notes == ("a.service has ended since the plan was confirmed",)
    found = compare(told, [], asked=["a.service"])
    with pytest.raises(BlockedError, match=r"a\.service has ended, and was to be carried by all"):
        found.refuse()


def test_what_has_started() -> None:
    found = compare([], [now("a.service", CARRIED), now("p.service", PLUMBING)])
    found.refuse()
    assert found.notes == ("a.service has started since, and is carried too",)
    assert len(found.units) == 2
    for verdict, words in ((RESTARTED, "be restarted"), (ENDS, "end"), (BLOCKS, "block")):
        found = compare([], [now("a.service", verdict, "x")])
        with pytest.raises(BlockedError, match=f"has started since and would {words}"):
            found.refuse()
