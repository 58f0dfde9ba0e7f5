"""The host as it is written down, from what programs and files of a real machine said."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from recorded import RECORDED, Recorded

from rekernel import syscalls
from rekernel.carry.block import superblocks
from rekernel.carry.conntrack import observe as conntrack
from rekernel.carry.logins import observe as logins
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.network import ifupdown
from rekernel.carry.network.entry import FILTER
from rekernel.carry.runtime_units import observe as runtime_units
from rekernel.carry.sysctls import observe as sysctls
from rekernel.carry.systemd_state import observe as adoption
from rekernel.census.verdicts import Verdict
from rekernel.criu.options import RESTORE_ROOT, TreeOptions
from rekernel.records import replace
from rekernel.run import CommandFailedError
from rekernel.systemd import bus
from rekernel.systemd.units import Unit
from rekernel.transition import host_facts
from rekernel.transition.host_facts import HostFacts
from rekernel.transition.trees import CarriedTree
from transition.machine import Told, programs_that_are, verdict

# What a service with PrivateTmp= sees besides.
_PRIVATE_TMP = """\
110 33 254:0 /run-like/a /srv/a rw,relatime - ext4 /dev/vda rw
111 33 0:35 /systemd-private-1-nginx.service-x/tmp /tmp rw,nosuid,nodev - tmpfs tmpfs rw
112 33 254:0 /var/tmp/systemd-private-1-nginx.service-y/tmp /var/tmp rw - ext4 /dev/vda rw
113 32 0:28 /systemd/inaccessible/dir /run/credentials ro - tmpfs tmpfs rw
"""
_SESSION = "UID=1000\nUSER=a\nSCOPE=session-1.scope\nFIFO=/run/systemd/sessions/1.ref\n"


class Host:
    """A machine under one of the recorded kernels: what its programs print, and its files."""

    def __init__(self, recorded: Recorded, directory: Path) -> None:
        self.recorded = recorded
        self.run_directory = directory
        self.broken = ""
        # Units without processes: name -> SubState.
        self.units = {
            "nftables.service": "exited",
            "fstrim.timer": "waiting",
            "once.timer": "elapsed",
            "user-1000.slice": "active",
        }
        # PID -> /proc/PID/mountinfo; None for one that has ended.
        self.namespaces: dict[str, str | None] = {}

    def observe_mounts(self, pid: str = "self") -> list[mounts.MountInfo]:
        text = self.namespaces.get(pid, self.recorded.text("mountinfo"))
        if text is None:
            raise ProcessLookupError(3, f"process {pid} has ended")
        return mounts.parse_mountinfo(text)

    def run(self, argv: Sequence[str], text: str) -> str:
        """What a program prints. Raises ValueError if it fails."""
        if self.broken and " ".join(argv).startswith(self.broken):
            raise ValueError("it is broken")
        return self._output(argv)

    def _output(self, argv: Sequence[str]) -> str:
        match [word for word in argv if not word.startswith("-j")]:
            case ["ip", "-details", "link", "show"]:
                return self.recorded.text("net/link.json")
            case ["ip", "address", "show"]:
                return self.recorded.text("net/address.json")
            case ["ip", family, "route", *_]:
                return self.recorded.text(f"net/route{family[1]}.json")
            case ["ip", "neighbour", "show"]:
                return self.recorded.text("net/neighbour.json")
            case ["nft", "-s", *_]:
                return self.recorded.text("net/ruleset.nft")
            case ["nft", "-t", *_]:
                return json.dumps({"nftables": []})
            case ["ip", *_] | ["tc", *_] | ["losetup", *_]:
                return ""
        raise AssertionError(f"nobody knows this program: {' '.join(argv)}")


class FakeBus:
    """What systemd answers on it."""

    def __init__(self, host: Host) -> None:
        self._units = host.units
        if host.broken == "systemd":
            raise bus.NoSystemdError("systemd does not answer")

    def __enter__(self) -> FakeBus:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def units(self, states: Sequence[str], patterns: Sequence[str]) -> list[str]:
        wanted = [name for name in self._units if not patterns or name in patterns]
        exited = [name for name in wanted if self._units[name] == "exited"]
        return exited if [*states] == ["exited"] else wanted

    def get(self, wanted: Sequence[tuple[str, str, str]]) -> list[Any]:
        return [self._property(unit, name) for unit, _, name in wanted]

    def _property(self, unit: str, name: str) -> str | None:
        return {
            "Id": unit,
            "ActiveState": "active",
            "SubState": self._units[unit],
            "Description": unit,
            "FragmentPath": f"/usr/lib/systemd/system/{unit}",
        }.get(name)


@pytest.fixture(params=RECORDED, ids=lambda item: item.release)
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    recorded: Recorded = request.param
    found = Host(recorded, tmp_path)
    systemd = tmp_path / "systemd"
    (systemd / "sessions").mkdir(parents=True)
    (systemd / "sessions/1").write_text(_SESSION)
    (tmp_path / "sys/vm").mkdir(parents=True)
    (tmp_path / "sys/vm/max_map_count").write_text("70000\n")
    programs = programs_that_are(lambda argv, **more: Told(argv, more["stdin"], found.run))
    monkeypatch.setattr("rekernel.run.subprocess", programs)
    monkeypatch.setattr(bus, "Bus", lambda: FakeBus(found))
    monkeypatch.setattr(mounts, "observe", found.observe_mounts)
    monkeypatch.setattr(mounts, "_run_exclusions", lambda: ("rekernel", "udev"))
    monkeypatch.setattr(superblocks, "uuid_on", lambda device: "a-uuid")
    monkeypatch.setattr(conntrack, "_LOADED", tmp_path / "none")
    monkeypatch.setattr(conntrack, "_MAXIMUM", tmp_path / "none")
    monkeypatch.setattr(sysctls, "_PROC_SYS", tmp_path / "sys")
    monkeypatch.setattr(ifupdown, "files", functools.partial(ifupdown.files, tmp_path / "ifup"))
    monkeypatch.setattr(logins, "leave", functools.partial(logins.leave, systemd=systemd))
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    isdir = os.path.isdir
    monkeypatch.setattr("os.path.isdir", lambda path: str(path).startswith("/run/") or isdir(path))
    monkeypatch.setattr(
        host_facts, "mapped_files", lambda pids: [f"/usr/bin/of-{pid}" for pid in pids]
    )
    return found


def tree(name: str, pid: int, **more: Any) -> CarriedTree:
    item = verdict(name, Verdict.CARRIED, pid)
    options = TreeOptions(pid, item.unit.cgroup, False, True)
    return CarriedTree(item, item.processes, options, (), **more)


def nginx(host: Host) -> CarriedTree:
    """As recorded, with a private /tmp."""
    host.namespaces["529"] = host.recorded.text("mountinfo") + _PRIVATE_TMP
    return tree("nginx.service", 529, watched=("/srv/www", "/run/udev/data"))


def observed(host: Host, *trees: CarriedTree, restarted: Sequence[Unit] = ()) -> HostFacts:
    return host_facts.observe(trees, restarted)


def test_what_is_mounted(host: Host) -> None:
    facts = observed(host, nginx(host))
    assert facts.table == tuple(host.recorded.mounts())
    targets = [mount.target for mount in facts.travels.mounts]
    # In the kernel's order, and what criu pivots in at the end; nothing of what init mounts.
    order = [mount.target for mount in facts.table]
    assert targets[:-1] == sorted(targets[:-1], key=order.index)
    assert {"/run", "/dev/shm", "/tmp"} <= {*targets}
    assert not any(target.startswith("/run/credentials") for target in targets[:-1])
    last = facts.travels.mounts[-1]
    assert (last.target, last.source, last.flags) == (RESTORE_ROOT, "/", syscalls.MS_BIND)
    assert last.transient
    assert [plan.target for plan in facts.contents] == ["/run", "/dev/shm", "/run/lock", "/tmp"]
    assert facts.travels.loops == ()


def test_the_credentials_of_a_carried_service(host: Host) -> None:
    """systemd gives them to who starts; nobody starts this one."""
    line = "114 32 0:99 / /run/credentials/nginx.service ro - tmpfs tmpfs rw,mode=700\n"
    host.namespaces["self"] = host.recorded.text("mountinfo") + line
    facts = observed(host, nginx(host))
    assert "/run/credentials/nginx.service" in [mount.target for mount in facts.travels.mounts]
    assert "/run/credentials/nginx.service" in [plan.target for plan in facts.contents]


def test_directories(host: Host) -> None:
    """By which programs know systemd, which a service's own mounts need, and which it watches."""
    facts = observed(host, nginx(host))
    assert {"/run/systemd/system", "/run/credentials", "/run/udev/data"} <= {
        *facts.travels.directories
    }
    assert "/srv/www" not in facts.travels.directories
    assert facts.travels.directories == tuple(sorted(facts.travels.directories))


