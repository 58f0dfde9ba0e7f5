"""What goes wrong before the kexec leaves everything as it was; what goes wrong after it, a machine
that has booted. One guest for all: none of these but the last few reboots it.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pytest

from rekernel_lab.bench import jump as bench_jump
from rekernel_lab.errors import LabError
from rekernel_lab.scenario import prepared
from rekernel_lab.scenario.client import HostClient
from rekernel_lab.scenario.session import Deadline
from vm.support import NEW, OLD, Guest, resumed

CARRIED = ("demo.service", "nginx.service", "redis-server.service")

# In the order of an upgrade; test_phases_are_all_known sees to it that none is missing.
PHASES = (
    "plan",
    "load kernel",
    "swap off",
    "describe host",
    "gather strays",
    "take room",
    "wait for kernel",
    "stop what restarts",
    "sync",
    "look at processes",
    "make ready",
    "freeze",
    "lock network",
    "dump",
    "hand over",
    "freeze file systems",
)

# Changed by the demo's guest-prepare, the tests and systemd itself, not by setup; or of services
# that others who share the guest need.
_NOT_SETUP = re.compile(r"redis|nginx|php|netavark|demo|rekernel/history|adjtime|random-seed")


@dataclass
class Lab:
    """The guest and a connection to its Redis that stays open through everything."""

    guest: Guest
    client: HostClient
    redis: socket.socket
    replies: BinaryIO
    number: int = 0

    def increment(self) -> None:
        """Redis answers over the connection from before, and has not forgotten anything."""
        self.redis.sendall(b"*2\r\n$4\r\nINCR\r\n$4\r\ntest\r\n")
        reply = self.replies.readline().rstrip()
        assert reply == b":%d" % (self.number + 1), reply
        self.number += 1

    def upgrade(self, *options: str, timeout: float = 240) -> tuple[int, str]:
        """Exit code and output of an upgrade that must not come to the kexec."""
        words = ["rekernel", "upgrade", "--yes", *options, self.guest.releases[NEW]]
        return self.guest.run(words, timeout)

    def newest(self) -> dict[str, Any]:
        """The newest attempt in the history."""
        upgrades: list[dict[str, Any]] = self.guest.json("rekernel history --json")["upgrades"]
        return upgrades[0] if upgrades else {"id": ""}

    def assert_unharmed(self) -> None:
        """Everything runs on, and nothing is left behind."""
        self.increment()
        self.client.check_alive()
        differences = self.guest.state_differences(*CARRIED)
        assert not differences, f"{differences}\nserial log: {self.guest.serial_log}"
        self.increment()

    def assert_fails(self, *options: str, code: int, message: str) -> dict[str, Any]:
        """An upgrade fails like this, does no harm and gets into the history; returns that."""
        before = self.guest.text("ls /var/lib/rekernel/history 2>/dev/null || true").split()
        exit_code, output = self.upgrade(*options)
        self.assert_unharmed()
        assert exit_code == code, output
        assert re.search(message, output), output
        newest = self.newest()
        assert newest["id"] not in before, f"not in the history: {output}"
        assert newest["exit_code"] == code
        assert newest["new_release"] in ("", self.guest.releases[NEW])
        return newest


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with resumed("failures", "demo", limit_s=2400) as guest:
        prepared = guest.session.script("guest-prepare")
        assert prepared.exit_code == 0, prepared.log.read_text()
        guest.install_faults()
        guest.swap_on(64, priority=7)
        with guest.connected(), guest.client() as client, guest.connect(6379) as redis:
            guest.record_state(*CARRIED)
            yield Lab(guest, client, redis, redis.makefile("rb"))


def configuration(guest: Guest, command: str) -> frozenset[str]:
    """Names and contents of all configuration, of what the boot loader reads, and of units."""
    return frozenset(
        line for line in guest.text(command).splitlines() if not _NOT_SETUP.search(line)
    )


@pytest.fixture(autouse=True)
def no_fault_left(lab: Lab) -> Iterator[None]:
    yield
    lab.guest.no_fault()


def test_terminated_in_the_last_phase(lab: Lab) -> None:
    lab.guest.fault(PHASES[-1], "term")
    lab.assert_fails(code=5, message="SIGTERM")


def test_phases_are_all_known(lab: Lab) -> None:
    # The events of the attempt before this one, which went through all of them.
    lines = lab.guest.text("cat /run/rekernel/events.jsonl").splitlines()
    events = [json.loads(line) for line in lines]
    names = [event["name"] for event in events if event["kind"] == "begin"]
    assert names == [*PHASES, "undo"]


def each(phases: Sequence[str], *, slow: Sequence[str]) -> pytest.MarkDecorator:
    """A test for each phase. Some are undone as others are, and left to the slow tests."""
    marks = {phase: pytest.mark.slow if phase in slow else () for phase in phases}
    found = [pytest.param(phase, marks=marks[phase]) for phase in phases]
    return pytest.mark.parametrize("phase", found)


@each(
    PHASES[:-1],
    slow=["plan", "gather strays", "stop what restarts", "sync", "lock network", "hand over"],
)
def test_terminated(lab: Lab, phase: str) -> None:
    lab.guest.fault(phase, "term")
    lab.assert_fails(code=5, message="SIGTERM|stopped")


@each(PHASES, slow=["plan", "swap off", "gather strays", "stop what restarts", "sync"])
def test_killed(lab: Lab, phase: str) -> None:
    lab.guest.fault(phase, "kill")
    lab.assert_fails(code=5, message="died")


@pytest.mark.parametrize("comm", ["rekernel-hook", "criu"])
def test_killed_while_it_holds(lab: Lab, comm: str) -> None:
    """Without its hook criu gives up by itself; without criu its parasites do."""
    lab.guest.fault("hand over", "kill", comm=comm)
    lab.assert_fails(code=5, message="while it held the dumped processes")


def test_a_dump_that_stands_still(lab: Lab) -> None:
    """The second attempt restarts that unit, and carries all others."""
    then = {"phase": "hand over", "do": "term"}
    unit = "/etc/systemd/system/late.service"
    lab.guest.write(unit, "[Service]\nExecStart=/bin/sleep infinity\n")
    lab.guest.text("systemctl daemon-reload && systemctl start late")
    try:
        start = lab.guest.start_of("late")
        lab.guest.fault("dump", "stop-criu", unit="late.service", then=then)
        lab.assert_fails(code=5, message="SIGTERM")
        lab.guest.text("timeout 30 sh -c 'until systemctl is-active late; do sleep 0.2; done'")
        assert lab.guest.start_of("late") != start
    finally:
        lab.guest.text(f"systemctl stop late; rm {unit}; systemctl daemon-reload")
    lines = lab.guest.text("cat /run/rekernel/events.jsonl").splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["name"] for event in events if event["kind"] == "begin"][-9:] == [
        "dump", "give the dump up", "describe host again", "make ready", "freeze", "lock network",
        "dump", "hand over", "undo",
    ]  # fmt: skip
    notes = [event["name"] for event in events if event["kind"] == "note"]
    assert any("tried once more" in note for note in notes), notes
    assert any(note.startswith("late.service: criu stood still") for note in notes), notes


def test_a_dump_that_stands_still_of_what_must_be_carried(lab: Lab) -> None:
    """There is no second attempt."""
    # Never as far as "then".
    then = {"phase": "hand over", "do": "kill"}
    lab.guest.fault("dump", "stop-criu", unit=CARRIED[0], then=then)
    message = "nothing more from criu for 5 s; it is not restarted: policy says carry"
    newest = lab.assert_fails("--carry", CARRIED[0], code=5, message=message)
    text = lab.guest.text(f"cat /var/lib/rekernel/history/{newest['id']}/logs/*stuck.log")
    assert "criu: T (stopped)" in text
    assert "traced by" in text


def test_what_cannot_be_undone(lab: Lab) -> None:
    """It is named, and never called undone; what can be undone later, is."""
    guest = lab.guest
    # The lock of the network stays at first, until the unit's ExecStopPost=.
    guest.fault("hand over", "break", programs={"nft": "once", "journalctl": "always"})
    try:
        code, output = lab.upgrade()
        assert code == 1, output
        problem = "flush-journal: journalctl failed (1): journalctl is broken"
        assert f"not undone: {problem} (by hand: journalctl --flush)" in output
        assert "undone only later: unlock-network: nft failed (1): nft is broken" in output
        newest = lab.newest()
        assert (newest["outcome"], newest["exit_code"]) == ("not-undone", 1)
        left = guest.json("rekernel status --json")["not_undone"]
        assert [item["step"] for item in left] == ["flush-journal"]
    finally:
        guest.text("rm -f /usr/local/sbin/nft /usr/local/sbin/journalctl")
    code, output = guest.run("rekernel abort")
    assert code == 0, output
    assert lab.newest()["outcome"] == "rolled-back"
    lab.assert_unharmed()


def test_aborted_by_someone_else(lab: Lab) -> None:
    # The last phase before the network is locked: later nobody gets in from outside.
    lab.guest.fault("sync", "wait")
    with attempt_that_waits(lab):
        code, output = lab.guest.run("rekernel abort")
        assert code == 0, output
    assert lab.newest()["exit_code"] == 5
    lab.assert_unharmed()


def test_two_at_once(lab: Lab) -> None:
    lab.guest.fault("describe host", "wait")
    with attempt_that_waits(lab):
        code, output = lab.upgrade()
        assert code == 7, output
        assert "under way" in output
        status = lab.guest.json("rekernel status --json")
        assert status["upgrade"]["phase"] == "describe host"
        assert lab.guest.run("rekernel abort")[0] == 0
    lab.assert_unharmed()


def attempt_that_waits(lab: Lab) -> Any:
    """An upgrade in the background, in the phase where its fault makes it wait."""
    words = ["rekernel", "upgrade", "--yes", lab.guest.releases[NEW]]
    process = lab.guest.session.machine.guest.popen(words)
    deadline = time.monotonic() + 120
    while lab.guest.run("test -e /run/rekernel-fault.reached")[0]:
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "the attempt does not get there"
        time.sleep(0.5)
    return _Ended(process)


class _Ended:
    """Sees to it that the command has ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        try:
            self._process.wait(60)
        finally:
            self._process.kill()


