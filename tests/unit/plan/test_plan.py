"""Planning: every refusal, and what need not stop an upgrade."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rekernel.carry.loops.observe import Loops
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.region import layout
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.errors import BlockedError, NothingToDoError, UsageError
from rekernel.kernel.installed import Kernel
from rekernel.plan import plan
from rekernel.plan.confirmed import Confirmed, Expected
from rekernel.policy import Policy, load
from rekernel.systemd.units import Unit

OLD, NEW = (Kernel(name, Path(f"/boot/vmlinuz-{name}"), Path("/x")) for name in ("6.12.1", "7.3.4"))


def unit(name: str, verdict: Verdict, *pids: int) -> UnitVerdict:
    facts = Unit(name, "active", "running", "simple", pids[0], f"/system.slice/{name}", "", {})
    return UnitVerdict(facts, verdict, "", "", dict.fromkeys(pids, facts.cgroup), pids[:1])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine whose facts a test may change."""
    facts: dict[str, Any] = {
        "kernels": [OLD, NEW],
        "running": "6.12.1",
        "mounts": [],
        "loops": Loops(),
        "lacks": [],
        "links": [],
        "region": None,
        "units": [unit("redis.service", Verdict.CARRIED, 5000)],
        "services": [],
    }
    monkeypatch.setattr(plan, "installed", lambda: facts["kernels"])
    monkeypatch.setattr(plan, "running_release", lambda: facts["running"])
    monkeypatch.setattr(plan, "mounts", SimpleNamespace(observe=list))
    known = SimpleNamespace(
        root=lambda table: None, unsupported=lambda table, loops: facts["mounts"]
    )
    monkeypatch.setattr(plan, "disks", known)
    monkeypatch.setattr(plan, "drivers", SimpleNamespace(essential=lambda table: ["fs-ext4"]))
    monkeypatch.setattr(
        plan,
        "fitness",
        SimpleNamespace(shortcomings=lambda *asked, region: facts["lacks"]),
    )
    monkeypatch.setattr(plan, "loops", SimpleNamespace(observe=lambda table: facts["loops"]))
    monkeypatch.setattr(
        plan,
        "network",
        SimpleNamespace(observe=lambda: None, unsupported=lambda found: facts["links"]),
    )
    monkeypatch.setattr(
        plan,
        "region",
        SimpleNamespace(current=lambda: facts["region"], ram_ranges=lambda where: []),
    )
    monkeypatch.setattr(plan, "running_units", lambda: facts["services"])

    def judge(services: list[Unit], policy: Policy, parents: dict[int, int]) -> list[UnitVerdict]:
        facts["judged"] = services
        found: list[UnitVerdict] = facts["units"]
        return found

    monkeypatch.setattr(plan, "judge", judge)
    monkeypatch.setattr(plan, "survey", lambda pids, regions: None)
    return facts


def test_the_newest_kernel_is_the_default(machine: dict[str, Any]) -> None:
    made = plan.make(None, Policy())
    assert (made.kernel.release, made.running, made.backend) == ("7.3.4", "6.12.1", "image")
    assert made.warnings == ()


def test_nothing_newer(machine: dict[str, Any]) -> None:
    machine["running"] = "7.3.4"
    with pytest.raises(NothingToDoError, match=r"7\.3\.4 is the newest installed kernel"):
        plan.make(None, Policy())
    assert plan.make("7.3", Policy()).kernel.release == "7.3.4"