def test_what_systemd_is_told(host: Host) -> None:
    facts = observed(host, nginx(host), tree("redis-server.service", 523))
    # Nobody checks file systems again, sets up the packet filter again, or stops a service.
    assert {*facts.travels.systemd_units} == {
        "nginx.service",
        "redis-server.service",
        "nftables.service",
    }
    assert facts.travels.systemd_units["nginx.service"].startswith("nginx.service\n")
    assert "main-pid=529" in facts.travels.systemd_units["nginx.service"]
    assert "state=exited" in facts.travels.systemd_units["nftables.service"]
    assert facts.travels.network.settled == {"nftables.service": FILTER}
    private = "/tmp/systemd-private-1-nginx.service-x", "/var/tmp/systemd-private-1-nginx.service-y"
    assert (
        f"nginx.service tmp-dir={private[0]} var-tmp-dir={private[1]}"
        in facts.travels.systemd_header
    )
    assert "redis-server.service" not in facts.travels.systemd_header
    # A timer that was to elapse once has.
    assert facts.triggers == ("fstrim.timer",)


def test_files(host: Host) -> None:
    restarted = verdict("kvm.service", Verdict.RESTARTED, 7).unit
    facts = observed(host, nginx(host), restarted=[restarted])
    keep = "/run/systemd/system/{}.d/50-rekernel-keep.conf"
    assert facts.travels.files[keep.format("nginx.service")] == runtime_units._KEEP_TEXT
    assert keep.format("nftables.service") in facts.travels.files
    # What restarts may be stopped like any other.
    assert keep.format("kvm.service") not in facts.travels.files
    assert "x /tmp/systemd-private-*" in facts.travels.files[adoption.TMPFILES_OVERRIDE]
    assert facts.travels.fifos == ()


