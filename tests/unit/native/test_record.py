"""rekernel-pagemap against real processes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import ADDRESS, PROGRAMS, STRAY_BASE, WorldFactory
from .pagemap import PAGE_SIZE, PageMap, RunFlag, Space

PAGEMAP = PROGRAMS / "rekernel-pagemap"
ALL_MEMORY = "0:1T"


def run(*args: str | Path | int, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PAGEMAP, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


def frames(pid: int, address: int, pages: int) -> list[int]:
    """The frame of every page as the kernel says, 0 for none."""
    with Path(f"/proc/{pid}/pagemap").open("rb") as file:
        file.seek(address // PAGE_SIZE * 8)
        data = file.read(pages * 8)
    entries = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    return [entry & ((1 << 55) - 1) if entry >> 63 else 0 for entry in entries]


def recorded_frames(space: Space, address: int, pages: int) -> list[int]:
    found = [0] * pages
    for run_ in space.runs:
        for i in range(run_.npages):
            page = (run_.vaddr + i * PAGE_SIZE - address) // PAGE_SIZE
            if 0 <= page < pages:
                found[page] = run_.pfn + i
    return found


@pytest.mark.parametrize("fallback", ["", "1"], ids=["pagemap_scan", "plain"])
@pytest.mark.parametrize("pattern", ["all", "even", "sparse", "none"])
def test_frames_are_those_the_kernel_names(
    world: WorldFactory, pattern: str, fallback: str
) -> None:
    w = world(2000, pattern)
    w.fill()
    env = {"REKERNEL_NO_PAGEMAP_SCAN": "1"} if fallback else {}
    done = run("record", "--region", ALL_MEMORY, "--out", w.map, w.pid, **env)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["pagemap_scan"] is not bool(fallback)
    page_map = PageMap.parse(w.map.read_bytes())
    (space,) = page_map.spaces
    assert space.pid == space.nspid == w.pid
    expected = frames(w.pid, ADDRESS, w.pages)
    if pattern == "even":
        # The pages between were read only: the shared page of zeros is not theirs.
        zero = expected[1]
        assert set(expected[1::2]) == {zero} and zero
        expected = [0 if pfn == zero else pfn for pfn in expected]
    assert recorded_frames(space, ADDRESS, w.pages) == expected
    assert summary["pages"] == space.pages == page_map.pages
    assert summary["stray_pages"] == 0
    assert sum(b["used_pages"] for b in summary["blocks"]) == summary["distinct_pages"]
    assert summary["bytes"] == w.map.stat().st_size
    assert {key: summary["spaces"][0][key] for key in ("pid", "pages", "runs")} == {
        "pid": w.pid,
        "pages": space.pages,
        "runs": len(space.runs),
    }


def test_strays_are_copied(world: WorldFactory) -> None:
    w = world(500, "blocks")
    w.fill()
    done = w.record()
    assert done.returncode == 0, done.stderr
    (space,) = PageMap.parse(w.map.read_bytes()).spaces
    assert all(r.flags == RunFlag.STRAY for r in space.runs)
    stray = w.stray.read_bytes()
    assert len(stray) == space.pages * PAGE_SIZE == json.loads(done.stdout)["stray_bytes"]
    with Path(f"/proc/{w.pid}/mem").open("rb") as memory:
        for r in space.runs:
            memory.seek(r.vaddr)
            offset = r.pfn * PAGE_SIZE - STRAY_BASE
            assert memory.read(r.npages * PAGE_SIZE) == stray[offset : offset + r.end - r.vaddr]


def test_region_decides_what_is_a_stray(world: WorldFactory) -> None:
    w = world(600)
    w.fill()
    own = sorted(frames(w.pid, ADDRESS, w.pages))
    middle = own[len(own) // 2]
    done = run(
        *("record", "--region", f"0:{middle * PAGE_SIZE:#x}", "--out", w.map),
        *("--stray-out", w.stray, "--stray-max", "64M", "--stray-base", hex(STRAY_BASE), w.pid),
    )
    assert done.returncode == 0, done.stderr
    (space,) = PageMap.parse(w.map.read_bytes()).spaces
    found = recorded_frames(space, ADDRESS, w.pages)
    now = frames(w.pid, ADDRESS, w.pages)
    for recorded, real in zip(found, now, strict=True):
        if real < middle:
            assert recorded == real
        else:
            assert recorded >= STRAY_BASE // PAGE_SIZE


def test_several_processes_and_trees(world: WorldFactory) -> None:
    one, two = world(100), world(200)
    one.fill()
    two.fill()
    done = run("record", "--region", ALL_MEMORY, "--out", one.map, f"7/{one.pid}", f"8/{two.pid}")
    assert done.returncode == 0, done.stderr
    spaces = PageMap.parse(one.map.read_bytes()).spaces
    assert [(s.pid, s.tree) for s in spaces] == [(one.pid, 7), (two.pid, 8)]
    assert [s["tree"] for s in json.loads(done.stdout)["spaces"]] == [7, 8]


def test_pid_of_the_inner_namespace_is_recorded(world: WorldFactory) -> None:
    w = world()
    shell = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", "echo; sleep 100 & wait"],
        stdout=subprocess.PIPE,
    )
    try:
        assert shell.stdout is not None
        shell.stdout.readline()
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
        done = run("record", "--region", ALL_MEMORY, "--out", w.map, children[0])
        assert done.returncode == 0, done.stderr
        (space,) = PageMap.parse(w.map.read_bytes(), runs=False).spaces
        assert (space.pid, space.nspid) == (int(children[0]), 1)
    finally:
        for child in children:
            os.kill(int(child), 9)
        shell.wait()
        assert shell.stdout is not None
        shell.stdout.close()


SPECIAL = """
import ctypes, mmap, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
def at(address, pages, flags=0x22, fd=-1, prot=3):
    got = libc.mmap(address, pages * 4096, prot, flags | 0x100000, fd, 0)
    assert got == address, hex(got or 0)
    return address
