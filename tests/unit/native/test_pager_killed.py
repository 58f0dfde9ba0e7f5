"""rekernel-pager, killed: whoever is left goes on, and no byte is wrong."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from .conftest import PROGRAMS, Pager, Process, World, WorldFactory, wait_for
from .pagemap import PAGE_SIZE

SCENARIOS = ["read", "threads", "fork", "mremap", "dontneed", "munmap", "mprotect"]


# The program is "$@"; another process of its mount namespace moves /proc away.
_MOVING = """
mount --make-rprivate /
(until [ -e "$0/go" ]; do sleep 0.05; done
 mkdir "$0/proc" && mount --move /proc "$0/proc" && touch "$0/moved") &
exec "$@"
"""


def serve(w: World, *extra: str, within: str = "") -> Pager:
    """A pager that tells its last words in a file; ``within``: a script that runs it."""
    script = ("unshare", "--mount", "sh", "-ec", within, w.directory) if within else ()
    return w.pager("--status-file", w.directory / "status", *extra, within=script)


def kill(pager: Pager, *roles: str) -> dict[str, int]:
    """SIGKILL to those that live, at one moment."""
    found = pager.holders()
    for role in roles:
        if role in found:
            os.kill(found[role], signal.SIGKILL)
    return found


def wait_for_new(pager: Pager, before: dict[str, int], *roles: str) -> None:
    """Until all three live, these as other processes; who is just beginning has no role yet."""

    def all_live() -> bool:
        found = pager.holders()
        return len(found) == 3 and all(found[role] != before[role] for role in roles)

    wait_for(all_live, "all three are back")


@contextmanager
def killing(pager: Pager, seed: int, *roles: str, pause: float = 0.03) -> Iterator[list[int]]:
    """Kill one of these again and again while the block runs; the PIDs.

    Of several kinds only while all three live: what survives is the death of any, not of all.
    """
    over = threading.Event()
    killed: list[int] = []
    dice = random.Random(seed)

    def work() -> None:
        while not over.is_set():
            role = dice.choice(roles)
            found = pager.holders()
            pid = found.get(role)
            if pid is not None and (len(roles) == 1 or len(found) == 3):
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                except ProcessLookupError:
                    pass
            time.sleep(dice.random() * pause)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def drained(pager: Pager) -> dict[str, Any]:
    """Drain to the end, which may be there already; the status then."""
    with suppress(ConnectionRefusedError, FileNotFoundError):
        pager.ask_anew("drain")
    path = pager.directory / "status"
    wait_for(lambda: status_of(path)["state"] == "drained", "drained")
    status = status_of(path)
    assert status["spaces_left"] == status["bytes_left"] == 0
    assert status["pages_home"] == status["pages_total"]
    assert status["pages_lost"] == status["unknown"] == 0
    assert status["stopped"] == []
    return status


def status_of(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("seed", range(2))
def test_a_worker_that_is_killed_again_and_again(
    world: WorldFactory, scenario: str, seed: int
) -> None:
    w = world(4096, "all").recorded()
    pager = serve(w, "--window", "1")
    with killing(pager, seed, "worker") as killed:
        assert w.client(scenario, seed).wait() == 0
        while len(killed) < 3:
            time.sleep(0.01)
    assert drained(pager)["restarts"]


@pytest.mark.parametrize("seed", range(6))
def test_stress(world: WorldFactory, seed: int) -> None:
    w = world(2048, "blocks" if seed % 2 else "all").recorded()
    pager = serve(w, "--threads", "4", "--drain-threads", "2")
    client = w.client("stress", seed)
    assert client.line() == "ready"
    if seed % 3:
        pager.ask("drain 16M" if seed % 3 == 1 else "drain 2M")
    with killing(pager, seed, "worker"):
        assert client.wait() == 0
    drained(pager)


@pytest.mark.parametrize("seed", range(3))
def test_any_of_them(world: WorldFactory, seed: int) -> None:
    """Also the ones that only wait; memory is touched for the first time much later."""
    w = world(4096, "all").recorded()
    pager = serve(w, "--window", "1")
    later = w.client("hold")
    assert later.line() == "ready"
    client = w.client("busy", seed)
    assert client.line() == "ready"
    with killing(pager, seed, "worker", "supervisor", "witness", pause=0.2):
        assert client.line() == "done"
    client.go()
    assert client.wait() == 0
    wait_for(lambda: set(pager.holders()) == {"worker", "supervisor", "witness"}, "all are back")
    assert pager.ask_anew()["bytes_left"] > 0
    later.go()
    assert later.line() != "resident 4096"
    assert later.wait() == 0
    drained(pager)


def test_while_restores_hand_over(world: WorldFactory) -> None:
    w = world(256, "all").recorded()
    pager = serve(w)
    with killing(pager, 1, "worker", pause=0.01):
        for seed in range(30):
            assert w.client("read", seed).wait() == 0
    assert pager.ask_anew()["restores_finished"] == 30
    drained(pager)


@pytest.mark.parametrize("roles", [("worker", "supervisor"), ("worker", "witness")])
def test_two_at_once(world: WorldFactory, roles: tuple[str, ...]) -> None:
    w = world(2048, "all").recorded()
    pager = serve(w)
    client = w.client("hold")
    assert client.line() == "ready"
    before = kill(pager, *roles)
    wait_for_new(pager, before, *roles)
    client.go()
    assert client.line() != "resident 2048"
    assert client.wait() == 0
    drained(pager)
    assert "is gone" in w.log()


def test_proc_may_be_elsewhere_by_then(world: WorldFactory) -> None:
    """As after switch_root, which the pager's root does not follow."""
    w = world(1024, "all").recorded()
    pager = serve(w, within=_MOVING)
    client = w.client("hold")
    assert client.line() == "ready"
    (w.directory / "go").touch()
    wait_for(lambda: (w.directory / "moved").exists(), "moved")
    before = kill(pager, "worker", "supervisor")
    wait_for_new(pager, before, "worker", "supervisor")
    client.go()
    client.line()
    assert client.wait() == 0
    drained(pager)


