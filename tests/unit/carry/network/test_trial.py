"""The network of a real machine, and what is wrong with some, tried on this kernel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from recorded import NEW, OLD, Recorded

from rekernel import syscalls
from rekernel.carry.network import observe as network
from rekernel.carry.network import trial as network_trial
from rekernel.records import replace


def _can_make_interfaces() -> bool:
    try:
        make = "ip link add near type veth peer name far"
        done = subprocess.run(["unshare", "-n", "sh", "-c", make], capture_output=True)
        return os.geteuid() == 0 and done.returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not _can_make_interfaces(), reason="needs root and network namespaces"
)


@pytest.mark.parametrize("recorded", [OLD, NEW], ids=lambda item: item.release)
def test_a_plain_server(recorded: Recorded) -> None:
    assert network_trial.refused(network.describe(recorded.network("net"))) == []


def test_what_the_kernel_refuses_is_named() -> None:
    described = network.describe(OLD.network("net"))
    lines = described.batch.splitlines()
    # The way to the gateway is missing.
    lines.insert(0, "route append unicast 0.0.0.0/0 via 192.0.2.1 dev lo")
    lines.append("link set dev eth7 up")
    # What ip itself does not understand ends the whole batch.
    rules = {**described.rules, "-4": "rule add priority 7 lookup nowhere\n"}
    wrong = replace(described, batch="\n".join(lines) + "\n", rules=rules)
    first, second, third = network_trial.refused(wrong)
    assert first == (
        "route append unicast 0.0.0.0/0 via 192.0.2.1 dev lo (Nexthop has invalid gateway)"
    )
    assert second == 'link set dev eth7 up (Cannot find device "eth7")'
    assert "nowhere" in third
    # That is told also if something was refused before.
    lines[0] = "route append unicast 0.0.0.0/0 via 192.0.2.1 dev lo\naddress add 10.0.0.1/33 dev lo"
    wrong = replace(described, batch="\n".join(lines) + "\n", rules={})
    found = network_trial.refused(wrong)
    assert len(found) == 2
    assert "10.0.0.1/33" in found[1]


def test_where_it_cannot_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def unshare(flags: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(syscalls, "unshare", unshare)
    (line,) = network_trial.refused(network.describe(OLD.network("net")))
    assert line == "none of it could be tried: [Errno 28] No space left on device"


def test_nothing_of_it_is_left_here() -> None:
    before = sorted(os.listdir("/sys/class/net"))
    own = Path("/proc/thread-self/ns/net").readlink()
    network_trial.refused(network.describe(OLD.network("net")))
    assert sorted(os.listdir("/sys/class/net")) == before
    assert Path("/proc/thread-self/ns/net").readlink() == own