def touch(address, pages):
    for i in range(pages):
        ctypes.memset(address + i * 4096, 65 + i % 26, 4096)
touch(at(0x610000000000, 8), 8)                                     # locked
assert libc.mlock(ctypes.c_void_p(0x610000000000), 8 * 4096) == 0
touch(at(0x620000000000, 8, flags=0x21), 8)                         # shared
file = tempfile.TemporaryFile(); file.truncate(8 * 4096)
touch(at(0x630000000000, 8, flags=0x02, fd=file.fileno()), 8)       # private, of a file
touch(at(0x640000000000, 8), 8)                                     # may not be read
assert libc.mprotect(ctypes.c_void_p(0x640000000000), 8 * 4096, 0) == 0
at(0x100000000000, 1 << 28, flags=0x4022)                           # 1 TiB, two pages used
touch(0x100000000000 + (123456789 << 12), 2)
at(0x650000000000, 1024)                                            # huge page of zeros
libc.madvise(ctypes.c_void_p(0x650000000000), 1024 * 4096, 14)
ctypes.string_at(0x650000000000, 1024 * 4096)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def special() -> Any:
    process = subprocess.Popen(
        ["python3", "-c", SPECIAL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()


@pytest.mark.parametrize("fallback", ["", "1"], ids=["pagemap_scan", "plain"])
def test_special_mappings(special: Any, tmp_path: Path, fallback: str) -> None:
    env = {"REKERNEL_NO_PAGEMAP_SCAN": "1"} if fallback else {}
    done = run(
        *("record", "--region", "none", "--out", tmp_path / "map", "--stray-max", "256M"),
        *("--stray-out", tmp_path / "stray", "--stray-base", hex(STRAY_BASE), special.pid),
        **env,
    )
    if fallback and done.returncode == 0:
        # A terabyte of entries: slow, but only without PAGEMAP_SCAN.
        assert json.loads(done.stdout)["micros"] < 60_000_000
    assert done.returncode == 0, done.stderr
    (space,) = PageMap.parse((tmp_path / "map").read_bytes()).spaces

    def pages_in(start: int, pages: int) -> int:
        return sum(pfn != 0 for pfn in recorded_frames(space, start, pages))

    assert pages_in(0x610000000000, 8) == 0, "locked memory goes through CRIU's images"
    assert pages_in(0x620000000000, 8) == 0
    assert pages_in(0x630000000000, 8) == 0
    assert pages_in(0x640000000000, 8) == 8
    assert pages_in(0x100000000000 + (123456789 << 12), 2) == 2
    assert pages_in(0x650000000000, 1024) == 0, "zeros"
    stray = (tmp_path / "stray").read_bytes()
    hidden = next(r for r in space.runs if r.vaddr == 0x640000000000)
    offset = hidden.pfn * PAGE_SIZE - STRAY_BASE
    assert stray[offset : offset + PAGE_SIZE] == b"A" * PAGE_SIZE


def test_map_and_strays_in_windows_of_a_device(world: WorldFactory) -> None:
    w = world(300)
    w.fill()
    device = w.directory / "device"
    device.write_bytes(b"\xee" * (16 << 20))
    done = run(
        *("record", "--region", "none", "--out-dax", f"{device}:0x1000:1M"),
        *("--stray-dax", f"{device}:4M:8M", "--stray-base", hex(STRAY_BASE), w.pid),
    )
    assert done.returncode == 0, done.stderr
    data = device.read_bytes()
    assert len(data) == 16 << 20
    assert data[:4096] == b"\xee" * 4096
    page_map = PageMap.parse(data[4096 : 4096 + (1 << 20)])
    end = 4096 + json.loads(done.stdout)["bytes"]
    assert data[end : 4 << 20] == b"\xee" * ((4 << 20) - end)
    assert page_map.spaces[0].pages >= 300


def test_exit_12_strays_do_not_fit(world: WorldFactory) -> None:
    w = world(100)
    w.fill()
    done = w.record("--stray-max", "4096")
    assert done.returncode == 12
    summary = json.loads(done.stdout)
    assert summary["error"] == "strays"
    needed = summary["needed_bytes"]
    assert needed == summary["stray_pages"] * PAGE_SIZE >= 100 * PAGE_SIZE
    assert f"stray area too small: {needed} bytes needed, 4096 given" in done.stderr
    assert not w.map.exists()
    assert w.record("--stray-max", str(needed)).returncode == 0


def test_exit_14_map_does_not_fit(world: WorldFactory) -> None:
    w = world(100)
    w.fill()
    device = w.directory / "device"
    device.write_bytes(bytes(8192))
    done = run("record", "--region", ALL_MEMORY, "--out-dax", f"{device}:0:64", w.pid)
    assert done.returncode == 14
    assert "page map does not fit" in done.stderr
    assert json.loads(done.stdout)["error"] == "map"
    assert device.read_bytes() == bytes(8192)


def test_exit_3_vanished_process(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    done = run("record", "--region", "none", "--out", tmp_path / "map", os.getpid(), gone.pid)
    assert done.returncode == 3
    assert f"process {gone.pid} is gone" in done.stderr


def test_a_running_process_may_end() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    done = run("stat", "--stray-chunks", "--region", "none", gone.pid, os.getpid())
    assert done.returncode == 0, done.stderr
    nobody, somebody = json.loads(done.stdout)["spaces"]
    assert (nobody["pid"], nobody["pages"], nobody["stray_pages"]) == (gone.pid, 0, 0)
    assert nobody["stray_chunks"] == []
    assert somebody["stray_pages"] > 0


def test_zombie_has_no_pages() -> None:
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    done = run("stat", "--region", "none", zombie.pid)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["spaces"][0]["runs"] == 0
    zombie.wait()


def test_exit_8_without_privilege() -> None:
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534"),
            *("--clear-groups", PAGEMAP, "stat", "--region", "none", "1"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 8
    assert "the kernel hides page frame numbers: CAP_SYS_ADMIN is needed" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no command given"),
        (["frob"], "the command is record or stat"),
        (["stat", "1"], "--region is needed"),
        (["stat", "--region", "5G:4G", "1"], "bad --region '5G:4G'"),
        (["stat", "--region", "1:4G", "1"], "bad --region '1:4G'"),
        (["stat", "--region", "none"], "no process given"),
        (["stat", "--region", "none", "x"], "bad process 'x'"),
        (["stat", "--region", "none", "1/"], "bad process '1/'"),
        (["stat", "--region", "none", "--block", "7", "1"], "--block wants whole pages"),
        (["stat", "--region", "none", "--block", "0", "1"], "--block must not be 0"),
        (["record", "--region", "none", "1"], "--out or --out-dax is needed"),
        (["record", "--region", "none", "--out-dax", "x:1", "1"], "bad --out-dax 'x:1'"),
        (["record", "--region", "none", "--stray-dax", "x", "1"], "bad --stray-dax 'x'"),
        (["record", "--region", "none", "--frob", "1"], "bad option"),
    ],
)
def test_exit_2_usage(args: list[str], message: str) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert message in done.stderr


def test_stat_counts_blocks(world: WorldFactory) -> None:
    w = world(3000)
    w.fill()
    done = run("stat", "--region", "0:64G", "--block", "128M", w.pid)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    used: dict[int, int] = {}
    for pfn in frames(w.pid, ADDRESS, w.pages):
        used[pfn * PAGE_SIZE >> 27] = used.get(pfn * PAGE_SIZE >> 27, 0) + 1
    blocks = {block["start"] >> 27: block["used_pages"] for block in summary["blocks"]}
    assert len(blocks) == 512
    assert all(blocks[number] >= count for number, count in used.items())
    assert sum(blocks.values()) == summary["distinct_pages"] <= summary["pages"]


def test_stat_counts_a_shared_frame_once(world: WorldFactory) -> None:
    w = world(1000)
    w.fill()
    once = json.loads(run("stat", "--region", "0:1T", w.pid).stdout)
    twice = json.loads(run("stat", "--region", "0:1T", w.pid, w.pid).stdout)
    assert twice["pages"] == 2 * once["pages"]
    assert twice["distinct_pages"] == once["distinct_pages"] == once["pages"]


def test_stray_chunks(world: WorldFactory) -> None:
    """A chunk that is full and lies outside of the region can be moved as one huge page."""
    huge = 2 << 20
    w = world(3 * huge // PAGE_SIZE, "all")
    w.fill()
    assert ADDRESS % huge == 0

    def chunks(region: str) -> list[int]:
        done = run("stat", "--stray-chunks", "--region", region, w.pid)
        assert done.returncode == 0, done.stderr
        found: list[int] = json.loads(done.stdout)["spaces"][0]["stray_chunks"]
        return [address for address in found if ADDRESS <= address < ADDRESS + 4 * huge]

    assert chunks("none") == [ADDRESS, ADDRESS + huge, ADDRESS + 2 * huge]
    assert chunks(ALL_MEMORY) == []


def test_no_stray_chunk_that_is_nearly_empty(world: WorldFactory) -> None:
    w = world(2 * (2 << 20) // PAGE_SIZE, "even")
    w.fill()
    done = run("stat", "--stray-chunks", "--region", "none", w.pid)
    found = json.loads(done.stdout)["spaces"][0]["stray_chunks"]
    assert [address for address in found if ADDRESS <= address < ADDRESS + (4 << 20)] == []
