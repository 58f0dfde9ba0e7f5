"""One upgrade as the lab sees it: start it, watch it, find the guest again."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rekernel_lab.errors import DeadlineError, LabError
from rekernel_lab.progress import Progress
from rekernel_lab.vm.guest import SSH_FAILED, Guest
from rekernel_lab.vm.vm import VM

_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
_REPORT = "rekernel report --json"
_STATUS = "rekernel status --json"

# The agent's lines on the console begin so.
_AGENT = "rekernel:"

# Until the agent speaks or the connection breaks, nobody bothers the guest: each ssh login
# costs processor time that would be missing in the measurement.
_QUIET_S = 120.0

# An attempt to log in is given up after this time, and another one made.
_PROBE_LIMIT_S = 20.0

# From the guest's first answer to the end of the drain.
_FINISH_S = 300.0

# A login that was carried gets this long to say its last words, from the guest's first answer on.
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an upgrade went. `exit_code` is the product's, None if it could not be learned."""

    target: str
    exit_code: int | None
    release: str
    report: Any
    error: str = ""

    @property
    def passed(self) -> bool:
        """Tell whether the guest runs the target, and the product has nothing to regret."""
        return self.exit_code == 0 and self.release == self.target and not self.error


def drained(status: Any) -> bool:
    """Tell whether `rekernel status --json` says that every carried page is home.

    "drain" is absent or null when there was nothing to drain, else {"finished": bool}.
    """
    if not isinstance(status, dict):
        return False
    drain = status.get("drain")
    return drain is None or (isinstance(drain, dict) and drain.get("finished") is True)


def _id(report: Any) -> str | None:
    """The ID of a report, None if there is none."""
    return report.get("id") if isinstance(report, dict) else None


def command(target: str, carry: Sequence[str] | None, options: Sequence[str] = ()) -> list[str]:
    """Return the product's command line for an upgrade to kernel `target`."""
    carried = [word for unit in carry or () for word in ("--carry", unit)]
    return ["rekernel", "upgrade", "--yes", *options, *carried, target]


class _BootId:
    """Asks the guest which boot it is in, again and again, without ever waiting for it."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._process: subprocess.Popen[bytes] | None = None
        self._next = 0.0

    def poll(self) -> str:
        """Return the boot ID if an answer has come since the last call, else ""."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._next:
                self._process = self._guest.popen(_BOOT_ID)
                self._next = now + _PROBE_LIMIT_S
            return ""
        if self._process.poll() is None:
            # A connection made to the old kernel may hang for good.
            if now > self._next:
                self.close()
            return ""
        answer = self._process.stdout.read().decode() if self._process.stdout else ""
        answer = answer.strip() if self._process.returncode == 0 else ""
        self.close()
        return answer

    def close(self) -> None:
        """End the attempt that is under way; the next one starts a second later."""
        if self._process:
            self._process.kill()
            self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
        self._process = None
        self._next = time.monotonic() + 1


class Upgrade:
    """Runs one upgrade in a VM. All times in seconds."""

    def __init__(self, vm: VM, progress: Progress) -> None:
        self._vm = vm
        self._guest = vm.guest
        self._progress = progress
        self._serial_offset = vm.serial_size()
        self._serial_seen = self._serial_offset
        self._agent_spoke = False

    def run(
        self,
        target: str,
        carry: Sequence[str] | None,
        timeout: float,
        options: Sequence[str] = (),
    ) -> Outcome:
        """Upgrade to `target` and wait until the guest has drained.

        Raises LostVMError if the VM is lost, DeadlineError after `timeout`.
        """
        deadline = time.monotonic() + timeout
        boot_id = self._guest.text(_BOOT_ID)
        known = _id(self._json(_REPORT))
        error = ""
        with self._started(command(target, carry, options)) as process:
            code = self._watch(process, boot_id, deadline)
            back = time.monotonic()
            release = self._guest.text(["uname", "-r"])
            if code is None:
                try:
                    self._wait_finished(known, min(deadline, back + _FINISH_S))
                except DeadlineError as problem:
                    error = str(problem)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    said = process.wait(max(0.0, back + _GRACE_S - time.monotonic()))
                    code = None if said == SSH_FAILED else said
        report = self._json(_REPORT)
        if _id(report) == known:
            report = None
        elif code is None:
            code = report.get("exit_code")
        return Outcome(target, code, release, report, error)

    @contextlib.contextmanager
    def _started(self, words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        """The command, shown while it goes on and ended afterwards."""
        process = self._guest.popen(words)
        assert process.stdout is not None
        reader = threading.Thread(target=self._show, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            reader.join(timeout=2)

    def _watch(self, process: subprocess.Popen[bytes], boot_id: str, deadline: float) -> int | None:
        """Show what goes on until the guest is back; return the command's exit code if known."""
        probe = _BootId(self._guest)
        began = time.monotonic()
        try:
            while True:
                self._vm.check_alive(self._serial_offset)
                self._show_serial()
                code = process.poll()
                if code is not None and code != SSH_FAILED:
                    return code
                now = time.monotonic()
                if code is not None or self._agent_spoke or now - began > _QUIET_S:
                    current = probe.poll()
                    # The same kernel is an answer, too, once the command's connection is gone.
                    if current and (current != boot_id or code is not None):
                        return None
                if now > deadline:
                    raise DeadlineError("the guest did not come back from the upgrade")
                time.sleep(0.2)
        finally:
            probe.close()

    def _show(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._progress.guest(line.decode(errors="replace").rstrip())

    def _show_serial(self) -> None:
        with self._vm.state.serial_log.open("rb") as serial:
            serial.seek(self._serial_seen)
            content = serial.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._serial_seen += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if _AGENT in line:
                self._agent_spoke = True
                self._progress.guest(line[line.index(_AGENT) :].rstrip())

    def _json(self, words: str) -> Any:
        """Return the parsed output of a command of the product, None if there is none."""
        try:
            output = self._guest.run(words, check=False, timeout=120).stdout
            return json.loads(output) if output.strip() else None
        except (ValueError, LabError):
            return None

    def _wait_finished(self, known: str | None, deadline: float) -> None:
        """Wait until there is a report of this upgrade and every carried page is home."""
        while _id(self._json(_REPORT)) == known or not drained(self._json(_STATUS)):
            self._vm.check_alive(self._serial_offset)
            if time.monotonic() > deadline:
                raise DeadlineError("no report of the upgrade, or no end of its drain, in time")
            time.sleep(1)
