"""The manifest of an attempt, from all that is known of it; as the new side reads it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from rekernel.attempt.undo import UndoList
from rekernel.carry.memory.entry import Extent, Memory
from rekernel.carry.network.entry import Network
from rekernel.carry.task_attributes.entry import TaskAttributes
from rekernel.carry.unix_sockets.observe import Taken
from rekernel.census.verdicts import Verdict
from rekernel.criu.descriptors import External
from rekernel.criu.entry import Inherited
from rekernel.criu.options import TreeOptions, restore_argv
from rekernel.handover.manifest import SCHEMA, Clock, Phase, dump, load
from rekernel.records import replace
from rekernel.transition import contract, staging, trees
from rekernel.transition.containers import Containers
from rekernel.transition.contract import Cut, Prepared
from rekernel.transition.host_facts import HostFacts
from rekernel.transition.places import Places
from rekernel.transition.trees import CarriedTree
from transition.machine import Machine

IN_PLACE = Memory("region", Extent(0, 9), (Extent(1, 2),), (), Extent(0, 1))
ON_DISK = Memory("image", None, (), (), None)
REPORT: dict[str, Any] = {
    "backend": "region", "image_bytes": 32 << 20, "tmpfs_bytes": 0, "stray_pages": 0,
    "resident_bytes": 64 << 20, "disk_bytes": 0, "units": [],
}  # fmt: skip
CLOCK = Clock(1, 2, 3)
CONTAINERS = SimpleNamespace(
    files=lambda: {"/run/rekernel/containers.json": "wanted"},
    network=lambda network: replace(network, unlock_rules=network.unlock_rules + " containers"),
)


@pytest.fixture
def host(machine: Machine) -> HostFacts:
    """Something in every field."""
    found = machine.host()
    travels = replace(
        found.travels,
        directories=("/run/x",),
        files={"/run/y": "z"},
        fifos=("/run/z",),
        prefetch=("/usr/bin/x",),
        network=Network("lock", "unlock", {"inet a": "a"}, (), "batch"),
        sysctls={"vm/max_map_count": "1"},
        systemd_header="header",
        systemd_units={"db.service": "section"},
    )
    return replace(found, travels=travels)


@pytest.fixture
def prepared(machine: Machine, host: HostFacts) -> Prepared:
    containers = cast(Containers, CONTAINERS)
    plan = machine.plan()
    places = Places("20261130-000000", plan.where, UndoList(machine.undo_file))
    return Prepared("20261130-000000", plan, host, places, containers, (Phase("sync", 1, 2),))


@pytest.fixture
def made(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Cut:
    """Two trees, one of which has a terminal of the other open."""
    monkeypatch.setattr(trees, "highest_number", lambda found: 4711)
    found = []
    for item in machine.plan().own(Verdict.CARRIED):
        (root,) = item.roots
        external = External("file[1:2]", Inherited("file", f"fd[{{fd}}]:of-{root}"))
        options = TreeOptions(root, item.unit.cgroup, False, True)
        task_attributes = TaskAttributes({str(root): (0,)})
        found.append(CarriedTree(item, item.processes, options, (external,), task_attributes))
    found[1] = replace(found[1], lenders=(found[0].name,))
    taken = Taken((), (), frozenset(), ((), ()), {"queue": b"x"})
    return Cut(found, taken, {"w/1": "/run/watched"}, b"tracked", 99)


def test_everything_is_in_it(prepared: Prepared, made: Cut, host: HostFacts) -> None:
    found = contract.manifest(prepared, made, IN_PLACE, REPORT, CLOCK)
    # Nothing that a file could not hold.
    assert load(dump(found)) == found
    assert (found.schema, found.id) == (SCHEMA, "20261130-000000")
    assert found.machine_id == staging.machine_id()
    assert (found.old_release, found.new_release) == ("6.12.1", "7.3.4")
    assert (found.clock, found.frozen_ns) == (CLOCK, 99)
    assert found.memory == IN_PLACE
    # What is unpacked from the store needs a place.
    assert found.host.mounts == (*host.travels.mounts, *prepared.places.to_unpack())
    for name in (
        "loops", "directories", "prefetch", "fifos", "hostname", "sysctls",
        "systemd_header", "systemd_units",
    ):  # fmt: skip
        assert getattr(found.host, name) == getattr(host.travels, name), name
    assert found.phases == (Phase("sync", 1, 2),)
    assert found.report == REPORT
    assert found.watched == {"w/1": "/run/watched"}
    assert found.highest_pid == 4711
    assert found.init == ("/sbin/init",)
    # By how much there is to read: 16 MiB in a second.
    assert found.patience_s == 120 + 2


def test_trees(prepared: Prepared, made: Cut, machine: Machine) -> None:
    first, second = contract.manifest(prepared, made, IN_PLACE, REPORT, CLOCK).trees
    db, web = machine.pids.values()
    assert (first.name, first.unit, first.root_pid) == ("db", "db.service", db)
    assert first.images == "images/db"
    assert first.argv == tuple(restore_argv(made.trees[0].options))
    assert "--lazy-pages" in first.argv
    assert [item.argument for item in first.inherited] == [f"fd[{{fd}}]:of-{db}"]
    assert first.cgroups == {str(db): "/system.slice/db.service"}
    assert first.task_attributes.affinities == {str(db): (0,)}
    assert (first.after, second.after) == ((), ("db",))
    assert second.cgroups == {str(web): "/system.slice/web.service"}


def test_without_a_region_the_images_are_directories(
    prepared: Prepared, made: Cut, machine: Machine
) -> None:
    report = REPORT | {"backend": "image"}
    prepared = replace(prepared, places=Places("id", None, UndoList(machine.undo_file)))
    found = contract.manifest(prepared, made, ON_DISK, report, CLOCK)
    disk = machine.directory / "disk/id"
    assert [tree.images for tree in found.trees] == [f"{disk}/db", f"{disk}/web"]
    # All that is resident is read.
    assert found.patience_s == 120 + 4


def test_control_groups_of_each_unit_once(prepared: Prepared, made: Cut, machine: Machine) -> None:
    inner = machine.group("web.service") / "worker"
    inner.mkdir()
    (inner / "cgroup.subtree_control").write_text("")
    (inner / "pids.max").write_text("50\n")
    twice = replace(made, trees=[*made.trees, made.trees[1]])
    found = contract.manifest(prepared, twice, IN_PLACE, REPORT, CLOCK).cgroups
    assert [item.path for item in found] == [
        "/", "/system.slice",
        "/system.slice/db.service", "/system.slice/web.service", "/system.slice/web.service/worker",
    ]  # fmt: skip
    assert found[-1].settings == {"pids.max": "50"}


def test_containers(prepared: Prepared, made: Cut) -> None:
    """Who is started by podman later: nobody answers in their place until then."""
    found = contract.manifest(prepared, made, IN_PLACE, REPORT, CLOCK)
    assert found.host.files == {"/run/y": "z", "/run/rekernel/containers.json": "wanted"}
    assert found.host.network.unlock_rules == "unlock containers"
    assert found.host.network.lock_rules == "lock"
    # Without any there is nothing of that.
    none = replace(prepared, containers=Containers(prepared.plan))
    found = contract.manifest(none, made, IN_PLACE, REPORT, CLOCK)
    assert found.host.files == {"/run/y": "z"}
    assert found.host.network.unlock_rules == "unlock"


NOTHING = {"image_bytes": 0, "disk_bytes": 0, "tmpfs_bytes": 0, "stray_pages": 0}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({**NOTHING, "backend": "region"}, 120),
        (
            {
                "backend": "region",
                "image_bytes": 6 << 20,
                "disk_bytes": 2 << 20,
                "tmpfs_bytes": 4 << 20,
                "stray_pages": 1024,
            },
            121,
        ),
        ({"backend": "image", "image_bytes": 0, "resident_bytes": 100 << 30}, 120 + 6400),
    ],
)
def test_what_takes_long_gets_long(report: dict[str, Any], expected: int) -> None:
    assert contract._patience({"resident_bytes": 1 << 40, **report}) == expected
