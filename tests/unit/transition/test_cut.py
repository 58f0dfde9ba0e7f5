"""What is handed over, and what is said when it does not fit."""

from __future__ import annotations

import errno
import json
import mmap
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from handover.test_manifest import SAMPLE

from rekernel.attempt import undo
from rekernel.carry.memory import dax, migrations
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.entry import Extent, Memory
from rekernel.carry.memory.region import Layout
from rekernel.errors import RekernelError
from rekernel.handover.manifest import MANIFEST_BLOB, dump, load
from rekernel.handover.store import BLOCK, StoreReader, StoreWriter
from rekernel.records import asdict
from rekernel.run import answering
from rekernel.transition import cut
from rekernel.transition.cut import PageRecord

WHERE = Layout(Range(0, 1000), Range(0, 100), Range(100, 1000))


def images(tmp_path: Path) -> Path:
    for name, data in (("b/core-7.img", b"core"), ("b/pages.img", b"x" * 99), ("a/mm.img", b"")):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(data)
    return tmp_path / "images"


def test_images_and_manifest(tmp_path: Path) -> None:
    area = mmap.mmap(-1, 16 * BLOCK)
    writer = StoreWriter(area)
    assert cut.add_images(writer, images(tmp_path)) == 103
    cut.seal(writer, SAMPLE)
    reader = StoreReader(area)
    assert [entry.name for entry in reader] == [
        "images/a/mm.img",
        "images/b/core-7.img",
        "images/b/pages.img",
        MANIFEST_BLOB,
    ]
    assert reader.read("images/b/pages.img") == b"x" * 99
    assert load(reader.read(MANIFEST_BLOB)) == SAMPLE


def test_a_full_store(tmp_path: Path) -> None:
    writer = StoreWriter(mmap.mmap(-1, 3 * BLOCK), 2 * BLOCK)
    tree = tmp_path / "images" / "a"
    tree.mkdir(parents=True)
    (tree / "mm.img").write_bytes(bytes(5000))
    with pytest.raises(RekernelError) as error:
        cut.add_images(writer, tree.parent)
    assert error.value.message == (
        "the handover store is full: images/a/mm.img needs it to hold 9096 bytes, it holds 8192"
    )
    assert error.value.hint == "a larger region has a larger store: rekernel setup"
    assert error.value.exit_code == 1


def test_no_room_for_manifest_or_index() -> None:
    size = len(dump(SAMPLE))
    with pytest.raises(RekernelError, match=r"full: manifest\.json needs"):
        cut.seal(StoreWriter(mmap.mmap(-1, 4 * BLOCK), BLOCK + size - 1), SAMPLE)
    with pytest.raises(RekernelError, match="full: its index needs"):
        cut.seal(StoreWriter(mmap.mmap(-1, 4 * BLOCK), BLOCK + size), SAMPLE)


def test_memory_in_place() -> None:
    record = PageRecord(
        Path("map"), Path("strays"), (Extent(200, 300), Extent(900, 1000)), 17, 3, 5
    )
    found = cut.memory_facts(WHERE, record, 4096)
    assert asdict(found) == asdict(
        Memory(
            "region",
            Extent(0, 1000),
            (Extent(200, 300), Extent(900, 1000)),
            (Extent(100, 200), Extent(300, 900)),
            Extent(0, 100),
            4096,
            3 * mmap.PAGESIZE,
        )
    )


