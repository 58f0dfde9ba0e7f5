"""rekernel-pager: every byte is checked by the process it is served to."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest

from rekernel.records import replace

from .conftest import ADDRESS, PROGRAMS, STRAY_BASE, World, WorldFactory, wait_for
from .pagemap import PAGE_SIZE, PageMap, Run, RunFlag, Space

SCENARIOS = [
    "read",
    "sequential",
    "threads",
    "fork",
    "mremap",
    "dontneed",
    "munmap",
    "mprotect",
]
FRAME_BASE = STRAY_BASE // PAGE_SIZE


def scatter(w: World) -> None:
    """Rewrite the map so that no two neighbouring pages are neighbouring frames."""
    page_map = PageMap.parse(w.map.read_bytes())
    data = w.stray.read_bytes()
    moved = bytearray(len(data))
    count = len(data) // PAGE_SIZE
    stride = next((s for s in range(count // 3, count) if math.gcd(s, count) == 1), 1)

    def place(pfn: int) -> int:
        old = pfn - FRAME_BASE
        new = old * stride % count
        moved[new * PAGE_SIZE : (new + 1) * PAGE_SIZE] = data[
            old * PAGE_SIZE : (old + 1) * PAGE_SIZE
        ]
        return FRAME_BASE + new

    spaces = []
    for space in page_map.spaces:
        runs = [
            Run(run.vaddr + i * PAGE_SIZE, place(run.pfn + i), 1, run.flags)
            for run in space.runs
            for i in range(run.npages)
        ]
        spaces.append(replace(space, runs=tuple(runs)))
    w.stray.write_bytes(moved)
    w.map.write_bytes(PageMap(tuple(spaces)).build())


@pytest.fixture(params=["contiguous", "scattered"])
def frames(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "scattered")


@pytest.mark.parametrize("pattern", ["all", "even", "blocks"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_faults(world: WorldFactory, scenario: str, pattern: str, frames: bool) -> None:
    w = world(1024, pattern).recorded()
    if frames:
        scatter(w)
    pager = w.pager()
    assert w.client(scenario).wait() == 0
    status = pager.status()
    assert status["faults"] > 0
    assert status["unknown"] == status["pages_lost"] == status["restores_failed"] == 0
    assert status["restores_finished"] == 1
    status = pager.drain()
    assert status["spaces_left"] == status["bytes_left"] == 0
    assert status["pages_home"] == status["pages_total"]


@pytest.mark.parametrize("scenario", [*SCENARIOS, "busy"])
def test_faults_while_draining(world: WorldFactory, scenario: str, frames: bool) -> None:
    w = world(2048, "all").recorded()
    if frames:
        scatter(w)
    pager = w.pager("--drain-threads", "2")
    pager.ask("drain 20M")
    client = w.client(scenario)
    if scenario == "busy":
        assert client.line() == "ready"
        assert client.line() == "done"
        client.go()
    assert client.wait() == 0
    wait_for(lambda: pager.status()["state"] == "drained", "drained")
    status = pager.status()
    assert status["pages_home"] == status["pages_total"]


@pytest.mark.parametrize("window", ["1", "16", "512"])
def test_window(world: WorldFactory, window: str, frames: bool) -> None:
    w = world(1024, "all").recorded()
    if frames:
        scatter(w)
    pager = w.pager("--window", window, "--threads", "1")
    assert w.client("read").wait() == 0
    faults = pager.status()["faults"]
    if window == "1":
        assert faults >= 1000
    if window == "512":
        assert faults < 400


@pytest.mark.parametrize("pattern", ["all", "even", "sparse", "none"])
def test_drain_without_a_single_fault(world: WorldFactory, pattern: str, frames: bool) -> None:
    w = world(3000, pattern).recorded()
    if frames:
        scatter(w)
    pager = w.pager()
    client = w.client("hold")
    assert client.line() == "ready"
    status = pager.drain()
    assert status["pages_drained"] > 0 or pattern == "none"
    client.go()
    own = {"all": 3000, "even": 1500, "sparse": 31, "none": 0}[pattern]
    assert client.line() == f"resident {own}"
    assert client.wait() == 0
    # What the fill had besides, its stack and heap, is nowhere in the client.
    assert status["pages_dropped"] < 100
    assert status["pages_present"] == (pattern == "all")
    assert pager.status()["faults"] == 0


def test_drain_meets_many_borders(world: WorldFactory) -> None:
    w = world(2000, "all").recorded()
    pager = w.pager()
    pager.ask("drain 4M")
    assert w.client("mprotect").wait() == 0
    assert pager.drain()["pages_lost"] == 0


def test_drain_keeps_to_its_rate(world: WorldFactory) -> None:
    w = world(2048, "all").recorded()
    pager = w.pager()
    client = w.client("hold")
    client.line()
    begin = time.monotonic()
    pager.ask("drain 16M")
    time.sleep(0.1)
    assert pager.status()["state"] == "draining"
    wait_for(lambda: pager.status()["state"] == "drained", "drained")
    assert 0.3 < time.monotonic() - begin < 5
    # A new rate takes effect at once.
    client.go()
    assert client.line() == "resident 2048"
    assert client.wait() == 0


def test_faults_are_quick_while_another_process_drains(world: WorldFactory) -> None:
    w = world(4096, "all").recorded()
    pager = w.pager()
    pager.ask("drain 64M")
    assert w.client("read").wait() == 0
    status = pager.status()
    assert status["fault_micros"] / status["faults"] < 20_000


@pytest.mark.parametrize("seed", range(6))
def test_stress(world: WorldFactory, seed: int, frames: bool) -> None:
    w = world(2048, "blocks" if seed % 2 else "all").recorded()
    if frames:
        scatter(w)
    pager = w.pager("--threads", "4", "--drain-threads", "2")
    client = w.client("stress", seed)
    assert client.line() == "ready"
    if seed % 3:
        pager.ask("drain 16M" if seed % 3 == 1 else "drain 2M")
    assert client.wait() == 0
    status = pager.drain()
    # A space that is complete is let go, and then its forks are no business of ours.
    assert status["forks"] >= 4 or seed % 3
    assert status["pages_home"] == status["pages_total"]
    assert status["pages_lost"] == 0


def test_short_lived_children_are_dropped_without_a_drain(world: WorldFactory) -> None:
    w = world(512, "all").recorded()
    pager = w.pager()
    client = w.client("forkexec")
    assert client.line() == "ready"
    assert pager.status()["forks"] == 200
    # Only the parent is left, although nothing is being drained.
    wait_for(lambda: pager.status()["spaces_left"] == 1, "children dropped")
    assert len(os.listdir(f"/proc/{pager.process.pid}/fd")) < 30
    client.go()
    assert client.wait() == 0


def test_process_exits_with_faults_pending(world: WorldFactory) -> None:
    w = world(2048, "all").recorded()
    pager = w.pager("--window", "1")
    assert w.client("exit").wait() == 0
    status = pager.drain()
    assert status["spaces_left"] == 0
    assert status["pages_dropped"] > 0
    assert status["pages_home"] == status["pages_total"]


def test_process_is_killed(world: WorldFactory) -> None:
    w = world(2048, "all").recorded()
    pager = w.pager()
    client = w.client("hold")
    client.line()
    client.popen.kill()
    client.wait()
    assert pager.status()["spaces_left"] == 1
    wait_for(lambda: pager.status()["spaces_left"] == 0, "noticed without a drain")


def test_unknown_process_gets_zeros(world: WorldFactory) -> None:
    w = world(300, "none").recorded()
    pager = w.pager()
    assert w.client("read", pid=4_000_001).wait() == 0
    status = pager.status()
    assert status["unknown"] == 1
    assert status["unclaimed_spaces"] == 1
    assert "process 4000001 of" in w.log() and "is not in the page map" in w.log()


def test_restore_that_dies_is_still_served(world: WorldFactory) -> None:
    w = world(300, "all").recorded()
    pager = w.pager()
    client = w.client("hold-unfinished")
    assert client.line() == "ready"
    wait_for(lambda: pager.status()["restores_failed"] == 1, "failure noticed")
    client.go()
    client.line()
    assert client.wait() == 0
    assert "ended without a word" in w.log()
    # A second attempt gets everything again.
    assert w.client("read").wait() == 0
    status = pager.drain()
    assert status["restores_finished"] == 1
    assert status["pages_home"] == status["pages_total"]


def test_trees_with_the_same_pids(world: WorldFactory) -> None:
    """Two containers, both with a PID 1: the socket tells them apart."""
    w = world(256, "all").recorded()
    other = bytes(PAGE_SIZE)
    page_map = PageMap.parse(w.map.read_bytes())
    (space,) = page_map.spaces
    w.stray.write_bytes(w.stray.read_bytes() + other)
    empty = Space.of(77, [], nspid=1, tree=2)
    w.map.write_bytes(PageMap((empty, replace(space, nspid=1, tree=1))).build())
    refused = subprocess.run(
        [
            *(PROGRAMS / "rekernel-pager", "--map", w.map, "--control", w.directory / "c"),
            *("--frames", f"{w.stray}:0:{STRAY_BASE}:{w.stray.stat().st_size}"),
            *("--listen", w.directory / "l"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "PIDs are not unique in the map: use --listen TREE=" in refused.stderr

    socket_ = w.directory / "lazy-pages.socket"
    pager = subprocess.Popen(
        [
            *(PROGRAMS / "rekernel-pager", "--map", w.map, "--control", w.directory / "c"),
            *("--frames", f"{w.stray}:0:{STRAY_BASE}:{w.stray.stat().st_size}"),
            *("--listen", f"1={socket_}", "--listen", f"2={w.directory}/other"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert pager.stdout is not None
        assert pager.stdout.readline() == "ready\n"
        assert w.client("read", pid=1).wait() == 0
    finally:
        pager.terminate()
        pager.wait()
        if pager.stdout is not None:
            pager.stdout.close()


def test_unreadable_memory_is_never_replaced_by_zeros(world: WorldFactory, frames: bool) -> None:
    if frames and PROGRAMS.name == "tsan":
        pytest.skip("ThreadSanitizer's memcpy does not survive the jump out of SIGBUS")
    w = world(512, "all").recorded()
    if frames:
        scatter(w)
    pager = w.pager()
    client = w.client("sigbus")
    assert client.line() == "ready"
    # The last frames break: reading them raises SIGBUS, as poisoned memory does.
    size = w.stray.stat().st_size
    os.truncate(w.stray, size - 10 * PAGE_SIZE)
    client.go()
    word, lost = client.line().split()
    # Who waits for the page may run before it is counted.
    wait_for(lambda: pager.status()["pages_lost"] >= int(lost), "all that are lost are counted")
    status = pager.status()
    if status["spaces_damaged"]:
        pytest.fail("this kernel has no UFFDIO_POISON: run the test on Linux >= 6.6")
    assert word == "lost" and 0 < int(lost) <= 10
    assert "cannot be read from the old memory, poisoned" in w.log()
    client.go()
    assert client.wait() == 0
    assert pager.drain()["pages_lost"] == status["pages_lost"]


def test_exit_when_drained(world: WorldFactory) -> None:
    w = world(1024, "all").recorded()
    pager = w.pager("--exit-when-drained", "--status-file", w.directory / "status")
    client = w.client("hold")
    client.line()
    assert json.loads((w.directory / "status").read_text())["state"] in ("waiting", "serving")
    pager.ask("drain")
    final = pager.answer()
    assert final["state"] == "drained"
    assert final["spaces_left"] == 0
    assert pager.process.wait() == 0
    assert json.loads((w.directory / "status").read_text()) == final
    assert json.loads(w.log().splitlines()[-1]) == final
    assert not (w.directory / "lazy-pages.socket").exists()
    assert not (w.directory / "control.socket").exists()
    client.go()
    assert client.line() == "resident 1024"
    assert client.wait() == 0


def test_the_window_can_be_changed(world: WorldFactory) -> None:
    faults = []
    for window in ("", "window 16"):
        w = world(512, "all").recorded()
        pager = w.pager("--window", "1")
        if window:
            pager.ask(window)
        assert w.client("read").wait() == 0
        assert "window wants" in pager.ask("window 0")["error"]
        faults.append(pager.drain()["faults"])
    assert faults[0] > 500
    assert faults[1] < 512 / 4


def test_drain_before_the_restore_waits_for_it(world: WorldFactory) -> None:
    w = world(512, "all").recorded()
    pager = w.pager("--exit-when-drained")
    assert pager.ask("drain")["state"] == "draining"
    time.sleep(0.3)
    assert pager.status()["restores_waiting"] == 1
    assert w.client("read").wait() == 0
    assert pager.process.wait() == 0


def test_a_restore_that_never_comes(world: WorldFactory) -> None:
    """Of a tree that was given up before its criu had begun; the others' pages come home."""
    w = world(512, "all").recorded()
    missing = w.directory / "missing.sock"
    pager = w.pager("--listen", missing, "--exit-when-drained")
    assert w.client("read").wait() == 0
    assert pager.ask("drain")["state"] == "draining"
    time.sleep(0.3)
    assert (pager.status()["state"], pager.status()["restores_waiting"]) == ("draining", 1)
    pager.ask("complete")
    assert pager.process.wait() == 0
    assert json.loads(w.log().splitlines()[-1])["state"] == "drained"


