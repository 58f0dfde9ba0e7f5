"""The tests of the suite: what their descriptions say, and which are left out for what reason."""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rekernel_lab.errors import LabError

# The user and groups of zdtm.py for tests that need not be root.
_USER = {"ZDTM_UID": "18943", "ZDTM_GID": "58467", "ZDTM_GROUPS": "27495 48244"}

_ALL_FLAVOURS = "h ns uns"
_ARCHITECTURE = "x86_64"

# Flags that make a test one that cannot be run as a service here, and why.
_FLAGS_LEFT_OUT = {
    "crfail": "criu must refuse to dump it",
    "pre-dump-notify": "it talks with zdtm.py between a pre-dump and the dump",
}

# With such a mount in the mount namespace of init, `rekernel check` refuses the whole machine.
_OLD_CGROUPS = "it mounts a hierarchy of the old cgroups for all to see: no upgrade before it ends"
_LEAVES_ITS_UNIT = "it leaves the control group of its service: the plan says that it ends"

# What only a run of zdtm.py can do for a test, or what would change the machine under all others.
LEFT_OUT: Mapping[str, str] = {
    "static/cgroup00": _OLD_CGROUPS,
    "static/cgroup01": _OLD_CGROUPS,
    "static/cgroup02": _OLD_CGROUPS,
    "static/cgroup03": _OLD_CGROUPS,
    "static/cgroup_stray": _OLD_CGROUPS,
    "static/cgroup_threads": _OLD_CGROUPS,
    "static/cgroupns": _OLD_CGROUPS,
    "static/cgroup_ignore": _LEAVES_ITS_UNIT,
    "static/cgroupv2_00": _LEAVES_ITS_UNIT,
    "static/cgroupv2_01": _LEAVES_ITS_UNIT,
    "static/poll": "it fails by itself once it has run for 10 s, dumped or not",
    "static/net_lock_socket_iptables": "its hook checks criu's own network lock during the dump",
    "static/net_lock_socket_iptables6": "its hook checks criu's own network lock during the dump",
    "static/net_lock_socket_nftables": "its hook checks criu's own network lock during the dump",
    "static/net_lock_socket_nftables6": "its hook checks criu's own network lock during the dump",
    "static/netns_lock_iptables": "its hook checks criu's own network lock during the dump",
    "static/netns_lock_nftables": "its hook checks criu's own network lock during the dump",
    "static/criu-rtc": "a plugin of criu, no test",
    "static/get_smaps_bits": "a part of other tests",
    "static/ofd_file_locks": "a part of other tests",
    "static/mnt_ext_dev": "for a device that is made for it, and a description that is a program",
    "static/rtc": "criu needs a plugin for it, made for this test",
    "static/cgroup_yard": "its hook gives criu a yard of cgroups, made for this test",
    "static/socket-tcp-close0": "criu is told to close its connections at the restore",
    "static/socket-tcp-close1": "criu is told to close its connections at the restore",
    "static/socket-tcp-close2": "criu is told to close its connections at the dump",
    "static/socket-dump-tcp-close": "criu is told to close its connections at the dump",
}


# Tests with limits of their own from their start on: the last to start and the first to end.
HASTY = (
    # Its timers may have lost 300 s.
    "static/timers01",
    # The kernel sends a SYN at longer and longer intervals.
    "static/socket-tcp-syn-sent",
)

# The control group of all services, and its unit file: they get what nobody else wants.
SLICE = "zdtm.slice"
SLICE_FILE = "[Slice]\nCPUWeight=1\n"