def recorder(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cut.Recorder:
    program = tmp_path / "recorder"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(cut, "RECORDER", str(program))
    monkeypatch.setattr(cut, "SCRATCH", tmp_path)
    monkeypatch.setattr(cut, "ram_ranges", lambda where: [Range(100, 500), Range(600, 1000)])
    monkeypatch.setattr(dax, "block_size", lambda: 100)
    monkeypatch.setattr(migrations, "count", lambda: 5)
    return cut.Recorder(WHERE, [7, 8], 4096, 1 << 20)


def test_the_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = {
        "pages": 9,
        "stray_pages": 2,
        "blocks": [
            {"start": 200, "used_pages": 1},
            {"start": 300, "used_pages": 0},
            {"start": 600, "used_pages": 4},
            {"start": 700, "used_pages": 4},
        ],
    }
    script = f"echo \"$@\" > {tmp_path}/said; echo '{json.dumps(summary)}'"
    record = recorder(script, tmp_path, monkeypatch).finish(0)
    assert record.occupied == (Extent(200, 300), Extent(600, 800))
    assert (record.pages, record.stray_pages) == (9, 2)
    assert record.is_true()
    monkeypatch.setattr(migrations, "count", lambda: record.moves + 1)
    assert not record.is_true()
    words = (tmp_path / "said").read_text().split()
    assert words[0] == "record"
    assert words[words.index("--region") + 1] == "0x64:0x1f4,0x258:0x3e8"
    assert words[words.index("--stray-base") + 1] == "0x1000"
    assert words[-2:] == ["7", "8"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo rekernel-pagemap: 7: gone; exit 1", "rekernel-pagemap: 7: gone"),
        ("exit 3", "the recorder ended with 3"),
    ],
)
def test_a_recorder_that_fails(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RekernelError, match=f"^the page map could not be recorded: {words}$"):
        recorder(script, tmp_path, monkeypatch).finish(0)


def test_a_recorder_that_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "_RECORDER_S", 0.3)
    stuck = recorder("exec sleep 60", tmp_path, monkeypatch)
    with pytest.raises(RekernelError, match=r"^the recorder of the page map did not end within"):
        stuck.finish(0)
    assert stuck._process.returncode == -signal.SIGKILL


def test_a_recorder_that_nobody_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancelled() -> None:
        raise InterruptedError

    stuck = recorder("exec sleep 60", tmp_path, monkeypatch)
    with answering(cancelled), pytest.raises(InterruptedError):
        stuck.finish(0)
    assert stuck._process.returncode == -signal.SIGKILL
    stuck.stop()


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group that does not freeze by itself."""
    monkeypatch.setattr(cut, "CGROUPS", tmp_path)
    monkeypatch.setattr(undo, "CGROUPS", tmp_path)
    group = tmp_path / "a.service"
    group.mkdir()
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    return group


def test_freezing(group: Path) -> None:
    def check() -> None:
        assert (group / "cgroup.freeze").read_text() == "1"
        (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")

    cut.freeze(["/a.service"], check)
    assert "frozen 1" in (group / "cgroup.events").read_text()


def test_what_does_not_freeze(group: Path) -> None:
    with pytest.raises(RekernelError, match=r"^/a\.service does not freeze$") as error:
        cut.freeze(["/a.service"], lambda: None, timeout=0)
    assert error.value.hint == "a process there is in uninterruptible sleep"


def test_nobody_need_wait_for_the_freeze(group: Path) -> None:
    def cancelled() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        cut.freeze(["/a.service"], cancelled)


def test_a_control_group_that_vanishes_while_it_freezes(group: Path) -> None:
    with pytest.raises(RekernelError, match=r"^/a\.service ended while the upgrade was prepared$"):
        cut.freeze(["/a.service"], lambda: shutil.rmtree(group))
    with pytest.raises(RekernelError, match=r"^/a\.service ended while"):
        cut.freeze(["/a.service"], lambda: None)


def test_a_control_group_that_vanishes_while_it_is_open(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> str:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(Path, "read_text", gone)
    with pytest.raises(RekernelError, match=r"^/a\.service ended while"):
        cut.freeze(["/a.service"], lambda: None)
    # Nothing in it that could stand still.
    monkeypatch.setattr(Path, "write_text", gone)
    undo.thaw("/a.service")


def test_memory_in_images() -> None:
    assert cut.memory_facts(None, None, 0) == Memory("image", None, (), (), None)


def test_a_store_that_is_not_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dax, "_PLATFORM", tmp_path)
    with (
        pytest.raises(RekernelError, match="the handover store is not set up") as error,
        cut.open_store(WHERE, None),
    ):
        pass
    assert error.value.hint == "systemctl restart rekernel-region.service"


def test_a_store_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(bytes(8 * BLOCK))
    with cut.open_store(None, path) as area:
        cut.seal(StoreWriter(area), SAMPLE)
    content = path.read_bytes()
    area = mmap.mmap(-1, len(content))
    area.write(content)
    assert load(StoreReader(area).read(MANIFEST_BLOB)) == SAMPLE


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
    assert cut.patience({"resident_bytes": 1 << 40, **report}) == expected
