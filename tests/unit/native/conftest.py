"""What stands in for the two kernels: a filled process, its page map, a pager, a client.

The "old physical memory" is a file: the recorder runs with no region at all, so every page
is a stray and is copied there. REKERNEL_NATIVE_DIR chooses another build of the programs,
for instance native/build/asan.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NATIVE = Path(__file__).parents[3] / "native"
BUILD = NATIVE / "build"
PROGRAMS = Path(os.environ.get("REKERNEL_NATIVE_DIR", BUILD)).absolute()
CLIENT = BUILD / "uffd-client"

ADDRESS = 0x600000000000
STRAY_BASE = 64 << 30
TIMEOUT = 120.0

# A race must end the program, or a pager that is killed at the end would hide it. The recorder
# may give up in any thread, without waiting for the others.
os.environ.setdefault("TSAN_OPTIONS", "halt_on_error=1:report_thread_leaks=0")


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    if os.geteuid():
        pytest.fail("these tests need root: page frame numbers, userfaultfd of other processes")
    subprocess.run(["make", "-s", "-C", NATIVE, "all", "tools"], check=True)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Poll until it is true; fail the test if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"timeout: {what}")
        time.sleep(0.005)


@dataclass
class Process:
    """A child that talks in lines and is ended whatever the test does."""

    popen: subprocess.Popen[str]

    @classmethod
    def start(cls, *args: str | Path | int, stderr: int | None = None) -> Process:
        return cls(
            subprocess.Popen(
                [str(arg) for arg in args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def go(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def wait(self) -> int:
        return self.popen.wait(timeout=TIMEOUT)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()


@dataclass
class Pager:
    """A running rekernel-pager."""

    process: Process
    directory: Path
    _control: socket.socket | None = field(default=None)
    _buffer: bytes = b""

    @property
    def socket(self) -> Path:
        return self.directory / "lazy-pages.socket"

    def ask(self, command: str) -> dict[str, Any]:
        """One command, one answer."""
        if self._control is None:
            self._control = socket.socket(socket.AF_UNIX)
            self._control.settimeout(TIMEOUT)
            self._control.connect(str(self.directory / "control.socket"))
        self._control.sendall(command.encode() + b"\n")
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._control is not None
        while b"\n" not in self._buffer:
            data = self._control.recv(65536)
            assert data, "the pager closed the control connection"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        return found

    def status(self) -> dict[str, Any]:
        return self.ask("status")

    def ask_anew(self, command: str = "status") -> dict[str, Any]:
        """The same over a new connection, again if the worker that had it is killed."""
        while True:
            if self._control is not None:
                self._control.close()
            self._control, self._buffer = None, b""
            try:
                return self.ask(command)
            except (AssertionError, ConnectionResetError, BrokenPipeError):
                continue

    def holders(self) -> dict[str, int]:
        """The PIDs of those that live: ``supervisor``, ``witness``, ``worker``, as far as known."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.directory / "control.socket") not in (path / "cmdline").read_text():
                    continue
                keeper = (path / "comm").read_text() == "rekernel-keeper\n"
                threads = len(list((path / "task").iterdir()))
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, UnicodeDecodeError):
                continue
            if state != "Z":
                role = "witness" if keeper else "worker" if threads > 1 else "supervisor"
                found[role] = int(path.name)
        return found

    def drain(self) -> dict[str, Any]:
        """Drain to the end; the status then."""
        self.ask("drain")
        wait_for(lambda: self.status()["state"] == "drained", "drained")
        return self.status()

    def end(self) -> None:
        if self._control is not None:
            self._control.close()
        # All at once, and again if one has made others meanwhile.
        while found := self.holders():
            for pid in found.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.end()


@dataclass
class World:
    """One filled process and what was recorded of it."""

    directory: Path
    pages: int
    pattern: str
    pid: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    processes: list[Process | Pager] = field(default_factory=list)

    @property
    def map(self) -> Path:
        return self.directory / "map"

    @property
    def stray(self) -> Path:
        return self.directory / "stray"

    def fill(self) -> Process:
        process = Process.start(CLIENT, "fill", hex(ADDRESS), self.pages, self.pattern)
        self.processes.append(process)
        assert process.line() == "ready"
        self.pid = process.pid
        return process

    def record(self, *extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(PROGRAMS / "rekernel-pagemap", "record", "--region", "none"),
                *("--out", self.map, "--stray-out", self.stray),
                *("--stray-base", hex(STRAY_BASE), "--stray-max", "1G", *extra, str(self.pid)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )

    def recorded(self) -> World:
        """Fill, record, and end the old process."""
        process = self.fill()
        done = self.record()
        assert done.returncode == 0, done.stderr
        self.summary = json.loads(done.stdout)
        process.end()
        return self

    def pager(
        self,
        *extra: str | Path,
        map_file: Path | str | None = None,
        within: tuple[str | Path, ...] = (),
    ) -> Pager:
        """Ready to serve. ``within``: what comes before its command line."""
        size = max(self.stray.stat().st_size, 4096)
        process = Process.start(
            *within,
            PROGRAMS / "rekernel-pager",
            *("--map", map_file or self.map),
            *("--frames", f"{self.stray}:0:{STRAY_BASE:#x}:{size}"),
            *("--listen", self.directory / "lazy-pages.socket"),
            *("--control", self.directory / "control.socket"),
            *("--log", self.directory / "log"),
            *extra,
        )
        pager = Pager(process, self.directory)
        self.processes.append(pager)
        assert process.line() == "ready"
        return pager

    def client(self, scenario: str, seed: int = 1, pid: int | None = None) -> Process:
        process = Process.start(
            *(CLIENT, scenario, self.directory / "lazy-pages.socket"),
            *(self.pid if pid is None else pid, hex(ADDRESS), self.pages, self.pattern, seed),
        )
        self.processes.append(process)
        return process

    def log(self) -> str:
        return (self.directory / "log").read_text()


WorldFactory = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[WorldFactory]:
    made: list[World] = []

    def make(pages: int = 1024, pattern: str = "all") -> World:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(World(directory, pages, pattern))
        return made[-1]

    yield make
    for one in made:
        for process in one.processes:
            process.end()