def stopped(process: Process) -> bool:
    """Whether a signal has stopped it."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_when_no_worker_lives_processes_are_stopped(world: WorldFactory) -> None:
    w = world(2048, "all").recorded()
    path = w.directory / "status"
    pager = serve(w)
    client = w.client("hold")
    assert client.line() == "ready"
    wait_for(lambda: pager.status()["restores_finished"] == 1, "restore")
    # No worker finds memory for its threads from now on.
    size = int(Path(f"/proc/{pager.process.pid}/statm").read_text().split()[0]) * PAGE_SIZE
    resource.prlimit(pager.process.pid, resource.RLIMIT_AS, (size, size))
    kill(pager, "worker")
    wait_for(lambda: status_of(path)["state"] == "stopped", "told")
    status = status_of(path)
    wait_for(lambda: stopped(client), "stopped")
    (named,) = status["stopped"]
    assert named["pid"] == client.pid
    assert 2000 < named["pages"] <= 2100
    assert status["bytes_left"] == named["pages"] * PAGE_SIZE
    # As soon as it is gone, nothing is held any more.
    client.popen.kill()
    client.wait()
    assert pager.process.wait() == 1
    assert status_of(path)["state"] == "drained"


def test_a_worker_that_was_alone_leaves_a_keeper(world: WorldFactory) -> None:
    if PROGRAMS.name == "tsan":
        pytest.skip("ThreadSanitizer takes the worker's threads for the keeper's own")
    w = world(2048, "all").recorded()
    path = w.directory / "status"
    pager = serve(w)
    client = w.client("fork-hold")
    assert client.line() == "ready"
    # Else the witness may be quicker.
    os.kill(pager.holders()["witness"], signal.SIGSTOP)
    kill(pager, "supervisor", "witness")
    wait_for(lambda: "a new witness" in w.log(), "it has seen that")
    kill(pager, "worker")
    wait_for(lambda: status_of(path)["state"] == "stopped", "told")
    wait_for(lambda: stopped(client), "stopped")
    (child,) = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
    assert {item["pid"] for item in status_of(path)["stopped"]} == {
        client.pid,
        int(child),
    }
    os.kill(int(child), signal.SIGKILL)
    client.popen.kill()
    client.wait()
    wait_for(lambda: status_of(path)["state"] == "drained", "let go")


def test_unreadable_memory_without_poison(
    world: WorldFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 6.6: the process is ended, and so is the drain."""
    monkeypatch.setenv("REKERNEL_NO_POISON", "1")
    w = world(512, "all").recorded()
    pager = serve(w)
    client = w.client("hold")
    assert client.line() == "ready"
    os.truncate(w.stray, w.stray.stat().st_size - 10 * PAGE_SIZE)
    pager.ask("drain")
    assert client.wait() == -signal.SIGKILL
    wait_for(lambda: pager.status()["state"] == "drained", "drained")
    status = pager.status()
    assert status["pages_lost"] == 1
    assert status["lost"] == [{"pid": client.pid, "pages": 1}]
    assert "it cannot go on" in w.log()