def test_a_login(host: Host) -> None:
    login = tree("session-1.scope", 1234)
    unit = replace(login.verdict.unit, properties={"Slice": "user-1000.slice"})
    login = replace(login, verdict=replace(login.verdict, unit=unit))
    facts = observed(host, login)
    session = str(host.run_directory / "systemd/sessions/1")
    assert facts.travels.files[session] == _SESSION
    assert facts.travels.fifos == ("/run/systemd/sessions/1.ref",)
    assert {"user-1000.slice", "session-1.scope"} <= facts.travels.systemd_units.keys()
    # A scope is nothing that systemd would stop at boot.
    assert not any("session-1.scope.d" in path for path in facts.travels.files)


def test_all_else(host: Host) -> None:
    facts = observed(host, nginx(host), tree("redis-server.service", 523))
    assert facts.travels.hostname == os.uname().nodename
    assert facts.travels.sysctls["vm/max_map_count"] == "70000"
    assert facts.travels.prefetch == ("/usr/bin/of-529", "/usr/bin/of-523")
    assert [link.name for link in facts.travels.network.links] == ["enp0s2"]
    assert "rekernel_lock" in facts.travels.network.lock_rules


def test_who_ends_meanwhile_is_left_out(host: Host) -> None:
    """Of a login anything may end; of a service that is found out at the freeze."""
    gone = tree("redis-server.service", 523, watched=("/run/udev/x",))
    host.namespaces["523"] = None
    facts = observed(host, nginx(host), gone)
    assert "/run/udev/x" not in facts.travels.directories
    assert "redis-server.service" in facts.travels.systemd_units


@pytest.mark.parametrize("program", ["ip ", "nft ", "losetup"])
def test_a_program_that_fails(host: Host, program: str) -> None:
    """Nothing is written down that was not told."""
    host.broken = program
    with pytest.raises(CommandFailedError, match=r"failed \(1\): it is broken"):
        observed(host, nginx(host))


def test_a_systemd_that_does_not_answer(host: Host) -> None:
    host.broken = "systemd"
    with pytest.raises(bus.NoSystemdError, match="systemd does not answer"):
        observed(host, nginx(host))
