"""What is handed over, and what is said when it does not fit."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from handover.test_manifest import SAMPLE

from rekernel.carry.memory import dax
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.region import Layout
from rekernel.errors import RekernelError
from rekernel.handover.manifest import MANIFEST_BLOB, dump, load
from rekernel.handover.store import BLOCK, StoreReader, StoreWriter
from rekernel.transition import store

WHERE = Layout(Range(0, 1000), Range(0, 100), Range(100, 1000))


def images(tmp_path: Path) -> Path:
    for name, data in (("b/core-7.img", b"core"), ("b/pages.img", b"x" * 99), ("a/mm.img", b"")):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(data)
    return tmp_path / "images"


def test_images_and_manifest(tmp_path: Path) -> None:
    area = mmap.mmap(-1, 16 * BLOCK)
    writer = StoreWriter(area)
    assert store.add_images(writer, images(tmp_path)) == 103
    store.seal(writer, SAMPLE)
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
        store.add_images(writer, tree.parent)
    assert error.value.message == (
        "the handover store is full: images/a/mm.img needs it to hold 9096 bytes, it holds 8192"
    )
    assert error.value.hint == "a larger region has a larger store: rekernel setup"
    assert error.value.exit_code == 1


def test_no_room_for_manifest_or_index() -> None:
    size = len(dump(SAMPLE))
    with pytest.raises(RekernelError, match=r"full: manifest\.json needs"):
        store.seal(StoreWriter(mmap.mmap(-1, 4 * BLOCK), BLOCK + size - 1), SAMPLE)
    with pytest.raises(RekernelError, match="full: its index needs"):
        store.seal(StoreWriter(mmap.mmap(-1, 4 * BLOCK), BLOCK + size), SAMPLE)


def test_a_store_that_is_not_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dax, "_PLATFORM", tmp_path)
    with (
        pytest.raises(RekernelError, match="the handover store is not set up") as error,
        store.open_store(WHERE, None),
    ):
        pass
    assert error.value.hint == "systemctl restart rekernel-region.service"


def test_a_store_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(bytes(8 * BLOCK))
    with store.open_store(None, path) as area:
        store.seal(StoreWriter(area), SAMPLE)
    content = path.read_bytes()
    area = mmap.mmap(-1, len(content))
    area.write(content)
    assert load(StoreReader(area).read(MANIFEST_BLOB)) == SAMPLE