def test_complete_waits_for_a_restore_that_has_begun(world: WorldFactory) -> None:
    w = world(4096, "all").recorded()
    pager = w.pager("--exit-when-drained")
    client = w.client("hold")
    client.line()
    pager.ask("complete")
    pager.ask("drain 1M")
    time.sleep(0.3)
    assert pager.status()["state"] == "draining"
    pager.ask("drain")
    assert pager.process.wait() == 0
    client.go()
    assert client.line() == "resident 4096"
    assert client.wait() == 0


def test_sigterm_brings_everything_home_first(world: WorldFactory) -> None:
    w = world(4096, "all").recorded()
    pager = w.pager()
    client = w.client("hold")
    client.line()
    pager.ask("drain 1M")
    os.kill(pager.process.pid, signal.SIGTERM)
    assert pager.process.wait() == 0
    assert "asked to end: draining first" in w.log()
    client.go()
    assert client.line() == "resident 4096"
    assert client.wait() == 0


def test_sigterm_does_not_wait_for_restores_that_never_came(world: WorldFactory) -> None:
    w = world(64, "all").recorded()
    pager = w.pager()
    os.kill(pager.process.pid, signal.SIGTERM)
    assert pager.process.wait() == 0
    assert json.loads(w.log().splitlines()[-1])["unclaimed_spaces"] == 1


