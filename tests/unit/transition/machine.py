"""A machine that is not this one, for whole attempts: its files lie in a directory, its programs
are functions, and of the kernel's calls it keeps what they have changed.

What is dumped are real processes, and criu is a program, too, that says over the hook's socket what
the real one's hook says. Everything between these edges is the product's own code.
"""

from __future__ import annotations

import errno
import functools
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rekernel import syscalls
from rekernel.attempt import state as attempt
from rekernel.attempt import undo
from rekernel.attempt.events import Event, EventStream
from rekernel.attempt.undo import UndoList
from rekernel.carry.apparmor import observe as apparmor
from rekernel.carry.cgroups import observe as cgroups
from rekernel.carry.conntrack import observe as conntrack
from rekernel.carry.disks import observe as disks
from rekernel.carry.disks.entry import RootConfig
from rekernel.carry.disks.stack import Stack
from rekernel.carry.memory import dax, migrations, recorder
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.recorder import RECORDER
from rekernel.carry.memory.region import Layout
from rekernel.carry.mounts import observe as mounts
from rekernel.carry.mounts.observe import MountInfo
from rekernel.carry.network import observe as network
from rekernel.carry.network import trial as network_trial
from rekernel.carry.network.entry import Network
from rekernel.carry.swap import observe as swap
from rekernel.carry.sysctls import observe as sysctls
from rekernel.carry.unix_sockets import observe as unix_sockets
from rekernel.carry.unix_sockets.observe import Member, Taken
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.criu import stopped
from rekernel.handover.manifest import MANIFEST_BLOB, Host, Manifest, load
from rekernel.handover.store import StoreReader
from rekernel.kernel import drivers, initrd, modules
from rekernel.kernel.installed import Kernel
from rekernel.plan import room
from rekernel.plan.plan import Plan
from rekernel.plan.room import Disk, Free, Room
from rekernel.systemd import units
from rekernel.systemd.units import Unit
from rekernel.transition import (
    dumps,
    freezing,
    handing_over,
    host_facts,
    preparation,
    staging,
    store,
    trees,
    upgrade,
)
from rekernel.transition.host_facts import HostFacts
from rekernel.transition.upgrade import Upgrade

# criu, from its command line on: it leaves an image and holds until its hook's connection ends; or
# it fails with these words in its log.
_CRIU = """
import os, socket, sys
words = sys.argv[3:]
images, work = (words[words.index(name) + 1] for name in ("--images-dir", "--work-dir"))
if sys.argv[1]:
    with open(work + "/dump.log", "w") as log:
        print("(00.1) Error (criu/x.c:1): " + sys.argv[1], file=log)
    sys.exit(1)
with open(images + "/core-1.img", "wb") as image:
    image.write(bytes(int(sys.argv[2])))
with socket.socket(socket.AF_UNIX) as hook:
    hook.connect(os.environ["REKERNEL_HOOK"])
    hook.sendall(b"post-dump /proc/%d/fd/3 7\\n" % os.getpid())
    hook.recv(16)
"""
# What the recorder of the page map says of three pages in place.
_BLOCKS = [{"start": 1 << 30, "used_pages": 3}]
_SUMMARY = {"pages": 3, "stray_pages": 0, "spaces": [], "blocks": _BLOCKS}
# The first bytes of Debian's named profile, as 6.12 gives them back.
POLICY = bytes.fromhex("04080076657273696f6e000207202000040800") + b"profile\x00\x07"


class Told:
    """A program that is run to its end, as subprocess.Popen: what it does is a function."""

    def __init__(
        self, argv: Sequence[str], stdin: int, does: Callable[[Sequence[str], str], str]
    ) -> None:
        self._argv, self._does = argv, does
        self._text = os.read(stdin, 1 << 20).decode()
        self.returncode: int | None = None

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.returncode is not None, self._argv

    def communicate(self, timeout: float) -> tuple[bytes, bytes]:
        """As that of the real one."""
        try:
            output = self._does(self._argv, self._text)
        except ValueError as error:
            self.returncode = 1
            return b"", str(error).encode()
        except TimeoutError:
            time.sleep(timeout)
            raise subprocess.TimeoutExpired(self._argv, timeout) from None
        self.returncode = 0
        return output.encode(errors="surrogateescape"), b""

    def kill(self) -> None:
        """As that of the real one."""
        self.returncode = -signal.SIGKILL


