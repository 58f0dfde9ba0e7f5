"""What file systems stand on, as /sys and dmsetup tell of it; and how the kernel takes it again."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekernel.carry.block import observe as sysblock
from rekernel.carry.block import superblocks
from rekernel.carry.block.observe import NoWayBackError
from rekernel.carry.device_mapper import restore as agent
from rekernel.carry.device_mapper.entry import MappedDevice, MappedTarget
from rekernel.carry.disks import stack as host_stack
from rekernel.carry.disks.stack import Stack
from rekernel.carry.raid import observe as raid
from rekernel.carry.raid.entry import RaidArray
from rekernel.errors import RekernelError
from rekernel.records import asdict

UUIDS = {"/dev/sda2": "pv-a", "/dev/sdb": "pv-b"}
NUMBERS = {
    "/dev/sda1": "8:1",
    "/dev/md0": "9:0",
    "/dev/loop0": "7:0",
    "/dev/dm-0": "253:0",
    "/dev/dm-1": "253:1",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """/sys of two disks, and of a striped device on a linear one; returns the tables."""
    tables = {
        "253:0": "0 4096 linear 8:2 2048\n4096 100 linear 8:16 2048\n",
        "253:1": "0 4096 striped 2 128 253:0 0 8:16 9000\n",
    }
    for number, place in (
        ("8:1", "pci/sda1"), ("8:2", "pci/sda2"), ("8:16", "pci/sdb"),
        ("9:0", "virtual/md0"), ("7:0", "virtual/loop0"),
        ("253:0", "virtual/dm-0"), ("253:1", "virtual/dm-1"),
    ):  # fmt: skip
        block = tmp_path / "devices" / place
        block.mkdir(parents=True)
        (tmp_path / number).symlink_to(block)
        (tmp_path / "class" / block.name).mkdir(parents=True)
        if number.startswith("253"):
            (block / "dm").mkdir()
            (block / "dm" / "name").write_text(f"vg-{number[-1]}\n")
            (block / "dm" / "uuid").write_text(f"LVM-{number[-1]}\n")
            (block / "dm" / "suspended").write_text("0\n")
            (block / "ro").write_text(f"{number[-1]}\n")
    (tmp_path / "b253:1").write_text("S:x\nE:DM_UDEV_RULES_VSN=3\nE:ID_X=1\nE:DM_NAME=vg-1\n")
    monkeypatch.setattr(host_stack, "_DEV_BLOCK", tmp_path)
    monkeypatch.setattr(sysblock, "CLASS", tmp_path / "class")
    monkeypatch.setattr(sysblock, "UDEV_DATA", tmp_path)
    monkeypatch.setattr(superblocks, "volume_on", UUIDS.get)
    monkeypatch.setattr(sysblock, "number_of", NUMBERS.__getitem__)
    monkeypatch.setattr(host_stack, "run", lambda argv: tables[f"{argv[3]}:{argv[5]}"])
    return tables


@pytest.mark.usefixtures("machine")
def test_each_stands_below_what_stands_on_it() -> None:
    stack = Stack()
    for path in ("/dev/sda1", "/dev/dm-1", "/dev/dm-0"):
        stack.add(path)
    assert stack.disks == ("/dev/sda1", "/dev/sda2", "/dev/sdb")
    assert stack.mapped == (
        MappedDevice(
            "vg-0", "LVM-0", False,
            (
                MappedTarget(0, 4096, "linear", "{0} 2048"),
                MappedTarget(4096, 100, "linear", "{1} 2048"),
            ),
            ("volume=pv-a", "volume=pv-b"), (),
        ),
        MappedDevice(
            "vg-1", "LVM-1", True,
            (MappedTarget(0, 4096, "striped", "2 128 {0} 0 {1} 9000"),),
            ("mapped=vg-0", "volume=pv-b"), ("E:DM_UDEV_RULES_VSN=3", "E:DM_NAME=vg-1"),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "table", "words"),
    [
        ("/dev/loop0", "", "no plain disk"),
        ("/dev/dm-0", "0 8 crypt aes 0 0 8:2 4096", 'a "crypt" of the device mapper'),
        ("/dev/dm-0", "0 8 linear 8:1 4096", "on sda1, which is no volume of LVM"),
        ("/dev/dm-0", "0 8 linear 7:0 4096", "no plain disk"),
        ("/dev/dm-1", "0 8 snapshot 253:0 8:2 P 8", 'a "snapshot" of the device mapper'),
    ],
)
def test_what_the_agent_could_not_set_up(
    machine: dict[str, str], path: str, table: str, words: str
) -> None:
    machine[NUMBERS[path]] = table
    with pytest.raises(NoWayBackError) as error:
        Stack().add(path)
    assert str(error.value) == words


def test_a_volume_that_is_not_told_from_others(
    machine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superblocks, "volume_on", lambda path: "the same")
    with pytest.raises(NoWayBackError, match="on sda2, whose UUID another disk has"):
        Stack().add("/dev/dm-0")


def test_one_that_is_suspended(machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "253:0" / "dm" / "suspended").write_text("1\n")
    with pytest.raises(NoWayBackError, match="which is suspended"):
        Stack().add("/dev/dm-0")


@pytest.fixture
def array(machine: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an array in /sys, on one disk and a partition; a third one has failed."""
    md = tmp_path / "devices" / "virtual" / "md0" / "md"
    md.mkdir()
    (md.parent / "dev").write_text("9:0\n")
    for name, text in (
        ("level", "raid1"), ("metadata_version", "1.2"), ("array_state", "active"),
        ("reshape_position", "none"),
    ):  # fmt: skip
        (md / name).write_text(f"{text}\n")
    for name, number, state in (
        ("sdb", "8:16", "in_sync"), ("sda2", "8:2", "in_sync,write_mostly"),
        ("sda1", "8:1", "faulty"),
    ):  # fmt: skip
        (md / f"dev-{name}" / "block").mkdir(parents=True)
        (md / f"dev-{name}" / "block" / "dev").write_text(f"{number}\n")
        (md / f"dev-{name}" / "state").write_text(f"{state}\n")
    (tmp_path / "b9:0").write_text("E:LVM_MD_PV_ACTIVATED=1\nE:MD_LEVEL=raid1\n")
    (tmp_path / "class" / "md0").mkdir(exist_ok=True)
    disks = {"/dev/sda2": "disk-a", "/dev/sdb": "disk-b"}
    monkeypatch.setattr(superblocks, "component_on", disks.get)
    monkeypatch.setattr(superblocks, "volume_on", {"/dev/md0": "pv-md", "/dev/sdb": "b"}.get)
    machine.update({"253:0": "0 4096 linear 9:0 2048\n", "253:1": "0 8 linear 8:16 2048\n"})
    return md