def test_kernel_image_unreadable(lab: Lab) -> None:
    image = f"/boot/vmlinuz-{lab.guest.releases[NEW]}"
    lab.guest.text(f"cp {image} /root/image && truncate -s 20000 {image}")
    try:
        lab.assert_fails(code=5, message="cannot load")
    finally:
        lab.guest.text(f"cp /root/image {image}")


def test_kernel_image_missing(lab: Lab) -> None:
    release = lab.guest.releases[NEW]
    image = f"/boot/vmlinuz-{release}"
    # Split kernel packages have the image in one of two places.
    other = f"/usr/lib/modules/{release}/vmlinuz"
    lab.guest.text(f"mv {image} /root/image; if test -e {other}; then mv {other} /root/other; fi")
    try:
        code, output = lab.upgrade()
        assert code == 2, output
        assert "no installed kernel" in output
    finally:
        lab.guest.text(
            f"mv /root/image {image}; if test -e /root/other; then mv /root/other {other}; fi"
        )
    lab.assert_unharmed()


def test_kernel_without_a_driver(lab: Lab) -> None:
    """It could not find the root file system."""
    release = lab.guest.releases[NEW]
    path = lab.guest.text(f"find /usr/lib/modules/{release} -name 'virtio_blk.ko*'")
    lab.guest.text(f"mv {path} /root/driver && depmod {release}")
    try:
        code, output = lab.upgrade()
        assert code == 3, output
        assert "cannot take over: no virtio_blk" in output
    finally:
        lab.guest.text(f"mv /root/driver {path} && depmod {release}")
    lab.assert_unharmed()