def test_status_file_is_renewed(world: WorldFactory) -> None:
    w = world(64, "all").recorded()
    path = w.directory / "status"
    w.pager("--status-file", path)
    assert json.loads(path.read_text())["state"] == "waiting"
    assert w.client("read").wait() == 0
    wait_for(lambda: json.loads(path.read_text())["faults"] > 0, "status file renewed")
    assert not list(w.directory.glob(".status*"))


def test_control_answers(world: WorldFactory) -> None:
    w = world(64, "all").recorded()
    pager = w.pager()
    assert pager.ask("status")["state"] == "waiting"
    assert pager.ask("frob") == {"error": "unknown command"}
    assert pager.ask("drain fast") == {"error": "drain wants bytes per second"}
    client = w.client("hold")
    client.line()
    wait_for(lambda: pager.status()["restores_finished"] == 1, "restore")
    assert pager.status()["state"] == "serving"
    assert "pages are not home yet" in pager.ask("quit")["error"]
    client.go()
    client.line()
    client.wait()
    wait_for(lambda: pager.status()["spaces_left"] == 0, "space dropped")
    assert pager.ask("quit")["spaces_left"] == 0
    assert pager.process.wait() == 0


def test_abort_leaves_at_once(world: WorldFactory) -> None:
    w = world(64, "all").recorded()
    pager = w.pager()
    client = w.client("hold")
    client.line()
    wait_for(lambda: pager.status()["restores_finished"] == 1, "restore")
    pager.ask("abort")
    assert pager.process.wait() == 9
    assert json.loads(w.log().splitlines()[-1])["bytes_left"] > 0


