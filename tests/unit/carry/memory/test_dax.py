"""Dax regions in sysfs, as kernels lay it out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from recorded import NEW, OLD, Recorded, on_each_kernel

from rekernel.carry.memory import dax, region
from rekernel.carry.memory.dax import Range
from rekernel.errors import BlockedError


@pytest.fixture(params=[OLD, NEW], ids=lambda item: item.release)
def machine(request: pytest.FixtureRequest) -> Recorded:
    found: Recorded = request.param
    return found


def mount(recorded: Recorded, name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.sysfs(name, path)
    monkeypatch.setattr(dax, "_PLATFORM", path / "sys/devices/platform")


def layout(recorded: Recorded) -> region.Layout:
    whole = region.from_cmdline(recorded.text("cmdline"))
    assert whole is not None
    return region.layout(whole, 128 << 20)


@on_each_kernel
def test_command_line(recorded: Recorded) -> None:
    assert layout(recorded) == region.Layout(
        Range(0x40000000, 0x60000000),
        Range(0x40000000, 0x48000000),
        Range(0x48000000, 0x60000000),
    )


def test_fresh_region(machine: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(machine, "dax-sysfs", tmp_path, monkeypatch)
    where = layout(machine)
    found = dax.find_region(where.whole)
    assert found is not None
    assert found.devices() == ["dax0.0"]
    # The seed, which has no memory.
    assert region.devices(found) == [region.Device("dax0.0", (), "")]
    assert region.store_device(where) is None
    assert region.ram_ranges(where) == []


def test_settled_region(machine: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(machine, "dax-sysfs-settled", tmp_path, monkeypatch)
    where = layout(machine)
    found = dax.find_region(where.whole)
    assert found is not None
    assert region.devices(found) == [
        region.Device("dax0.0", (), ""),
        region.Device("dax0.1", (where.store,), "device_dax"),
        region.Device("dax0.2", (where.ram,), "kmem"),
    ]
    assert region.store_device(where) == region.devices(found)[1]
    assert region.ram_ranges(where) == [where.ram]


def test_of_two_regions_of_a_size_the_one_with_a_device_in_it(
    machine: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(machine, "dax-sysfs-settled", tmp_path, monkeypatch)
    ours = dax.find_region(layout(machine).whole)
    assert ours is not None
    other = ours.sysfs.with_name("hmem.1")
    (other / "dax_region").mkdir(parents=True)
    (other / "dax_region/size").write_text("536870912\n")
    (other / "dax1.0/mapping0").mkdir(parents=True)
    (other / "dax1.0/mapping0/start").write_text("0x140000000\n")
    assert dax.find_region(layout(machine).whole) == ours
    there = dax.find_region(Range(0x140000000, 0x160000000))
    assert there is not None
    assert there.sysfs == other


def test_no_region_of_that_size(
    machine: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(machine, "dax-sysfs-settled", tmp_path, monkeypatch)
    assert dax.find_region(Range(0x40000000, 0x50000000)) is None


def test_devices_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 0, 1):
        (tmp_path / f"dax0.{number}").mkdir()
    names = dax.DaxRegion(tmp_path, Range(0, 1)).devices()
    assert names == ["dax0.0", "dax0.1", "dax0.2", "dax0.10"]


def test_a_region_that_the_kernel_did_not_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def modprobe(argv: Sequence[str]) -> str:
        loaded.append(argv[-1])
        return ""

    monkeypatch.setattr(dax, "_PLATFORM", tmp_path)
    monkeypatch.setattr(region, "run", modprobe)
    where = region.layout(Range(0x40000000, 0x60000000), 128 << 20)
    monkeypatch.setattr(region, "current", lambda: where)
    with pytest.raises(BlockedError, match="the kernel made no dax region at 0x40000000") as error:
        region.settle(drained=False)
    assert "/proc/iomem" in error.value.hint
    assert loaded == ["dax_hmem", "device_dax", "kmem"]


def test_without_a_region_there_is_nothing_to_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "current", lambda: None)
    assert region.settle(drained=True) == []


def test_a_refused_write_says_what_was_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"\(writing '0x0-0x1fffff'\)"):
        dax._write(Path("/proc/self/mountinfo"), "0x0-0x1fffff")
