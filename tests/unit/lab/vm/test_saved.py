"""Saved states of guests: what each depends on, which are kept, and what shares one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rekernel_lab import cache
from rekernel_lab.errors import LabError
from rekernel_lab.images.rootfs import Image
from rekernel_lab.scenario import prepared, scenario
from rekernel_lab.scenario.assemble import Assembly
from rekernel_lab.scenario.scenario import Scenario
from rekernel_lab.vm import saved
from rekernel_lab.vm.qemu import Machine


def test_only_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKERNEL_LAB_CACHE", str(tmp_path))
    states = tmp_path / saved.KIND
    for age in (0, 60, 120, 180, 3600, 7200):
        path = states / f"{age}"
        path.mkdir(parents=True)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    (states / "9999.part").mkdir()
    saved.prune()
    # The fourth may be in use.
    assert {path.name for path in states.iterdir()} == {"0", "60", "120", "180", "9999.part"}


ONE = Scenario("one", Path("/one"), ("nginx-light", "tcc"), 4096, 1024)
OTHER = Scenario("other", Path("/other"), ("nginx-light", "redis-server"), 3072, 2048)


def test_a_guest_for_several_has_what_each_needs() -> None:
    base = prepared.shared([ONE, OTHER])
    assert base.packages == ("nginx-light", "redis-server", "tcc")
    assert (base.memory_mib, base.region_mib, base.disk_mib) == (4096, 2048, 0)
    assert prepared.left_out(ONE, base) == ["redis-server.service"]
    assert prepared.left_out(OTHER, base) == []


def test_scenarios_that_begin_differently_share_nothing() -> None:
    with pytest.raises(LabError, match="share no guest"):
        prepared.shared([ONE, Scenario("third", Path("/third"), kernel_from="7")])


def test_the_name_of_a_state_tells_what_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "text", lambda words: "QEMU 10")
    deb = tmp_path / "a.deb"
    deb.write_text("1")
    assembly = Assembly(Path("/base"), Image(Path("/images/x")), ("6.12",), "tcg")
    machine = Machine("tcg", 4096)

    def key(**changes: Any) -> str:
        every = {"assembly": assembly, "deb": deb, "machine": machine, "region_mib": 1024}
        return prepared.key(**{**every, **changes})

    first = key()
    assert key() == first
    other = tmp_path / "b.deb"
    other.write_text("2")
    image = Assembly(Path("/base"), Image(Path("/images/y")), ("6.12",), "tcg")
    assert first not in (
        key(deb=other), key(assembly=image), key(machine=Machine("tcg", 4097)), key(region_mib=1)
    )  # fmt: skip
    monkeypatch.setattr(prepared, "text", lambda words: "QEMU 11")
    assert key() != first


def test_every_service_of_the_shared_guest_has_an_owner() -> None:
    """Else it would run in every other scenario, too."""
    scenarios = cache.REPOSITORY / "lab" / "scenarios"
    for name in ("between", "containers", "demo", "pages"):
        for package in scenario.load(scenarios / name).packages:
            assert (package in prepared.UNITS) != (package in prepared.NO_SERVICES), package
