"""What goes wrong with containers: before the kexec they run on, after it they come back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from rekernel_lab.scenario.upgrade import Outcome
from vm.support import NEW, OLD, Guest, opened

pytestmark = pytest.mark.slow

CARRIED = ("asker", "counter")


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with opened("container-failures", "containers", limit_s=2400, memory_mib=4096) as running:
        running.session.set_up(1024)
        prepared = running.session.script("guest-prepare")
        assert prepared.exit_code == 0, prepared.log.read_text()
        # It has nothing to lose.
        running.text("podman rm --force --time 0 terminal")
        running.install_faults()
        yield running


def questions(guest: Guest) -> int:
    """How many the one has asked the other so far: it ends at the first wrong answer."""
    return int(guest.text("podman exec asker cat /dev/shm/last"))


def pids(guest: Guest) -> list[str]:
    """Of the first process of each."""
    return guest.text(f"podman inspect --format {{{{.State.Pid}}}} {' '.join(CARRIED)}").split()


def assert_goes_on(guest: Guest, before: int) -> None:
    deadline = time.monotonic() + 60
    while questions(guest) <= before:
        assert time.monotonic() < deadline, guest.text("podman ps --all; podman logs asker")
        time.sleep(1)


def assert_free(guest: Guest) -> None:
    """Nothing is locked, and nothing is left of the checkpoints."""
    assert "rekernel" not in guest.text("nft list tables")
    where = guest.text(f"podman inspect --format {{{{.StaticDir}}}} {' '.join(CARRIED)}").split()
    for directory in where:
        assert guest.run(["test", "-e", f"{directory}/checkpoint"])[0] == 1


@pytest.mark.parametrize(
    ("phase", "comm"),
    [("hand over", "criu"), ("hand over", "crun"), ("hand over", "rekernel"), ("dump", "rekernel")],
)
def test_killed(guest: Guest, phase: str, comm: str) -> None:
    before, processes = questions(guest), pids(guest)
    guest.fault(phase, "kill", **({} if comm == "rekernel" else {"comm": comm}))
    code, output = guest.run(["rekernel", "upgrade", "--yes", guest.releases[NEW]], 240)
    guest.no_fault()
    assert code == 5, output
    assert pids(guest) == processes
    assert_goes_on(guest, before)
    assert_free(guest)


def kept(outcome: Outcome) -> set[str]:
    """Carried containers that are what they were."""
    units = [unit for unit in outcome.report["units"] if unit["unit"].startswith("libpod-")]
    return {
        unit["reason"].removeprefix("container ").partition(":")[0]
        for unit in units
        if unit["verdict"] == "carried" and unit["kept"]
    }


# Once, and only on the next kernel.
_KILL = (
    r"&; once = Path('/root/killed'); "
    r"once.exists() or (once.touch(), __import__('os').kill(__import__('os').getpid(), 9))"
)


def test_the_restoring_service_is_killed(guest: Guest) -> None:
    """After the first of two: systemd starts it again, and it goes on with the other."""
    before = questions(guest)
    with guest.changed(("containers/restore.py", r"trees.append(_restore(item))", _KILL)):
        outcome = guest.upgrade(NEW)
        assert outcome.passed, guest.explain(outcome)
    guest.text("test -e /root/killed")
    assert kept(outcome) == {*CARRIED}
    assert_goes_on(guest, before)
    assert_free(guest)


def test_the_agent_fails_when_it_has_begun(guest: Guest) -> None:
    """The machine's own services start afresh; the containers are on the disk and come back."""
    before = questions(guest)
    start = guest.start_of("redis-server.service")
    with guest.changed(
        ("agent/resume.py", "^def _wait_for_criu_check(.*", r"&\n    raise OSError(5, 'as a test')")
    ):
        outcome = guest.upgrade(OLD)
    assert outcome.release == guest.releases[OLD], guest.explain(outcome)
    assert outcome.exit_code == 1, guest.explain(outcome)
    assert "as a test" in outcome.report["error"]
    assert guest.start_of("redis-server.service") not in ("", start)
    assert sorted(outcome.report["notes"]) == [
        f"container {name}: it was carried over all the same" for name in CARRIED
    ]
    assert questions(guest) >= before
    assert_free(guest)
