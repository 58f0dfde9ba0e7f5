"""A scenario's host-client: a program in the guest's network that lives through all upgrades."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

from rekernel_lab.errors import LabError
from rekernel_lab.images.guestfiles import GUEST_ADDRESS
from rekernel_lab.run import environment
from rekernel_lab.vm.netns import Namespace


class HostClient:
    """The running client; a context manager that leaves no process behind."""

    def __init__(self, script: Path, namespace: Namespace, output: Path) -> None:
        self.log = output / f"{script.name}.log"
        self._ready = output / "ready"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *namespace.wrap(str(script))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=script.parent,
                env=environment({"GUEST_IP": GUEST_ADDRESS, "OUT_DIR": str(output)}),
                # Its own group: whatever it starts can be ended with it.
                start_new_session=True,
            )

    def __enter__(self) -> HostClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the client made OUT_DIR/ready, or for so many seconds; LabError if it ends."""
        deadline = time.monotonic() + timeout
        while not self._ready.exists() and time.monotonic() < deadline:
            self.check_alive()
            time.sleep(0.1)
        self.check_alive()

    def check_alive(self) -> None:
        """Raise LabError if the client ended by itself."""
        if self._process.poll() is not None:
            tail = self.log.read_text(errors="replace").strip()[-1000:]
            raise LabError(f"host-client ended with {self._process.returncode}\n{tail}")

    def finish(self, timeout: float) -> int:
        """Send SIGTERM, wait at most `timeout` seconds, and return the exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._signal_group(signal.SIGKILL)
            return self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