def test_kernel_image_vanishes(lab: Lab) -> None:
    """Between the plan and its use."""
    image = f"/boot/vmlinuz-{lab.guest.releases[NEW]}"
    lab.guest.text(f"cp {image} /root/image")
    lab.guest.fault("load kernel", "unlink", path=image)
    try:
        lab.assert_fails(code=5, message="vmlinuz")
    finally:
        lab.guest.text(f"cp /root/image {image}")


def test_a_unit_that_can_be_carried_no_more(lab: Lab) -> None:
    """Between the plan that was confirmed and its use."""
    lab.guest.fault("plan", "join", unit="demo.service")
    newest = lab.assert_fails(
        code=3,
        message=r"demo\.service was to be carried and would now be restarted "
        r"\(process \d+ has a pipe in packet mode",
    )
    assert newest["outcome"] == "refused"


def test_what_no_unit_has_is_told(lab: Lab) -> None:
    """A scope that is no login, and a process in a control group of its own."""
    scope = "systemd-run --scope --unit=stranger.scope --quiet -- sleep 901"
    own = "mkdir /sys/fs/cgroup/yard && echo $$ > /sys/fs/cgroup/yard/cgroup.procs && sleep 902"
    # systemd-run writes the path out.
    sleepers = "^(/usr/bin/)?sleep 90[12]$"
    for words in (scope, own):
        lab.guest.text(["setsid", "--fork", "sh", "-c", f"exec >/dev/null 2>&1; {words}"])
    try:
        wait = f"until [ $(pgrep -f '{sleepers}' | wc -l) = 2 ]; do sleep 0.2; done"
        lab.guest.text(["timeout", "30", "sh", "-c", wait])
        units = {unit["unit"]: unit for unit in lab.guest.json("rekernel check --json")["units"]}
        for name, reason in (("stranger.scope", "a scope"), ("/yard", "it belongs to no unit")):
            assert units[name]["verdict"] == "ends"
            assert reason in units[name]["reason"]
        lab.guest.write("/etc/rekernel/rekernel.toml", '[units]\n"/yard" = "block"\n')
        code, output = lab.upgrade()
        assert code == 3, output
        assert "these units block the upgrade: /yard (it belongs to no unit)" in output
    finally:
        lab.guest.text(f"rm -f /etc/rekernel/rekernel.toml; pkill -f '{sleepers}'")
        lab.guest.text("until rmdir /sys/fs/cgroup/yard; do sleep 0.2; done")
    lab.assert_unharmed()