@pytest.mark.usefixtures("array")
def test_a_volume_on_an_array() -> None:
    stack = Stack()
    stack.add("/dev/dm-0")
    stack.add("/dev/md0")
    disks = {"disk-a": "sda2", "disk-b": "sdb"}
    wanted = RaidArray("md0", "raid1", "1.2", disks, 0, ("E:LVM_MD_PV_ACTIVATED=1",))
    assert stack.arrays == (wanted,)
    assert stack.disks == ("/dev/sda2", "/dev/sdb")
    assert [device.below for device in stack.mapped] == [("volume=pv-md",)]


@pytest.mark.parametrize(
    ("attribute", "text", "words"),
    [
        ("level", "raid6", "a RAID of level raid6"),
        ("metadata_version", "1.0", "a RAID with metadata 1.0"),
        ("metadata_version", "external:imsm", "a RAID with metadata external:imsm"),
        ("array_state", "readonly", "a RAID that is readonly"),
        ("reshape_position", "8192", "a RAID that is being reshaped"),
        ("bitmap/metadata", "clustered", "a RAID of a cluster"),
        ("bitmap/location", "file", "a RAID with its bitmap in a file"),
        ("dev-sdb/block/dev", "253:1", "a RAID on dm-1, no plain disk"),
        ("dev-sdb/block/dev", "7:0", "no plain disk"),
        ("dev-sda1/state", "spare", "on sda1, which is no disk of a RAID"),
    ],
)
def test_arrays_that_the_agent_could_not_assemble(
    array: Path, attribute: str, text: str, words: str
) -> None:
    (array / attribute).parent.mkdir(exist_ok=True)
    (array / attribute).write_text(f"{text}\n")
    with pytest.raises(NoWayBackError) as error:
        Stack().add("/dev/md0")
    assert str(error.value) == words


def test_an_array_that_is_called_by_a_name(array: Path, tmp_path: Path) -> None:
    named = array.parent.rename(array.parent.with_name("md_home"))
    (tmp_path / "9:0").unlink()
    (tmp_path / "9:0").symlink_to(named)
    with pytest.raises(NoWayBackError, match="a RAID with a name instead of a number"):
        Stack().add("/dev/md0")


def test_what_other_kernels_may_not_know_of_an_array(array: Path) -> None:
    (array / "logical_block_size").write_text("0\n")
    (array / "bitmap_type").write_text("none [bitmap] llbitmap\n")
    stack = Stack()
    stack.add("/dev/md0")
    assert stack.arrays[0].features == ()
    (array / "logical_block_size").write_text("512\n")
    (array / "bitmap_type").write_text("none bitmap [llbitmap]\n")
    stack = Stack()
    stack.add("/dev/md0")
    assert stack.arrays[0].features == ("logical_block_size", "llbitmap")


def test_an_array_whose_disks_change(array: Path, tmp_path: Path) -> None:
    stack = Stack()
    stack.add("/dev/md0")
    (tmp_path / "class" / "md0").rmdir()
    (tmp_path / "class" / "md0").symlink_to(array.parent)
    raid.assert_as_before(stack.arrays)
    # About to note a bad block.
    (array / "dev-sdb" / "state").write_text("faulty,in_sync\n")
    raid.assert_as_before(stack.arrays)
    (array / "dev-sdb" / "state").write_text("faulty\n")
    with pytest.raises(RekernelError, match="md0 has not the same disks any more"):
        raid.assert_as_before(stack.arrays)


targets = st.builds(
    MappedTarget,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.sampled_from(["linear", "striped"]),
    st.sampled_from(["{0} 2048", "2 128 {0} 0 {1} 9000"]),
)


@given(st.lists(targets, max_size=5))
def test_a_table_as_the_kernel_walks_it(lines: list[MappedTarget]) -> None:
    device = MappedDevice("a", "b", False, tuple(lines), ("volume=x", "mapped=y"), ())
    packed = agent.table(asdict(device), [(8, 2), (253, 10)])
    at = 0
    for line in lines:
        assert at % 8 == 0
        start, sectors, status, size, kind = struct.unpack_from("<QQiI16s", packed, at)
        text = packed[at + 40 : packed.index(b"\0", at + 40)].decode()
        assert (start, sectors, status) == (line.start, line.sectors, 0)
        assert kind.rstrip(b"\0").decode() == line.kind
        assert text == line.parameters.format("8:2", "253:10")
        at += size
    assert at == len(packed)