def test_name_that_systemd_spares(world: WorldFactory) -> None:
    w = world(16, "all").recorded()
    pager = w.pager()
    assert Path(f"/proc/{pager.process.pid}/cmdline").read_bytes().startswith(b"@")
    # The kernel keeps 15 characters.
    assert Path(f"/proc/{pager.process.pid}/comm").read_text() == "rekernel-pager\n"


def test_nonsense_on_the_socket(world: WorldFactory) -> None:
    w = world(64, "all").recorded()
    pager = w.pager()
    for data in (struct.pack("<i", 0), struct.pack("<i", 5) + b"x", b"ab", b""):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(pager.socket))
            client.sendall(data)
    wait_for(lambda: pager.status()["restores_failed"] == 4, "four failures")
    assert w.client("read").wait() == 0


def test_map_in_a_window(world: WorldFactory) -> None:
    w = world(64, "all").recorded()
    data = w.map.read_bytes()
    device = w.directory / "device"
    device.write_bytes(bytes(8192) + data + bytes(1 << 20))
    w.pager(map_file=f"{device}:8192:1M")
    assert w.client("read").wait() == 0


def _refusal(w: World, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAMS / "rekernel-pager", "--listen", w.directory / "l", "--control", "c", *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=w.directory,
    )


def _fixed(data: bytes) -> bytes:
    return data[:20] + struct.pack("<I", zlib.crc32(data[24:])) + data[24:]