@pytest.mark.parametrize("phase", ["describe host", "dump"])
def test_no_space_in_run(lab: Lab, phase: str) -> None:
    lab.guest.fault(phase, "fill", directory="/run")
    try:
        lab.assert_fails(code=5, message="[Nn]o space|failed|could not be dumped")
    finally:
        lab.guest.text("rm -f /run/rekernel-fault.fill")


def test_no_space_for_images(lab: Lab) -> None:
    """Known before anything is frozen; and if the disk runs full only then, undone."""
    for phase, leave, code, message in (
        (
            "describe host",
            60 << 20,
            3,
            r"/var/lib/rekernel/images has \d+ MiB free, the upgrade needs \d+ MiB there",
        ),
        ("dump", 20 << 20, 5, "could not be dumped: .*No space left"),
    ):
        lab.guest.fault(phase, "fill", directory="/var/lib", leave=leave)
        try:
            lab.assert_fails("--memory=image", code=code, message=message)
        finally:
            lab.guest.text("rm -f /var/lib/rekernel-fault.fill")
    assert lab.guest.text("ls /var/lib/rekernel/images 2>/dev/null || true") == ""


def test_store_too_small(lab: Lab) -> None:
    """Shared memory goes through the store, and this is more than it holds; or else to the disk."""
    program = (
        "import mmap, os, time; area = mmap.mmap(-1, 200 << 20); "
        "area[:] = os.urandom(1 << 20) * 200; time.sleep(10**6)"
    )
    unit = f"[Service]\nExecStart=/usr/bin/python3 -c '{program}'\n"
    lab.guest.write("/etc/systemd/system/big.service", unit)
    lab.guest.text("systemctl daemon-reload && systemctl start big.service")
    deadline = time.monotonic() + 60
    while int(lab.guest.text("grep -h ^RssShmem: /proc/$(systemctl show -P MainPID big)/status"
                             " | tr -dc 0-9")) < 200 << 10:  # fmt: skip
        assert time.monotonic() < deadline
    # The disk has less.
    lab.guest.text(
        "free=$(df --output=avail --block-size=1M /var/lib | tail -n 1);"
        " fallocate --length $((free - 20))M /var/lib/rekernel-full"
    )
    try:
        message = "needs .* MiB there for big.service: the handover store has room for .* MiB"
        code, output = lab.upgrade()
        assert code == 3, output
        assert re.search(message, output), output
    finally:
        lab.guest.text(
            "rm /var/lib/rekernel-full; systemctl stop big.service;"
            " rm /etc/systemd/system/big.service; systemctl daemon-reload"
        )
    lab.assert_unharmed()


