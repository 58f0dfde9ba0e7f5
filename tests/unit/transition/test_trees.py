"""Trees on their way from the plan to the manifest."""

from __future__ import annotations

import pytest

from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.checkpoint.amend import Sockets
from rekernel.checkpoint.externals import External
from rekernel.checkpoint.options import TreeOptions
from rekernel.errors import RekernelError
from rekernel.handover.manifest import Inherited, Unkept
from rekernel.systemd.units import Unit
from rekernel.transition import trees
from rekernel.transition.trees import CarriedTree


def tree(*inherited: External) -> CarriedTree:
    unit = Unit("a.service", "active", "running", "simple", 7, "/system.slice/a.service", "", {})
    verdict = UnitVerdict(unit, Verdict.CARRIED, "", processes={7: unit.cgroup}, root_pid=7)
    return CarriedTree(
        verdict,
        TreeOptions(7, unit.cgroup, False, True),
        inherited,
        "header\n",
        Unkept({"7": (0,)}),
    )


def test_what_ended_during_the_dump_is_left_to_criu() -> None:
    file = External("file[1:2]", Inherited("file", "fd[{fd}]:file[1:2]"))
    kept = External("unix[5]", Inherited("unix", "fd[{fd}]:socket:[5]"))
    ended = External("unix[6]", Inherited("unix", "fd[{fd}]:socket:[6]"))
    sockets = Sockets(frozenset({6, 99}), frozenset({98}))
    (found,) = trees.as_dumped([tree(file, kept, ended)], sockets)
    assert found.inherited == (file, kept)
    sockets = Sockets(frozenset(), frozenset({5}))
    with pytest.raises(RekernelError, match="was sent a descriptor while it was dumped"):
        trees.as_dumped([tree(file, kept, ended)], sockets)


def test_what_criu_restores_alone_is_not_in_the_manifest() -> None:
    given = Inherited("unix", "fd[{fd}]:socket:[5]")
    made = trees.for_manifest(
        tree(External("unix[5]", given), External("unix[6]", None)), "images/a"
    )
    assert made.inherited == (given,)
    assert made.unkept.affinities == {"7": (0,)}
    assert made.cgroups == {"7": "/system.slice/a.service"}


def test_who_ended_with_what_it_used(monkeypatch: pytest.MonkeyPatch) -> None:
    group = "/system.slice/a.service"
    monkeypatch.setattr(trees, "processes_of", lambda path: {7: path, 8: path})
    there, ended = trees.remaining([tree()])
    assert ([item.pids for item in there], ended) == ([[7]], [])
    # Started again by systemd meanwhile, as another process; or gone.
    for processes in ({9: group}, {}):
        monkeypatch.setattr(trees, "processes_of", lambda path, now=processes: now)
        there, ended = trees.remaining([tree()])
        assert there == []
        assert [(item.verdict, item.unit.name) for item in ended] == [
            (Verdict.RESTARTED, "a.service")
        ]
        assert "ended when" in ended[0].reason
