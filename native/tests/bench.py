"""Throughput of recorder and pager on this machine, as a table.

usage: bench.py BUILD_DIR [MEGABYTES]

Needs root. The old memory is a file on tmpfs, as in the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "unit"))

from native.pagemap import PAGE_SIZE, PageMap, Run, Space

ADDRESS = 0x600000000000
BASE = 64 << 30
STRIDE = 7919


def command(*args: object) -> list[str]:
    return [str(arg) for arg in args]


@contextmanager
def talking(*args: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(*args), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def row(name: str, pages: int, seconds: float) -> None:
    rate = pages / seconds
    print(f"{name:46} {rate:12,.0f} pages/s {rate * PAGE_SIZE / 1e9:7.2f} GB/s", flush=True)


def record(build: Path, directory: Path, pages: int) -> None:
    with talking(build / "uffd-client", "fill", ADDRESS, pages, "all") as process:
        for name, region in (("record, in the region", "0:64G"), ("record, all strays", "none")):
            out = subprocess.run(
                command(
                    *(build / "rekernel-pagemap", "record", "--region", region),
                    *("--out", directory / "m", "--stray-out", directory / "s"),
                    *("--stray-max", "64G", process.pid),
                ),
                check=True,
                stdout=subprocess.PIPE,
            )
            summary = json.loads(out.stdout)
            row(f"{name}, {summary['runs']} runs", pages, summary["micros"] / 1e6)


def write_map(directory: Path, pages: int, run: int) -> None:
    """Frames of `pages` pages in runs of `run` pages that are scattered."""
    count = pages // run
    runs = [
        Run(ADDRESS + i * run * PAGE_SIZE, BASE // PAGE_SIZE + i * STRIDE % count * run, run)
        for i in range(count)
    ]
    (directory / "map").write_bytes(PageMap((Space.of(1, runs),)).build())


@contextmanager
def pager(build: Path, directory: Path, pages: int, *extra: object) -> Iterator[Path]:
    with talking(
        *(build / "rekernel-pager", "--map", directory / "map"),
        *("--frames", f"{directory}/frames:0:{BASE}:{pages * PAGE_SIZE}"),
        *("--listen", directory / "l", "--control", directory / "c"),
        *("--exit-when-drained", "--log", directory / "log", *extra),
    ) as process:
        yield directory / "log"
        if process.poll() is None:
            process.terminate()
            process.wait()


def serve(build: Path, directory: Path, pages: int, run: int, window: int) -> None:
    # "none": the client must not write its last page itself.
    client = (build / "uffd-client", "bench", directory / "l", 1, ADDRESS, pages, "none")
    with pager(build, directory, pages, "--window", window) as log, talking(*client) as process:
        go(process)
        assert process.stdout is not None
        seconds = float(process.stdout.readline().split()[0])
        status = json.loads(control(directory, "status"))
        row(f"faults, runs of {run}, window {window}", pages, seconds)
        each = status["fault_micros"] / status["faults"]
        print(f"{'':8}{status['faults']} faults, {each:.1f} us each in the pager")
        del log


def control(directory: Path, line: str) -> str:
    import socket

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(directory / "c"))
        client.sendall(line.encode() + b"\n")
        return client.makefile().readline()


def drain(build: Path, directory: Path, pages: int, run: int, threads: int) -> None:
    client = (build / "uffd-client", "bench", directory / "l", 1, ADDRESS, pages, "none")
    with (
        pager(build, directory, pages, "--drain-threads", threads) as log,
        talking(*client) as process,
    ):
        time.sleep(0.2)
        begin = time.monotonic()
        control(directory, "drain")
        while not log.exists() or '"state":"drained"' not in log.read_text():
            time.sleep(0.002)
        row(f"drain, runs of {run}, {threads} threads", pages, time.monotonic() - begin)
        process.kill()


def main() -> None:
    build = Path(sys.argv[1]).resolve()
    pages = int(sys.argv[2] if len(sys.argv) > 2 else 512) * 256
    os.environ["PATH"] += ":/usr/sbin"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        record(build, directory, pages)
        (directory / "s").unlink()
        with (directory / "frames").open("wb") as file:
            for _ in range(pages // 256):
                file.write(os.urandom(256 * PAGE_SIZE))
        for run in (1, 4, 512):
            write_map(directory, pages, run)
            for window in (1, 16):
                serve(build, directory, pages, run, window)
            for threads in (1, 2):
                (directory / "log").unlink(missing_ok=True)
                drain(build, directory, pages, run, threads)
                (directory / "log").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