def test_not_root(lab: Lab) -> None:
    code, output = lab.guest.run(
        "setpriv --reuid 65534 --regid 65534 --clear-groups rekernel upgrade --yes"
    )
    assert code == 8, output
    assert "root" in output
    lab.assert_unharmed()


def test_unknown_kernel(lab: Lab) -> None:
    code, output = lab.guest.run("rekernel upgrade --yes 5.10")
    assert code == 2, output
    assert "installed:" in output


def test_no_terminal_to_ask_on(lab: Lab) -> None:
    code, output = lab.guest.run(f"rekernel upgrade {lab.guest.releases[NEW]} < /dev/null")
    assert code == 2, output
    assert "--yes" in output


def test_the_clients_saw_nothing(lab: Lab) -> None:
    lab.increment()
    lab.guest.finish(lab.client)


def test_corrupt_handover(lab: Lab) -> None:
    """After the kexec: the machine boots normally and says why."""
    guest = lab.guest
    guest.disconnect()
    start = guest.start_of("redis-server.service")
    guest.fault("freeze file systems", "corrupt")
    guest.text("sysctl -w kernel.panic=7")
    outcome = guest.upgrade(NEW)
    assert outcome.release == guest.releases[NEW], guest.explain(outcome)
    assert outcome.exit_code == 1, guest.explain(outcome)
    # Only until init runs is it another.
    assert "panic=0x1e " in guest.text("cat /proc/cmdline")
    assert guest.text("cat /proc/sys/kernel/panic") == "7"
    assert "checksum" in outcome.report["error"]
    agent = guest.json("cat /run/rekernel/agent.json")
    assert agent["handover"] == "refused"
    assert "checksum" in agent["reason"]
    # Afresh, as after any boot.
    guest.text("systemctl is-active redis-server.service nginx.service demo.service")
    assert guest.start_of("redis-server.service") not in ("", start)
    region = guest.json("rekernel status --json")["region"]
    assert region["drain_bytes"] == 0
    assert region["ram_bytes"] + region["store_bytes"] == region["size"]


