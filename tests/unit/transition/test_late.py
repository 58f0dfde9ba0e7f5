"""What a second attempt does without, after criu stood still."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekernel.attempt.undo import UndoList
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.criu.options import TreeOptions
from rekernel.errors import RekernelError
from rekernel.records import replace
from rekernel.systemd.units import Unit
from rekernel.transition import late
from rekernel.transition.dumps import DumpAgainError, DumpFailedError
from rekernel.transition.places import Places
from rekernel.transition.trees import CarriedTree


def tree(name: str, wish: str | None = None, fragment: str = "") -> CarriedTree:
    properties = {"FragmentPath": fragment or f"/etc/systemd/system/{name}"}
    unit = Unit(name, "active", "running", "simple", 7, f"/system.slice/{name}", "", properties)
    verdict = UnitVerdict(unit, Verdict.CARRIED, "", roots=(7,), wish=wish)
    return CarriedTree(verdict, {7: unit.cgroup}, TreeOptions(7, unit.cgroup, False, False), ())


def stood_still(*units: str) -> DumpAgainError:
    return DumpAgainError("criu stood still", "see stuck.log", units)


def test_only_those_it_stood_still_with() -> None:
    trees = [tree("a.service"), tree("b.service"), tree("b.service")]
    (found,) = late.to_restart(stood_still("b.service", "b.service"), trees)
    assert found.unit.name == "b.service"
    assert found.verdict is Verdict.RESTARTED
    assert "left out of the second attempt" in found.reason


def test_what_is_over_in_a_moment_costs_nobody_anything() -> None:
    assert late.to_restart(stood_still(), [tree("a.service")]) == []


@pytest.mark.parametrize(
    ("carried", "why"),
    [
        (tree("a.service", wish="carry"), "policy says carry"),
        (tree("a.service", wish="block"), "policy says block"),
        (tree("session-1.scope"), "somebody is logged in there"),
        (tree("user@0.service"), "somebody is logged in there"),
        (tree("run-1.service", fragment="/run/systemd/transient/run-1.service"), "it is transient"),
        (None, "it is a container"),
    ],
)
def test_who_is_not_restarted(carried: CarriedTree | None, why: str) -> None:
    trees = [carried] if carried else []
    name = carried.verdict.unit.name if carried else "libpod-1.scope"
    with pytest.raises(DumpFailedError, match=f"criu stood still; it is not restarted: {why}") as e:
        late.to_restart(stood_still(name), trees)
    assert e.value.hint == "see stuck.log"
    # That is the end of it.
    assert not isinstance(e.value, DumpAgainError)


def test_who_ends_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of a database that is stopped, say."""
    trees = [tree("client.service"), tree("db.service"), tree("web.service")]
    (out,) = late.to_restart(stood_still("db.service"), trees)
    told: list[str] = []

    def remaining(
        items: list[CarriedTree],
    ) -> tuple[list[CarriedTree], list[UnitVerdict]]:
        ended = [item for item in items if item.verdict.unit.name == "client.service"]
        there = [item for item in items if item not in ended]
        verdict = Verdict.RESTARTED
        return there, [replace(item.verdict, verdict=verdict, reason="ended") for item in ended]

    monkeypatch.setattr(late, "remaining", remaining)
    left, gone = late.without([out], trees, told.append, lambda unit: told.append(f"stop {unit}"))
    assert [item.verdict.unit.name for item in left] == ["web.service"]
    assert [item.unit.name for item in gone] == ["db.service", "client.service"]
    assert told[1::2] == ["stop db.service", "stop client.service"]
    assert told[2] == "client.service: ended"


def test_what_was_written_of_them_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = [tree("a.service"), tree("b.service")]
    for item in trees:
        (tmp_path / item.name).mkdir()
        (tmp_path / item.name / "pages-1.img").touch()
    places = Places("1", None, UndoList(tmp_path / "undo.json"))
    monkeypatch.setattr(places, "images", lambda unit, tree: tmp_path / tree)
    late.forget(places, trees, [trees[1].verdict])
    assert [path.name for path in tmp_path.iterdir()] == [trees[0].name]


@pytest.mark.parametrize("wish", ["carry", "block"])
def test_what_policy_wants_carried_does_not_end_with_others(wish: str) -> None:
    wanted = tree("a.service", wish=wish).verdict
    ended = replace(wanted, verdict=Verdict.RESTARTED, reason="it ended with its database")
    stopped: list[str] = []
    words = f"a.service cannot be carried: it ended with its database; policy says {wish}"
    with pytest.raises(RekernelError, match=words):
        late.without([ended], [], lambda text: None, stopped.append)
    assert stopped == []
