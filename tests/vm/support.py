"""What the VM tests share: a guest with rekernel in it, faults to inject, a connection."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rekernel_lab import cache
from rekernel_lab.images.guestfiles import GUEST_ADDRESS
from rekernel_lab.progress import Progress
from rekernel_lab.scenario import assemble, prepared, runner, scenario, session
from rekernel_lab.scenario.client import HostClient
from rekernel_lab.scenario.session import Script, Session
from rekernel_lab.scenario.upgrade import Outcome

SCENARIOS = cache.REPOSITORY / "lab" / "scenarios"
OLD, NEW = "6.12", "7"

# What share a guest; the last one is demonstrated from nothing as well.
MAIN_JOB = "demo"
_SHARED = ("between", "containers", "pages", MAIN_JOB)

_FAULTS = Path(__file__).parent / "faults"
_SITE = "/usr/lib/python3/dist-packages"
_STATE = "/usr/local/sbin/rekernel-state"


@dataclass(slots=True)
class Guest:
    """A session with what the tests do in it. `releases`: the full name of each prefix."""

    session: Session
    directory: Path
    releases: dict[str, str]
    scripts: dict[str, Script] = field(default_factory=dict)

    @property
    def serial_log(self) -> Path:
        """Where to look when something went wrong."""
        return self.session.machine.state.serial_log

    def run(self, words: Sequence[str] | str, timeout: float = 120) -> tuple[int, str]:
        """Exit code and output (both streams) of a command in the guest."""
        done = self.session.machine.guest.run(words, check=False, timeout=timeout)
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")

    def text(self, words: Sequence[str] | str) -> str:
        """What a command prints; it must succeed."""
        code, output = self.run(words)
        assert code == 0, f"{words}: {code}\n{output}"
        return output.strip()

    def json(self, words: str) -> Any:
        """What a command prints, parsed."""
        return self.session.json(words)

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Have one connection for all commands, which is quicker; until disconnect()."""
        before = self.session
        with before.machine.guest.connected() as shared:
            machine = dataclasses.replace(before.machine, control=shared.control)
            self.session = dataclasses.replace(before, machine=machine)
            try:
                yield
            finally:
                self.session = before

    def disconnect(self) -> None:
        """Have a connection for each command again, as the guest is about to start anew."""
        self.session.machine.guest.disconnect()

    def write(self, path: str, content: str) -> None:
        """Write a file in the guest."""
        self.session.machine.guest.run(["tee", path], stdin=content.encode())

    def main_pid(self, unit: str) -> int:
        """The main process of a unit."""
        return int(self.text(["systemctl", "show", "--property=MainPID", "--value", unit]))

    def start_of(self, unit: str) -> str:
        """Tells one start of a unit from another: a PID may well be the same again."""
        return self.text(["systemctl", "show", "--property=InvocationID", "--value", unit])

    def upgrade(self, prefix: str, *options: str) -> Outcome:
        """A whole upgrade to the kernel of this prefix, drain included."""
        return self.session.upgrade(self.releases[prefix], options=options)

    def explain(self, outcome: Outcome) -> str:
        """For messages of failed assertions."""
        error = outcome.report.get("error") if isinstance(outcome.report, dict) else "no report"
        return (
            f"upgrade to {outcome.target}: exit code {outcome.exit_code}, runs {outcome.release}, "
            f"{outcome.error or error}; serial log: {self.kept}/serial.log"
        )

    @property
    def kept(self) -> Path:
        """The directory with everything that stays after the test."""
        return self.session.output

    @contextlib.contextmanager
    def client(self) -> Iterator[HostClient]:
        """The scenario's host-client."""
        with self.session.client(self.directory / "host-client", self.scripts) as client:
            yield client

    def finish(self, client: HostClient) -> None:
        """End the client; it must have seen no violation."""
        code = client.finish(60)
        assert code == 0, f"host-client: {client.log.read_text()}"

    def connect(self, port: int) -> socket.socket:
        """A TCP connection from the host."""
        namespace = self.session.machine.state.namespace
        return namespace.connect((GUEST_ADDRESS, port), 120)

    def swap_on(self, size_mib: int, priority: int) -> None:
        """Use a swap file that nobody but us knows of."""
        self.text(
            f"dd if=/dev/zero of=/swap bs=1M count={size_mib} status=none && chmod 600 /swap &&"
            f" mkswap --quiet /swap && swapon --priority {priority} /swap"
        )

    def install_faults(self) -> None:
        """Let :meth:`fault` work."""
        push = self.session.machine.guest.push
        push(_FAULTS / "rekernel_faults.py", f"{_SITE}/rekernel_faults.py")
        push(_FAULTS / "state.py", _STATE)
        self.text(["chmod", "755", _STATE])
        # Every Python of the guest reads this line.
        only_if = 'os.path.exists("/etc/rekernel-fault.json") and __import__("rekernel_faults")'
        self.write(f"{_SITE}/rekernel_faults.pth", f"import os; {only_if}\n")

    def fault(self, phase: str, do: str, **more: Any) -> None:
        """Let the next upgrade do this when it begins this phase."""
        spec = json.dumps({"phase": phase, "do": do, **more})
        command = "rm -f /run/rekernel-fault.*; cat > /etc/rekernel-fault.json"
        self.session.machine.guest.run(command, stdin=spec.encode())

    def no_fault(self) -> None:
        """Take back a fault that was not reached."""
        self.text("rm -f /etc/rekernel-fault.json /run/rekernel-fault.*")

    @contextlib.contextmanager
    def changed(self, *edits: tuple[str, str, str]) -> Iterator[None]:
        """Other code in the guest for a while: (module file, pattern and replacement of sed)."""
        for name, pattern, replacement in edits:
            path = f"{_SITE}/rekernel/{name}"
            self.text(["cp", "--no-clobber", path, f"{path}.before"])
            self.text(["sed", "-i", f"s|{pattern}|{replacement}|", path])
            self.text(["sh", "-c", f"! cmp -s {path} {path}.before"])
        try:
            yield
        finally:
            for name in dict.fromkeys(name for name, _, _ in edits):
                path = f"{_SITE}/rekernel/{name}"
                self.text(["mv", f"{path}.before", path])

    def record_state(self, *units: str) -> None:
        """Remember what a failed upgrade must leave as it is."""
        self.text([_STATE, "record", "/root/state.json", *units])

    def state_differences(self, *units: str) -> str:
        """What is not as it was."""
        _, output = self.run(["timeout", "60", _STATE, "compare", "/root/state.json", *units])
        return output.strip()