@dataclass(frozen=True, slots=True)
class Test:
    """A test that is to be run. `name` is its path in the suite: static/pid00."""

    name: str
    command: str
    env: Mapping[str, str]
    dump_options: tuple[str, ...]
    restore_options: tuple[str, ...]
    features: tuple[str, ...]
    # By upstream's word: with no other test beside it while criu is at it.
    alone: bool

    @property
    def unit(self) -> str:
        """The name of its service."""
        plain = self.name.replace("/", "-")
        return f"zdtm-{re.sub('[^A-Za-z0-9_-]', lambda one: f'_{ord(one[0]):x}', plain)}.service"

    def unit_file(self, directory: str) -> str:
        """Return its service, started in the suite's folder test/zdtm, which is `directory`."""
        kind, _, name = self.name.rpartition("/")
        environment = {**self.env, "ZDTM_THREAD_BOMB": "5", "TMPDIR": "/tmp"}
        return "\n".join(
            [
                "[Unit]",
                f"Description=CRIU's test {self.name}",
                "[Service]",
                # Many of them never wait: together they would leave the guest nothing.
                f"Slice={SLICE}",
                "Type=forking",
                f"PIDFile={directory}/{kind}/{name}.pid",
                f"WorkingDirectory={directory}/{kind}",
                *(f'Environment="{key}={value}"' for key, value in environment.items()),
                f"ExecStart={directory}/{kind}/{self.command.removeprefix('./')}",
                "KillMode=mixed",
                "TimeoutStartSec=300",
                "TasksMax=infinity",
                "",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Return what the guest's part reads."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Selection:
    """The tests to be run, and the reason for each that is not."""

    tests: tuple[Test, ...]
    left_out: Mapping[str, str]


def parse_description(content: str) -> dict[str, str]:
    """Return the fields of a .desc file, a Python literal; empty if it says nothing.

    Raises LabError if it is anything else.
    """
    if not content.strip():
        return {}
    try:
        raw = ast.literal_eval(content)
    except (ValueError, SyntaxError) as error:
        raise LabError(f"a description that is not a literal: {error}") from error
    if not isinstance(raw, dict):
        raise LabError("a description that is not a table")
    return {key: value for key, value in raw.items() if isinstance(value, str)}


def _reason(description: Mapping[str, str], command: str, built: bool) -> str:
    """Why a test is not run; "" if it is."""
    flags = description.get("flags", "").split()
    if "h" not in description.get("flavor", _ALL_FLAVOURS).split():
        return "for namespaces of its own only, which a service has not"
    if _ARCHITECTURE not in description.get("arch", _ARCHITECTURE).split():
        return f"for {description['arch']}"
    for flag, reason in _FLAGS_LEFT_OUT.items():
        if flag in flags:
            return reason
    if not built:
        return "its makefile does not build it here"
    if not command:
        return "its makefile knows no way to start it and leave it running"
    return ""


def select(directory: Path, commands: Mapping[str, str]) -> Selection:
    """Return the tests of the suite in `directory`, as `commands` start them."""
    chosen: list[Test] = []
    left_out: dict[str, str] = {}
    for name, command in sorted(commands.items()):
        if name in LEFT_OUT:
            left_out[name] = LEFT_OUT[name]
            continue
        path = directory / name
        description_file = path.with_name(f"{path.name}.desc")
        try:
            content = description_file.read_text() if description_file.exists() else ""
            description = parse_description(content)
        except LabError as error:
            left_out[name] = str(error)
            continue
        reason = _reason(description, command, path.exists())
        if not reason and _hook_beside_start(path):
            reason = "its hook does something beside its start, which nobody does for a service"
        if reason:
            left_out[name] = reason
        else:
            chosen.append(_test(name, command, description))
    return Selection(tuple(chosen), left_out)


def _hook_beside_start(path: Path) -> bool:
    hook = path.with_name(f"{path.name}.hook")
    return hook.exists() and "--post-start" in hook.read_text(errors="replace")


def _test(name: str, command: str, description: Mapping[str, str]) -> Test:
    flags = description.get("flags", "").split()
    common = description.get("opts", "").split()
    dump = (*common, *description.get("dopts", "").split())
    restore = (*common, *description.get("ropts", "").split())
    # Links that criu makes beside open files, and zdtm.py, too, lets nobody see another's.
    alone = "excl" in flags or "--link-remap" in (*dump, *restore)
    return Test(
        name,
        command,
        {} if "suid" in flags else _USER,
        dump,
        restore,
        tuple(description.get("feature", "").split()),
        alone,
    )


def only(
    tests: Iterable[Test], patterns: Iterable[str], without: Iterable[str] = (), limit: int = 0
) -> tuple[Test, ...]:
    """Return the tests that a shell pattern fits (all if there is none), at most `limit`.

    Patterns fit with or without the kind of a test. `without` names those to be taken away.
    """
    wanted = tuple(patterns) or ("*",)
    unwanted = tuple(without)
    fitting = tuple(test for test in tests if _fits(test, wanted) and not _fits(test, unwanted))
    return fitting[:limit] if limit else fitting


def _fits(test: Test, patterns: Iterable[str]) -> bool:
    names = (test.name, test.name.rpartition("/")[2])
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)