def test_agent_that_stands_still(lab: Lab) -> None:
    """After the kexec something never returns: the machine boots, and says where it stood."""
    guest = lab.guest
    guest.disconnect()
    start = guest.start_of("redis-server.service")
    with guest.changed(
        ("transition/contract.py", "^_PATIENCE_S = .*", "_PATIENCE_S = 10"),
        ("carry/network/restore.py", "^def set_up(.*", r"&\n    time.sleep(3600)"),
    ):
        outcome = guest.upgrade(OLD)
    assert outcome.release == guest.releases[OLD], guest.explain(outcome)
    assert outcome.exit_code == 1, guest.explain(outcome)
    assert "stands still in" in outcome.report["error"], outcome.report["error"]
    assert "carry.network.restore.set_up" in outcome.report["error"]
    guest.text("systemctl is-active redis-server.service nginx.service demo.service")
    assert guest.start_of("redis-server.service") not in ("", start)
    assert "rekernel_lock" not in guest.text("nft list tables")
    region = guest.json("rekernel status --json")["region"]
    assert region["drain_bytes"] == 0
    assert region["ram_bytes"] + region["store_bytes"] == region["size"]


def test_next_kernel_panics(lab: Lab) -> None:
    """Before the agent runs: the machine reboots by itself, and tells what became of it."""
    guest = lab.guest
    guest.disconnect()
    machine = guest.session.machine
    boots = machine.state.boots
    with guest.changed(("agent/main.py", "^def main(.*", r"&\n    raise SystemExit")):
        guest.text(
            ["systemd-run", "--quiet", "--no-block", "rekernel", "upgrade", "--yes",
             guest.releases[NEW]]
        )  # fmt: skip
        deadline = Deadline(300, "the reboot after a panic")
        while machine.state.boots == boots:
            machine.check_running()
            time.sleep(deadline.left(0.5))
        machine.wait_ready()
    machine.wait_started()
    guest.text("timeout 60 sh -c 'until [ -e /run/rekernel/finished ]; do sleep 0.2; done'")
    assert "Rebooting in 30 seconds" in guest.serial_log.read_text(errors="replace")
    report = guest.json("rekernel report --json")
    assert report["exit_code"] == 1
    assert "started anew during the upgrade: nothing was carried over" in report["error"]
    assert report["new_release"] == guest.releases[NEW]
    guest.text("systemctl is-active redis-server.service nginx.service demo.service")
    region = guest.json("rekernel status --json")["region"]
    assert region["drain_bytes"] == 0
    assert region["ram_bytes"] + region["store_bytes"] == region["size"]


def test_floor(lab: Lab) -> None:
    """What the benchmarks compare with: the product's initrd, with nothing handed over."""
    lab.guest.disconnect()
    session = lab.guest.session
    jumps = bench_jump.Jumps(session, lab.guest.releases[OLD])
    jumps.install()
    assert 0 < jumps.floor() < 120
    assert lab.guest.text("uname -r") == lab.guest.releases[OLD]
    # What goes wrong there is told at once, in the guest's own words.
    session.machine.guest.run(f"mv {bench_jump.IN_GUEST}/floor /root/elsewhere")
    with pytest.raises(LabError, match=r"No such file or directory: '/root/bench/floor'"):
        jumps.floor()


def test_setup_and_undo(lab: Lab) -> None:
    guest = lab.guest
    guest.disconnect()
    # What setup had done.
    assert "memmap=" in guest.text("cat /proc/cmdline")
    assert "PrivateUsers=no" in guest.text("systemctl show -p PrivateUsers redis-server.service")
    code, output = guest.run("rekernel setup --yes --region 2048M")
    assert code in (0, 6), output
    code, output = guest.run("rekernel setup --undo --yes")
    assert code == 0, output
    code, output = guest.run("rekernel setup --undo --yes")
    assert code == 6, output
    before = configuration(guest, f"cat {prepared.BEFORE_SETUP}")
    assert before
    assert configuration(guest, prepared.CONFIGURATION) == before
    guest.session.reboot()
    assert "memmap=" not in guest.text("cat /proc/cmdline")
    assert "PrivateUsers=yes" in guest.text("systemctl show -p PrivateUsers redis-server.service")
    assert guest.json("rekernel status --json")["region"] is None
    assert guest.text("systemctl --failed --no-legend") == ""