def _sample(**change: int) -> bytes:
    run = Run(ADDRESS, FRAME_BASE, 2, RunFlag.STRAY)
    space = Space.of(5, [run, Run(ADDRESS + 0x10000, FRAME_BASE + 2, 1)])
    data = bytearray(PageMap((space,)).build())
    for where, value in change.items():
        offset, fmt = {
            "version": (8, "<I"),
            "page_size": (12, "<I"),
            "n_spaces": (16, "<I"),
            "n_runs": (24, "<Q"),
            "flags": (32, "<Q"),
            "space_first": (40 + 16, "<Q"),
            "space_runs": (40 + 24, "<Q"),
            "space_pages": (40 + 32, "<Q"),
            "vaddr": (80 + 24, "<Q"),
            "pfn": (80 + 24 + 8, "<Q"),
            "npages": (80 + 24 + 16, "<I"),
            "run_flags": (80 + 24 + 20, "<I"),
        }[where]
        struct.pack_into(fmt, data, offset, value)
    return _fixed(bytes(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short for a header"),
        (b"x" * 100, "has no RKPGMAP1 at its start"),
        (_sample(version=9), "has version 9, this program reads 1"),
        (_sample(page_size=65536), "has pages of 65536 bytes"),
        (_sample(flags=1), "has unknown flags 0x1"),
        (_sample(n_spaces=99), "is cut off"),
        (_sample(n_runs=1 << 61), "is cut off"),
        (_sample()[:-1], "is cut off"),
        (_sample()[:-1] + b"x", "is damaged: the checksum does not match"),
        (_sample(space_first=3), "gives process 5 runs it does not have"),
        (_sample(space_runs=(1 << 64) - 1), "gives process 5 runs it does not have"),
        (_sample(space_pages=9), "counts 9 pages of process 5, but has 3"),
        (_sample(vaddr=ADDRESS), "has a malformed run"),
        (_sample(vaddr=ADDRESS + 1), "has a malformed run"),
        (_sample(vaddr=1 << 60), "has a malformed run"),
        (_sample(npages=0), "has a malformed run"),
        (_sample(run_flags=2), "has a malformed run"),
        (_sample(pfn=FRAME_BASE + 4), "which no --frames covers"),
        (_sample(npages=100), "which no --frames covers"),
        (_sample(pfn=1), "names frame 0x1, which no --frames covers"),
    ],
)
def test_exit_4_bad_map(world: WorldFactory, data: bytes, message: str) -> None:
    w = world(16)
    w.map.write_bytes(data)
    w.stray.write_bytes(bytes(4 * PAGE_SIZE))
    frames_ = f"{w.stray}:0:{STRAY_BASE}:{4 * PAGE_SIZE}"
    done = _refusal(w, "--map", w.map, "--frames", frames_)
    assert done.returncode == 4, done.stderr
    assert message in done.stderr
    assert "ready" not in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--map"], "bad option"),
        ([], "--map, --listen and --control are needed"),
        (["--map", "m", "x"], "arguments after the options"),
        (["--map", "m", "--frames", "x:1:2"], "bad --frames 'x:1:2'"),
        (["--map", "m", "--frames", "x:1:4096:4096"], "bad --frames"),
        (["--map", "m", "--window", "0"], "--window wants 1 to 512, not '0'"),
        (["--map", "m", "--threads", "99"], "--threads wants 1 to 16, not '99'"),
    ],
)
def test_exit_2_usage(world: WorldFactory, args: list[str], message: str) -> None:
    done = _refusal(world(), *args)
    assert done.returncode == 2
    assert message in done.stderr


def test_exit_1_missing_files(world: WorldFactory) -> None:
    w = world(16)
    done = _refusal(w, "--map", w.directory / "nothing")
    assert done.returncode == 1
    assert "cannot open" in done.stderr and "No such file" in done.stderr
