"""Every byte of every kind of page: through a chain of upgrades, images, and a failed neighbour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from rekernel_lab.scenario.client import HostClient
from rekernel_lab.scenario.session import IN_GUEST
from vm.support import NEW, OLD, Guest, resumed

# A service that cannot come back: what it has mapped is gone when it is restored.
_PROGRAM = """\
#!/usr/bin/python3
import mmap
import os
import time

# Trees enough that some are given up before their criu has begun.
for _ in range(4):
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        break
else:
    for _ in range(4):
        os.wait()
with open("/var/lib/broken.data", "r+b") as file:
    area = mmap.mmap(file.fileno(), 0)
time.sleep(10**6)
"""
_BROKEN_TREES = 5
_BROKEN = """\
[Unit]
Description=Maps a file that vanishes

[Service]
RuntimeDirectory=broken
ExecStartPre=/usr/bin/dd if=/dev/zero of=/var/lib/broken.data bs=4096 count=4 status=none
ExecStart=/usr/local/bin/broken

[Install]
WantedBy=multi-user.target
"""
# One of which there must be no two. criu of BEFORE dies while all trees are held, that of AFTER as
# soon as they are to run: what they held runs on.
_SINGLE = """\
[Unit]
Description=Does nothing, once

[Service]
ExecStart=/bin/sh -c ': single %i; while :; do sleep 1; done'

[Install]
WantedBy=multi-user.target
"""
_BEFORE, _AFTER = "single@before.service", "single@after.service"
_KILL = "[os.kill(item.pid, 9) for item in restores.held if item.tree.unit == '{unit}']"


# More shared memory than /run or the handover store has room for.
_SHARED = """\
[Service]
ExecStart=/usr/local/bin/shared 600 /var/lib/shared/answer
StateDirectory=shared
"""
_SHARED_BYTES = 600 << 20


# Before the drain begins: worker and supervisor at once, of what pages wait for.
_KILLER = """\
[Unit]
Description=Kills the pager
ConditionPathExists=/run/rekernel/agent.json
DefaultDependencies=no
Before=rekernel-region.service

[Service]
Type=oneshot
ExecStart=/bin/sh /usr/local/sbin/kill-pager

[Install]
WantedBy=basic.target
"""
_KILL_PAGER = """\
for i in 1 2 3; do
    sleep 0.4
    kill -9 $(grep -lxs rekernel-pager /proc/[0-9]*/comm | cut -d/ -f3)
done
"""


@dataclass(frozen=True)
class Carried:
    """The guest with the pages service, and the client that talks to it all the time."""

    guest: Guest
    client: HostClient


@pytest.fixture(scope="module")
def carried() -> Iterator[Carried]:
    with resumed("pages", "pages", limit_s=1500) as guest:
        prepared = guest.session.script("guest-prepare")
        assert prepared.exit_code == 0, prepared.log.read_text()
        guest.install_faults()
        with guest.client() as client:
            yield Carried(guest, client)


def check(carried: Carried, label: str) -> None:
    """All memory is right, and the client is content."""
    script = carried.guest.session.script("guest-check", label)
    assert script.exit_code == 0, f"{script.log.read_text()}; see {carried.guest.kept}"
    carried.client.check_alive()


def kill_pager(guest: Guest, wanted: bool) -> None:
    """Kill it on each boot from now on, or no more."""
    if not wanted:
        guest.text("systemctl disable --quiet pager-killer.service")
        return
    guest.write("/usr/local/sbin/kill-pager", _KILL_PAGER)
    guest.write("/etc/systemd/system/pager-killer.service", _KILLER)
    guest.text("systemctl daemon-reload && systemctl enable --quiet pager-killer.service")


def swap_out(guest: Guest) -> None:
    """Part of the service's memory is on a disk."""
    guest.swap_on(256, priority=7)
    # It tells that it could not get as much as it was asked for; some of it will do.
    guest.run("echo 100M > /sys/fs/cgroup/system.slice/pages.service/memory.reclaim")
    swapped = guest.text("cat /sys/fs/cgroup/system.slice/pages.service/memory.swap.current")
    assert int(swapped) > 20 << 20


def start_shared(guest: Guest) -> int:
    """A service with much shared memory; returns its main process when all of it is filled."""
    guest.text(f"cd {IN_GUEST} && tcc -Wall -o /usr/local/bin/shared shared.c")
    guest.write("/etc/systemd/system/shared.service", _SHARED)
    guest.text("systemctl daemon-reload && systemctl start shared.service")
    shared_answers(guest)
    return guest.main_pid("shared.service")


def shared_answers(guest: Guest) -> None:
    """Every byte of it is right."""
    wait = "until grep -qs . /var/lib/shared/answer; do sleep 0.2; done; cat /var/lib/shared/answer"
    assert guest.text(["timeout", "110", "sh", "-c", wait]) == "ok"


def check_shared(guest: Guest, pid: int) -> None:
    """It is the same process still. It ends then."""
    assert guest.main_pid("shared.service") == pid
    guest.text("rm /var/lib/shared/answer && systemctl kill --signal=USR1 shared.service")
    shared_answers(guest)
    guest.text("systemctl stop shared.service")