def get(connection: socket.socket) -> None:
    """One of many HTTP requests over a connection."""
    client = http.client.HTTPConnection("guest")
    client.sock = connection
    client.request("GET", "/")
    answer = client.getresponse()
    assert answer.status == 200
    assert answer.read()


def shared_guest() -> scenario.Scenario:
    """The guest whose saved state several files begin with."""
    return prepared.shared([scenario.load(SCENARIOS / name) for name in _SHARED])


def run_scenario(name: str) -> runner.Result:
    """Run one of the lab's scenarios, which must pass; from nothing, if it shares no guest."""
    wanted = scenario.load(SCENARIOS / name)
    base = shared_guest() if name in _SHARED and name != MAIN_JOB else None
    progress = Progress(terminal=False)
    result = runner.Runner(wanted, progress, assemble.Options(), None, base).run()
    assert result.passed, "\n".join([*result.shortcomings(), f"logs in {result.output}"])
    return result


@contextlib.contextmanager
def opened(
    name: str,
    which: str,
    *,
    limit_s: float,
    memory_mib: int = 0,
    disk_mib: int = 0,
    uefi: bool = False,
    packages: Sequence[str] = (),
) -> Iterator[Guest]:
    """A fresh guest with the package, not set up, and a scenario directory in it."""
    wanted = scenario.load(SCENARIOS / which)
    wanted = dataclasses.replace(wanted, packages=(*wanted.packages, *packages))
    progress = Progress(terminal=False)
    deb = runner.package(progress, None)
    assembly = runner.assemble_for(wanted, progress, assemble.Options(), deb)
    output = runner.output_directory(f"test-{name}")
    with session.opened(
        f"test-{name}-{os.getpid()}",
        assembly,
        progress,
        output,
        session.Deadline(limit_s, f"the tests in {name}"),
        memory_mib=memory_mib or wanted.memory_mib,
        disk_mib=disk_mib,
        uefi=uefi,
    ) as running:
        running.install(deb)
        running.push(wanted.directory)
        yield Guest(running, wanted.directory, _releases(wanted, assembly))


@contextlib.contextmanager
def resumed(name: str, which: str, *, limit_s: float) -> Iterator[Guest]:
    """The shared guest, set up, with a scenario directory in it."""
    wanted, base = scenario.load(SCENARIOS / which), shared_guest()
    progress = Progress(terminal=False)
    deb = runner.package(progress, None)
    assembly = runner.assemble_for(wanted, progress, assemble.Options(), deb, base)
    output = runner.output_directory(f"test-{name}")
    vm = f"test-{name}-{os.getpid()}"
    with runner.installed(
        vm, wanted, assembly, progress, output, deb, limit_s, base=base
    ) as running:
        yield Guest(running, wanted.directory, _releases(wanted, assembly))


def _releases(wanted: scenario.Scenario, assembly: assemble.Assembly) -> dict[str, str]:
    prefixes = (wanted.kernel_from, *wanted.upgrades)
    return {
        prefix: release
        for wish, release in zip(prefixes, assembly.releases, strict=True)
        for prefix in (wish, wish.split(".")[0] if wish != OLD else wish)
    }