def test_unknown_kernel(machine: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no installed kernel matches 9"):
        plan.make("9", Policy())


def test_units_that_do_not_run(machine: dict[str, Any]) -> None:
    rules = (("redis*", "carry"), ("gone.service", "restart"))
    assert plan.make(None, Policy(rules)).warnings == (
        "policy names gone.service, which does not run",
    )
    with pytest.raises(UsageError, match=r"gone\.service does not run"):
        plan.make(None, Policy(rules, None, ("gone.service",)))


def test_what_cannot_be_set_up_again(machine: dict[str, Any]) -> None:
    machine["mounts"], machine["links"] = ["/srv (xfs on /dev/sdb)"], ["br0 (bridge)"]
    with pytest.raises(BlockedError, match=r"/srv \(xfs on /dev/sdb\), br0 \(bridge\)"):
        plan.make(None, Policy())


def test_a_kernel_that_cannot_drive_this_machine(machine: dict[str, Any]) -> None:
    machine["lacks"] = ["no virtio_blk"]
    with pytest.raises(BlockedError, match=r"kernel 7\.3\.4 cannot take over: no virtio_blk"):
        plan.make(None, Policy())


def test_what_will_be_gone(machine: dict[str, Any]) -> None:
    machine["loops"] = Loops({}, {"/dev/loop3": "of /x, which is gone"})
    assert plan.make(None, Policy()).warnings == ("/dev/loop3, of /x, which is gone, will be gone",)


def test_region_wanted_and_not_there(machine: dict[str, Any]) -> None:
    with pytest.raises(BlockedError, match="no carry region is set up") as caught:
        plan.make(None, Policy(), "region")
    assert "rekernel setup" in caught.value.hint


def test_images_wanted_in_spite_of_a_region(machine: dict[str, Any]) -> None:
    machine["region"] = layout(Range(4 << 30, 6 << 30), 128 << 20)
    assert plan.make(None, Policy()).backend == "region"
    assert plan.make(None, Policy(), "image").backend == "image"


def test_what_is_carried_has_room(machine: dict[str, Any]) -> None:
    machine["units"] = [unit("db.service", Verdict.CARRIED, os.getpid())]
    machine["region"] = layout(Range(4 << 30, 6 << 30), 128 << 20)
    with mmap.mmap(-1, 120 << 20) as shared:
        shared.write(b"x" * len(shared))
        made = plan.make(None, Policy())
    (used,) = made.usages
    assert (used.unit, used.processes) == ("db.service", 1)
    assert used.shared >= 120 << 20
    assert made.resident_bytes == used.resident > used.shared
    assert made.anonymous_bytes == used.anonymous > 1 << 20
    assert (made.container_bytes, made.container_directory) == (0, None)
    # The store of 128 MiB has other things in it, too.
    assert made.room.is_on_disk("db.service")
    assert not plan.make(None, Policy()).room.is_on_disk("db.service")


def test_the_upgrade_does_not_plan_itself(machine: dict[str, Any]) -> None:
    own = Unit("rekernel-upgrade.service", "active", "running", "exec", 1, "/x", "", {})
    machine["services"] = [own]
    plan.make(None, Policy())
    assert machine["judged"] == []


def test_warnings() -> None:
    units = [unit("a.service", Verdict.CARRIED, 400, 5000), unit("b.scope", Verdict.ENDS, 5001)]
    found = plan.warnings_for(units)
    assert "process 400" in found[0]
    assert found[1].startswith("b.scope ends: ")
    assert "nothing would be carried" in plan.warnings_for([])[0]


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rekernel.toml"
    path.write_text(text)
    return path


def test_policy_order(tmp_path: Path) -> None:
    path = config(
        tmp_path, 'max_blackout = 5\n[units]\nredis = "restart"\n"redis*" = "carry"\nx = "block"\n'
    )
    found = load(carry=["nginx"], restart=["cups.service"], config=path)
    assert found.max_blackout == 5.0
    assert found.wish("nginx.service") == "carry"
    assert found.wish("cups.service") == "restart"
    assert found.wish("redis.service") == "restart"
    assert found.wish("redis-server.service") == "carry"
    assert found.wish("x.service") == "block"
    assert found.wish("y.service") is None


def test_policy_without_a_file(tmp_path: Path) -> None:
    assert load(config=tmp_path / "none") == Policy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[units]\nredis = "keep"\n', "redis = 'keep'"),
        ("maximum = 3\n", "unknown key maximum"),
        ('max_blackout = "5"\n', "unknown key max_blackout"),
        ("[units\n", "rekernel.toml: "),
    ],
)
def test_policy_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(config=config(tmp_path, text))
    assert message in caught.value.message
    assert caught.value.exit_code == 2


def test_policy_contradiction(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"redis\.service: both --carry and --restart"):
        load(["redis"], ["redis.service"], tmp_path / "none")


def test_a_plan_that_was_confirmed(
    machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its units are looked at anew; for what passes it waits a moment."""
    told = Confirmed(
        "7.3.4", "/boot/vmlinuz-7.3.4", "/x", "6.12.1", "image",
        (Expected("redis.service", "carried"), Expected("gone.service", "restarted")), 4.5,
        "model", 0,
    )  # fmt: skip
    monkeypatch.setattr(plan, "_PASSES_S", 30)
    made, notes = plan.renew(told, Policy())
    assert (made.kernel, made.backend, made.running) == (NEW, "image", "6.12.1")
    assert [item.unit.name for item in made.own(Verdict.CARRIED)] == ["redis.service"]
    assert notes == ("gone.service has ended since the plan was confirmed",)

    looks = [unit("redis.service", Verdict.RESTARTED, 5000), machine["units"][0]]
    monkeypatch.setattr(plan, "judge", lambda *facts: [looks.pop(0)])
    plan.renew(told, Policy())
    assert not looks

    worse = unit("redis.service", Verdict.RESTARTED, 5000)
    monkeypatch.setattr(plan, "judge", lambda *facts: [worse])
    monkeypatch.setattr(plan, "_PASSES_S", 0.2)
    with pytest.raises(BlockedError, match=r"redis\.service was to be carried and would now be re"):
        plan.renew(told, Policy())
    machine["lacks"] = ["no virtio_blk"]
    with pytest.raises(BlockedError, match=r"cannot take over: no virtio_blk"):
        plan.renew(told, Policy())
