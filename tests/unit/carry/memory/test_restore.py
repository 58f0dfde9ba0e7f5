"""The carry region on the new kernel."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded import NEW, OLD, Recorded

from rekernel.carry.memory import dax
from rekernel.carry.memory import restore as memory
from rekernel.carry.memory.entry import Extent, Memory
from rekernel.carry.memory.restore import RegionError
from rekernel.pid1 import processes

EXTENT = Extent(0x40000000, 0x60000000)
REGION = dax.DaxRegion(Path("/x"), dax.Range(0, 1))


def test_no_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dax, "_PLATFORM", tmp_path)
    with pytest.raises(RegionError, match=r"^no dax region at 0x40000000$"):
        memory.open_region(EXTENT, timeout=0)


@pytest.mark.parametrize("recorded", [OLD, NEW], ids=lambda item: item.release)
def test_region(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.sysfs("dax-sysfs", tmp_path)
    monkeypatch.setattr(dax, "_PLATFORM", tmp_path / "sys/devices/platform")
    region = memory.open_region(EXTENT, timeout=0)
    assert region.devices() == ["dax0.0"]
    # Here sysfs is a directory: nothing answers to "create".
    with pytest.raises(RegionError, match=r"^cannot map the carry region: .*create"):
        memory.map_extents(region, [EXTENT])


def test_the_pager_is_told_where_each_frame_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    mapped: list[list[Extent]] = []

    def start(argv: list[str], log: str) -> int:
        started.append(argv)
        return 1

    def map_extents(region: dax.DaxRegion, extents: tuple[Extent, ...]) -> tuple[str, int]:
        mapped.append(list(extents))
        return "dax0.2", 0

    monkeypatch.setattr(processes, "start", start)
    monkeypatch.setattr(memory, "map_extents", map_extents)
    facts = Memory(
        "region",
        Extent(0, 0x10000),
        # As a record may have them; a device shows them in the order of addresses.
        (Extent(0x8000, 0x9000), Extent(0x2000, 0x5000)),
        (),
        Extent(0, 0x1000),
        stray_offset=0x800,
        stray_bytes=0x200,
    )
    pagemap = "/dev/dax0.1:12288:999"
    memory.start_pager(facts, REGION, "/dev/dax0.1", pagemap, ["/a.sock", "/b.sock"])
    (argv,) = started
    frames = [argv[at + 1] for at, word in enumerate(argv) if word == "--frames"]
    assert frames == [
        "/dev/dax0.2:0:0x2000:12288",
        "/dev/dax0.2:12288:0x8000:4096",
        "/dev/dax0.1:2048:0x800:512",
    ]
    listeners = [argv[at + 1] for at, word in enumerate(argv) if word == "--listen"]
    assert listeners == ["/a.sock", "/b.sock"]
    assert argv[argv.index("--map") + 1] == pagemap
    assert mapped == [[*facts.occupied]]


def test_nothing_free_needs_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(processes, "start")
    memory.free_parts_to_ram(Memory("region", None, (), (), None), REGION)


@pytest.fixture
def program() -> Iterator[int]:
    """PID of a program that runs until it is killed."""
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_pager_that_does_not_listen(
    program: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_PAGER_LOG", tmp_path / "log")
    (tmp_path / "one").write_text("")
    memory.wait_for_pager(program, [str(tmp_path / "one")], timeout=0)
    with pytest.raises(RegionError, match=r"the pager did not start: .*No such file.*/log"):
        memory.wait_for_pager(program, [str(tmp_path / "one"), str(tmp_path / "two")], timeout=0)
    (tmp_path / "log").write_text("\n")
    with pytest.raises(RegionError, match=r"the pager did not start: nothing in .*/log"):
        memory.wait_for_pager(program, [str(tmp_path / "two")], timeout=0)


def test_a_pager_that_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(memory, "_PAGER_LOG", log)
    pid = processes.start(["sh", "-c", "echo one; echo the map is damaged"], log=str(log))
    with pytest.raises(RegionError, match=r"the pager did not start: the map is damaged"):
        memory.wait_for_pager(pid, [str(tmp_path / "socket")], timeout=60)


def test_the_pager_is_told_of_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That nobody else comes, first of all: it must not wait for trees that were given up."""
    path = str(tmp_path / "pager.sock")
    monkeypatch.setattr(memory, "CONTROL", path)
    with socket.create_server(path, family=socket.AF_UNIX) as listener:
        told = threading.Thread(target=memory.tell_pager)
        told.start()
        connection, _ = listener.accept()
        with connection:
            lines = connection.makefile("rwb", buffering=0)
            assert [lines.readline(), lines.readline()] == [b"complete\n", b"window 16\n"]
            assert told.is_alive()
            lines.write(b"{}\n")
            told.join(5)
        assert not told.is_alive()


def test_a_pager_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CONTROL", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        memory.tell_pager()