def test_chain_in_one_boot(carried: Carried) -> None:
    guest = carried.guest
    pid = guest.main_pid("pages.service")
    kill_pager(guest, True)
    for number, prefix in enumerate((NEW, OLD, NEW), 1):
        if number == 2:
            # After the page map was recorded.
            guest.fault("freeze file systems", "compact")
        if number == 3:
            swap_out(guest)
        outcome = guest.upgrade(prefix)
        assert outcome.passed, guest.explain(outcome)
        drain = outcome.report["memory"]["drain"]
        # All are gone and others have taken their place, each time.
        assert (drain["restarts"] >= 3) == (number == 1), drain
        if number == 1:
            notes = outcome.report["notes"]
            assert any("the pager was killed" in note for note in notes), notes
            kill_pager(guest, False)
        if number == 2:
            assert "record again" in [phase["name"] for phase in outcome.report["phases"]]
        check(carried, f"guest-check-{number}")
        report = outcome.report
        assert report["memory"]["disk_bytes"] == 0
        assert report["connections"]["lost"] == []
        assert report["memory"]["backend"] == "region"
        assert report["memory"]["drain"]["pages_lost"] == 0
        # The region is whole again: the next upgrade finds its pages there.
        region = guest.json("rekernel status --json")["region"]
        assert region["drain_bytes"] == 0
        assert region["ram_bytes"] + region["store_bytes"] == region["size"]
    assert guest.main_pid("pages.service") == pid
    assert guest.text("swapon --show=NAME,PRIO --noheadings").split() == ["/swap", "7"]


def test_a_tree_that_cannot_be_restored(carried: Carried) -> None:
    guest = carried.guest
    guest.write("/usr/local/bin/broken", _PROGRAM)
    guest.text("chmod 755 /usr/local/bin/broken")
    guest.write("/etc/systemd/system/broken.service", _BROKEN)
    guest.text("systemctl daemon-reload && systemctl enable --quiet --now broken.service")
    start = guest.start_of("broken.service")
    mapped = "grep -ls broken.data /proc/[0-9]*/maps | wc -l"
    wait = f"until [ $({mapped}) = {_BROKEN_TREES} ]; do sleep 0.5; done"
    guest.text(["timeout", "60", "sh", "-c", wait])
    # Not in an upgrade before: with so much in the region, pages come home outside of it.
    shared = start_shared(guest)
    room = guest.json(f"rekernel plan --json {guest.releases[OLD]}")["room"]
    (needs,) = [unit for unit in room["units"] if unit["unit"] == "shared.service"]
    assert (needs["shared_bytes"], needs["place"]) == (_SHARED_BYTES, "disk")
    guest.fault("freeze file systems", "unlink", path="/var/lib/broken.data")
    guest.write("/etc/systemd/system/single@.service", _SINGLE)
    guest.text(f"systemctl enable --quiet --now {_BEFORE} {_AFTER}")
    singles = {unit: guest.main_pid(unit) for unit in (_BEFORE, _AFTER)}
    kill_before = f"&\\n    {_KILL.format(unit=_BEFORE)}; time.sleep(1)"
    kill_after = f"&\\n    {_KILL.format(unit=_AFTER)}"
    with guest.changed(
        ("agent/restore.py", "^def commit(.*", kill_before),
        ("agent/restore.py", "^    held = restores.held$", kill_after),
    ):
        outcome = guest.upgrade(OLD)
    assert outcome.exit_code == 4, guest.explain(outcome)
    assert outcome.release == guest.releases[OLD]
    report = outcome.report
    assert report["outcome"] == "degraded"
    units = {unit["unit"]: unit for unit in report["units"]}
    assert units["pages.service"]["kept"]
    assert not units["broken.service"]["kept"]
    assert "broken.data" in units["broken.service"]["failure"]
    # systemd has started it afresh, and criu's log was kept.
    assert units["broken.service"]["active_after"]
    assert guest.start_of("broken.service") not in ("", start)
    logs = guest.text(f"ls /var/lib/rekernel/history/{report['id']}/logs")
    assert "restore-broken" in logs
    for unit, old in singles.items():
        assert not units[unit]["kept"]
        assert "criu ended with -9" in units[unit]["failure"]
        assert units[unit]["not_ended"] == []
        # Started afresh, and nothing runs beside that.
        name = unit.partition("@")[2].removesuffix(".service")
        main = guest.main_pid(unit)
        assert guest.text(f"pgrep -f ': singl[e] {name}'").split() == [str(main)]
        assert main != old
    # Had something of it been left, systemd would not have started it until it is told to.
    keep = f"from rekernel.agent import remains; remains.keep_from_starting({{'{_AFTER}': [1]}})"
    guest.text(["python3", "-c", keep])
    guest.text(f"systemctl daemon-reload && systemctl stop {_AFTER}")
    assert guest.run(["systemctl", "start", _AFTER])[0] != 0
    guest.text(f"rm /run/rekernel/not-ended/{_AFTER} && systemctl start {_AFTER}")
    assert report["memory"]["disk_bytes"] > _SHARED_BYTES
    # Nobody waits for those that were given up.
    assert guest.json("rekernel status --json")["region"]["drain_bytes"] == 0
    check_shared(guest, shared)
    check(carried, "guest-check-degraded")
    guest.text(
        f"systemctl disable --quiet --now broken.service {_BEFORE} {_AFTER};"
        " rm /etc/systemd/system/broken.service /etc/systemd/system/single@.service"
        " /var/lib/broken.data; rm -r /run/systemd/system/single@*.d; systemctl daemon-reload"
    )


def test_image_backend(carried: Carried) -> None:
    guest = carried.guest
    outcome = guest.upgrade(NEW, "--memory=image")
    assert outcome.passed, guest.explain(outcome)
    check(carried, "guest-check-image")
    memory = outcome.report["memory"]
    assert memory["backend"] == "image"
    assert memory["pages_in_place"] == 0
    assert memory["disk_bytes"] > 300 << 20
    # Nothing is left of it on the disk.
    assert guest.text("ls /var/lib/rekernel/images 2>/dev/null || true") == ""


def test_the_client_saw_nothing(carried: Carried) -> None:
    carried.guest.finish(carried.client)
    verified = carried.guest.session.script("guest-verify")
    assert verified.exit_code == 0, verified.log.read_text()