class Machine:
    """Two services that are carried, db and web, and one that restarts, kvm; swap is on."""

    def __init__(self, directory: Path, pids: Sequence[int]) -> None:
        self.directory = directory
        self.undo_file = directory / "undo.json"
        self.cgroups = directory / "cgroup"
        self.pids = dict(zip(("db.service", "web.service"), pids, strict=True))
        # Programs that fail: the beginning of a command line -> how often, -1 for always.
        self.broken: dict[str, int] = {}
        # The beginning of command lines that never end.
        self.endless: tuple[str, ...] = ()
        # What each criu says when it fails, "" for one that holds; all else hold.
        self.criu_says: list[str] = []
        self.image_bytes = 100
        # Pages outside of the region before the freeze.
        self.strays = 0
        self.store_bytes = 1 << 20
        # What the next call of each of these raises.
        self.refuses: dict[str, OSError] = {}
        # Of the kernel's calls.
        self.loaded = self.locked = False
        self.frozen_filesystems: list[str] = []
        self.active = {"kvm.service"}
        self.journal = "on disk"
        self.moves = 0
        # What was called, and what was undone, in this order.
        self.called: list[str] = []
        self.undone: list[str] = []
        # What is done when a phase begins; what began.
        self.at: dict[str, Callable[[], object]] = {}
        self.phases: list[str] = []
        self.events: list[Event] = []
        # The undo list as it was on disk when the undoing began: the kinds of its steps.
        self.listed: list[str] = []
        self.processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.handed_over: Manifest | None = None
        self.at_the_jump: dict[str, Any] = {}
        for name, pid in self.pids.items():
            self.group(name).mkdir(parents=True)
            (self.group(name) / "cgroup.procs").write_text(f"{pid}\n")
            (self.group(name) / "cgroup.events").write_text("populated 1\nfrozen 1\n")
            (self.group(name) / "cgroup.freeze").write_text("0")
            (self.group(name) / "cgroup.subtree_control").write_text("")
        for path in (self.cgroups, self.cgroups / "system.slice"):
            (path / "cgroup.subtree_control").write_text("cpu\n")
        for name in ("khugepaged", "ksm", "overcommit"):
            (directory / name).write_text("7")
        policy = directory / "apparmor/policy/profiles/named.1"
        policy.mkdir(parents=True)
        (policy / "name").write_text("named\n")
        (policy / "raw_data").write_bytes(POLICY)
        (directory / "apparmor/.replace").write_bytes(POLICY)
        (directory / "settings").touch()
        self._swaps(on=True)

    def group(self, name: str) -> Path:
        """Of a service."""
        return self.cgroups / "system.slice" / name

    def _swaps(self, *, on: bool) -> None:
        head = "Filename\tType\tSize\tUsed\tPriority\n"
        line = "/dev/vda2\tpartition\t65532\t0\t7\n"
        (self.directory / "swaps").write_text(head + (line if on else ""))

    def state(self) -> dict[str, Any]:
        """Everything that an attempt may change."""
        files = ("khugepaged", "ksm", "overcommit", "swaps", "apparmor/.replace")
        frozen = [self.group(name) / "cgroup.freeze" for name in self.pids]
        return {
            **{name: (self.directory / name).read_bytes() for name in files},
            "frozen": [path.read_text() == "1" for path in frozen if path.exists()],
            "loaded": self.loaded,
            "locked": self.locked,
            "file systems": [*self.frozen_filesystems],
            "active": {*self.active},
            "journal": self.journal,
            "images": [path.name for path in (self.directory / "disk").glob("*")],
        }

    # The kernel.

    def asked(self, name: str, real: Callable[..., Any], *facts: Any) -> Any:
        """What the real function says, unless the kernel refuses it."""
        self._call(name)
        return real(*facts)

    def _call(self, name: str) -> None:
        self.called.append(name)
        if name in self.refuses:
            raise self.refuses.pop(name)

    def initrd(self, scratch: Path) -> Path:
        """What kernel.initrd builds."""
        self._call("initrd")
        scratch.write_bytes(b"initrd")
        return scratch

    def load(self, *_: object) -> None:
        """kexec_file_load(2)."""
        self._call("kexec_file_load")
        self.loaded = True

    def unload(self) -> None:
        """The same with KEXEC_FILE_UNLOAD."""
        self._call("kexec_unload")
        self.loaded = False

    def freeze_filesystem(self, target: str) -> None:
        """FIFREEZE."""
        self._call(f"freeze {target}")
        self.frozen_filesystems.append(target)

    def thaw_filesystem(self, target: str) -> None:
        """FITHAW."""
        self._call(f"thaw {target}")
        if target not in self.frozen_filesystems:
            raise OSError(errno.EINVAL, "Invalid argument")
        self.frozen_filesystems.remove(target)

    def jump(self) -> None:
        """LINUX_REBOOT_CMD_KEXEC, which on this machine always comes back."""
        self.at_the_jump = self.state()
        with self._map_store() as area:
            self.handed_over = load(StoreReader(area).read(MANIFEST_BLOB))
        self._call("reboot")
        raise OSError(errno.EBUSY, "Device or resource busy")

    def map_store(self, *_: object, **more: object) -> mmap.mmap:
        """The store, empty."""
        (self.directory / "store").write_bytes(bytes(self.store_bytes))
        return self._map_store()

    def _map_store(self) -> mmap.mmap:
        with (self.directory / "store").open("r+b") as file:
            return mmap.mmap(file.fileno(), 0)

    # Programs.

    def popen(self, argv: Sequence[str], **more: Any) -> Any:
        """As subprocess.Popen(): of a program that is told something, or that goes on beside."""
        if more["stdout"] == subprocess.PIPE:
            return Told(argv, more["stdin"], self.run)
        return self.start(argv, **more)

    def run(self, argv: Sequence[str], text: str) -> str:
        """What such a program prints. Raises ValueError if it fails."""
        words = " ".join(argv)
        self.called.append(words)
        if self._is_broken(words):
            raise ValueError("it is broken")
        if words.startswith(self.endless):
            raise TimeoutError
        match argv:
            case ["nft", "-f", "-"]:
                self.locked = network.UNLOCK_RULES not in text
            case ["systemctl", "stop", "--", unit]:
                self.active.discard(unit)
            case ["systemctl", "start", "--no-block", "--", unit]:
                self.active.add(unit)
            case ["journalctl", "--flush"]:
                self.journal = "on disk"
            case ["swapon", *_]:
                self._swaps(on=True)
            case [program, "stat", *_] if program == RECORDER:
                return json.dumps({**_SUMMARY, "stray_pages": self.strays})
            case ["criu", "check", *_] | ["ss", *_] | ["/usr/lib/rekernel/rekernel-images", *_]:
                pass
            case _:
                raise AssertionError(f"nobody knows this program: {words}")
        return ""

    def start(self, argv: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
        """A program that goes on beside: a real one."""
        words = " ".join(argv)
        self.called.append(words)
        real = ["false"] if self._is_broken(words) else ["true"]
        match argv:
            case ["criu", "dump", *_]:
                says = self.criu_says.pop(0) if self.criu_says else ""
                criu = [sys.executable, "-I", "-S", "-c", _CRIU]
                real = [*criu, says, str(self.image_bytes), *argv]
            case ["swapoff", *_]:
                self._swaps(on=real == ["false"])
            case ["journalctl", "--relinquish-var"]:
                self.journal = "in memory"
            case [program, *_] if program == RECORDER and real != ["false"]:
                for option in ("--out", "--stray-out"):
                    Path(argv[argv.index(option) + 1]).touch()
                real = ["echo", json.dumps(_SUMMARY)]
        if words.startswith(self.endless):
            real = ["sleep", "600"]
        process = subprocess.Popen(real, **more)
        self.processes.append((words, process))
        return process

    def _is_broken(self, words: str) -> bool:
        for start, times in self.broken.items():
            if words.startswith(start) and times:
                self.broken[start] = times - 1
                return True
        return False

    def end_processes(self, start: str = "") -> None:
        """Kill and reap those whose command line begins so."""
        for words, process in self.processes:
            if words.startswith(start):
                process.kill()
                process.wait()

    # The attempt.

    def plan(self, *more: UnitVerdict, in_place: bool = True) -> Plan:
        """To carry db and web and to restart kvm."""
        where = Layout(Range(1 << 30, 2 << 30), Range(1 << 30, 1 << 30 | 1 << 20),
                       Range(1 << 30 | 1 << 20, 2 << 30))  # fmt: skip
        carried = [verdict(name, Verdict.CARRIED, pid) for name, pid in self.pids.items()]
        return Plan(
            kernel=Kernel("7.3.4", Path("/boot/vmlinuz-7.3.4"), Path("/x")),
            running="6.12.1",
            backend="region" if in_place else "image",
            where=where if in_place else None,
            units=(*carried, verdict("kvm.service", Verdict.RESTARTED, 1 << 30), *more),
            resident_bytes=1 << 20,
            warnings=(),
            usages=(),
            room=Room((), Free(0, 0, Disk("", 0, 0)), 0, 0),
        )

    def upgrade(self, plan: Plan | None = None) -> Upgrade:
        """An attempt; what is done when its phases begin is in ``at``."""
        events = EventStream()
        events.subscribe(self._hear)
        return Upgrade(plan or self.plan(), events, lambda processes: None)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if event.kind != "begin":
            return
        self.phases.append(event.name)
        if event.name == "undo" and self.undo_file.exists():
            self.listed = [step[0] for step in json.loads(self.undo_file.read_text())]
        if event.name in self.at:
            self.at.pop(event.name)()

    def host(self, *_: object) -> HostFacts:
        """What host_facts.observe() tells; that has tests of its own."""
        root = MountInfo(1, "254:1", "/", "/", ("rw",), "ext4", "/dev/vda1", ("rw",))
        return HostFacts(
            table=(root,), contents=(), triggers=(), travels=Host(
                mounts=(), directories=(), files={}, fifos=(), prefetch=(),
                network=Network("lock", "unlock", {}, (), ""), hostname="host", sysctls={},
                systemd_header="", systemd_units={},
            ),
        )  # fmt: skip


def verdict(name: str, what: Verdict, pid: int) -> UnitVerdict:
    """Of a service with one process."""
    facts = Unit(name, "active", "running", "simple", pid, f"/system.slice/{name}", "", {})
    return UnitVerdict(facts, what, "a reason", "a remedy", {pid: facts.cgroup}, (pid,))


@pytest.fixture(scope="session")
def two_processes() -> Iterator[list[int]]:
    """Of two sessions of their own."""
    commands = [["sleep", "infinity"]] * 2
    running = [subprocess.Popen(words, start_new_session=True) for words in commands]
    yield [process.pid for process in running]
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def machine(
    tmp_path: Path, two_processes: list[int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    """With everything that an attempt touches in place of what is really there."""
    found = Machine(tmp_path, two_processes)
    programs = programs_that_are(found.popen)
    scratch = tmp_path / "run"
    # A name of a socket must be short.
    hook = Path(f"/tmp/rekernel-test-{os.getpid()}.sock")
    in_place_of: Mapping[object, Mapping[str, object]] = {
        syscalls: {
            "kexec_file_load": found.load,
            "kexec_unload": found.unload,
            "freeze_filesystem": found.freeze_filesystem,
            "thaw_filesystem": found.thaw_filesystem,
            "reboot_kexec": found.jump,
        },
        os: {"sync": lambda: found._call("sync")},
        apparmor: {
            "_SECURITY": tmp_path / "apparmor",
            "label": lambda pid: "named" if pid == two_processes[0] else "",
        },
        attempt: {"IMAGES": tmp_path / "disk"},
        cgroups: {
            name: functools.partial(getattr(cgroups, name), root=found.cgroups)
            for name in ("above", "observe")
        },
        conntrack: {"_LOADED": tmp_path / "none"},
        freezing: {"CGROUPS": found.cgroups},
        recorder: {"ram_ranges": lambda where: [where.ram]},
        store: {
            "SCRATCH": scratch,
            "store_device": lambda where: SimpleNamespace(name="dax0.0"),
        },
        dax: {"map_device": found.map_store, "block_size": lambda: 128 << 20},
        disks: {
            "root": lambda table: (RootConfig("uuid", "ext4", 0, ""), "/dev/vda1"),
            "stack": lambda table, device: Stack(),
            "plan": lambda table: [],
            "before_others": lambda path, table, at: (None, path),
        },
        drivers: {"needed": lambda table, kinds: []},
        dumps: {"HOOK_SOCKET": str(hook)},
        host_facts: {"observe": found.host},
        initrd: {
            "file_for": lambda config, chosen, scratch, again: found.initrd(scratch),
            "module_waves": lambda chosen: (),
            "module_parameters": lambda chosen: {},
        },
        unix_sockets: {"take": nothing_leads_out},
        modules: {"resolve": lambda release, aliases: []},
        mounts: {
            "observe": lambda pid="self": list(found.host().table),
            "resize_run": lambda size: None,
        },
        migrations: {"count": lambda: found.moves},
        network_trial: {"refused": lambda network: []},
        staging: {
            "SCRATCH": scratch,
            "PARENT": scratch / "parent",
            "machine_id": lambda: "0123456789abcdef",
            "_tool_files": list,
            "_TUNING": tuple((str(tmp_path / name), "0") for name in ("khugepaged", "ksm")),
            "_OVERCOMMIT": tmp_path / "overcommit",
            "_CHECKED_BY_CRIU": tmp_path / "criu.kdat",
        },
        swap: {"observe": functools.partial(swap.observe, proc=tmp_path)},
        sysctls: {"_AT_BOOT": tmp_path / "settings"},
        trees: {"holds_namespace": lambda pid, name: False},
        undo: {"CGROUPS": found.cgroups, "_KINDS": logged(found)},
        units: {"_CGROUPS": found.cgroups},
        upgrade: {"UndoList": lambda: UndoList(found.undo_file)},
        preparation: {"ram_ranges": lambda where: [where.ram]},
        room: {"observe": functools.partial(found.asked, "room", room.observe)},
        stopped: {"make_ready": functools.partial(found.asked, "ptrace", stopped.make_ready)},
        handing_over: {"raid": SimpleNamespace(assert_as_before=lambda arrays: None)},
    }
    for module, names in in_place_of.items():
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("rekernel.run.subprocess", programs)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)
    with suppress(ProcessLookupError):
        found.end_processes()
    hook.unlink(missing_ok=True)


def programs_that_are(popen: Callable[..., Any]) -> SimpleNamespace:
    """In place of the module subprocess."""
    names = ("DEVNULL", "PIPE", "STDOUT", "TimeoutExpired")
    return SimpleNamespace(Popen=popen, **{name: getattr(subprocess, name) for name in names})


def nothing_leads_out(members: Sequence[Member]) -> Taken:
    """What carry.unix_sockets finds of processes without sockets."""
    return Taken((), (), frozenset(), tuple(() for _ in members), {})


def logged(machine: Machine) -> dict[str, undo._Kind]:
    """All kinds of steps; which was undone is written down."""

    def telling(kind: str, step: Callable[[str], object]) -> Callable[[str], object]:
        def undo_and_tell(value: str) -> None:
            machine.undone.append(kind)
            step(value)

        return undo_and_tell

    return {
        kind: undo._Kind(telling(kind, item.undo), item.by_hand)
        for kind, item in undo._KINDS.items()
    }
