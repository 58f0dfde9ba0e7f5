"""A running guest, as seen from the host: commands, files, and signs of life."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab.errors import DeadlineError, LabError
from rekernel_lab.images.guestfiles import GUEST_ADDRESS
from rekernel_lab.images.rootfs import Keys
from rekernel_lab.run import environment, run
from rekernel_lab.vm.netns import Namespace

# What ssh itself exits with when the connection fails.
SSH_FAILED = 255


@dataclass(frozen=True, slots=True)
class Guest:
    """The way into a guest: ssh as root through its network namespace."""

    namespace: Namespace
    keys: Keys
    # The socket of a connection that all commands share while there is one.
    control: Path | None = None

    def ssh(
        self,
        command: Sequence[str] | str = (),
        *,
        options: Sequence[str] = (),
        log_level: str = "ERROR",
    ) -> list[str]:
        """Return the ssh command line for `command` (words are quoted, a string is not)."""
        remote = command if isinstance(command, str) else shlex.join(command)
        return self.namespace.wrap(
            "ssh", "-F", "none", "-i", str(self.keys.client),
            "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", "StrictHostKeyChecking=yes",
            "-o", f"UserKnownHostsFile={self.keys.known_hosts}",
            "-o", "ControlMaster=no", "-o", f"ControlPath={self.control or 'none'}",
            "-o", "ConnectTimeout=10", "-o", f"LogLevel={log_level}",
            # A blackout is silence: give up on a connection only after two minutes of it.
            "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8",
            *options, f"root@{GUEST_ADDRESS}", *([remote] if remote else []),
        )  # fmt: skip

    @contextlib.contextmanager
    def connected(self) -> Iterator[Guest]:
        """A way into the guest over one connection, during the block.

        A login costs an emulated guest half a second. Whoever lets the guest reboot calls
        disconnect() before: what is asked over a dead connection hangs.
        """
        # The path of a socket may have 108 bytes only, and ssh wants some of these.
        with tempfile.TemporaryDirectory(prefix="rekernel-lab-") as directory:
            shared = dataclasses.replace(self, control=Path(directory) / "ssh")
            words = ["setpriv", "--pdeathsig", "TERM", *shared.ssh(options=["-M", "-N"])]
            with subprocess.Popen(words, stdin=subprocess.DEVNULL, env=environment()) as master:
                try:
                    shared.wait_connected(master)
                    yield shared
                finally:
                    master.terminate()

    def wait_connected(self, master: subprocess.Popen[bytes], timeout: float = 60) -> None:
        """Wait for the connection that an ssh makes; LabError if it ends, or takes so long (s)."""
        deadline = time.monotonic() + timeout
        while not (self.control and self.control.exists()):
            if master.poll() is not None or time.monotonic() > deadline:
                raise LabError("no connection into the guest that could be shared")
            time.sleep(0.05)

    def disconnect(self) -> None:
        """End the connection that commands share, if there is one: each has its own again."""
        if self.control and self.control.exists():
            run(self.ssh(options=["-O", "exit"]), check=False, timeout=30)

    def run(
        self,
        command: Sequence[str] | str,
        *,
        check: bool = True,
        timeout: float = 300,
        stdin: bytes | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `command` in the guest and return it with its output.

        Raises LabError if it fails (with `check`) or if the guest cannot be reached.
        """
        done = run(self.ssh(command), check=False, timeout=timeout, stdin=stdin)
        words = command if isinstance(command, str) else shlex.join(command)
        if done.returncode == SSH_FAILED:
            raise LabError(f"no way into the guest: {done.stderr.decode(errors='replace').strip()}")
        if check and done.returncode:
            tail = (done.stderr or done.stdout).decode(errors="replace").strip()[-1500:]
            raise LabError(f"in the guest: {words}: exited with {done.returncode}\n{tail}")
        return done

    def text(self, command: Sequence[str] | str, *, timeout: float = 240) -> str:
        """Return what `command` prints, stripped."""
        return self.run(command, timeout=timeout).stdout.decode(errors="replace").strip()

    def interactive(self, command: Sequence[str] = (), *, terminal: bool = False) -> int:
        """Run a shell, or `command`, on this process's own streams; return its exit code."""
        options = ["-t"] if terminal else []
        words = self.ssh(list(command), options=options)
        return subprocess.run(words, env=environment(), check=False).returncode

    def popen(self, command: Sequence[str] | str) -> subprocess.Popen[bytes]:
        """Start `command`; its output, both streams in one, is a pipe."""
        return subprocess.Popen(
            # That an upgrade ends the connection is no news in its output.
            self.ssh(command, log_level="QUIET"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
        )

    def push(self, source: Path, target: str) -> None:
        """Copy a file or directory into the guest, as `target` (its parents are made)."""
        quoted = shlex.quote(target)
        if source.is_dir():
            owner = ["--owner=0", "--group=0", "--numeric-owner"]
            packed = run(["tar", "-C", source, *owner, "-cf", "-", "."]).stdout
            self.run(f"mkdir -p {quoted} && tar -C {quoted} -xf -", stdin=packed, timeout=600)
            return
        try:
            content, mode = source.read_bytes(), source.stat().st_mode & 0o777
        except OSError as error:
            raise LabError(f"{source}: {error.strerror}") from error
        parent = shlex.quote(str(Path(target).parent))
        self.run(
            f"mkdir -p {parent} && cat > {quoted} && chmod {mode:o} {quoted}",
            stdin=content,
            timeout=600,
        )

    def pull(self, source: str, target: Path) -> None:
        """Copy a file or directory out of the guest into the directory `target`."""
        parent, name = Path(source).parent, Path(source).name
        packed = self.run(["tar", "-C", str(parent), "-cf", "-", name], timeout=600).stdout
        target.mkdir(parents=True, exist_ok=True)
        # What comes from a guest is only data here: no foreign owners, no special files' modes.
        run(["tar", "-C", target, "--no-same-owner", "--no-same-permissions", "-xf", "-"],
            stdin=packed)  # fmt: skip

    def wait_ready(self, timeout: float, check_alive: Callable[[], None]) -> None:
        """Wait until a command can be run in the guest.

        `check_alive` is called between attempts, and raises LostVMError if there is no use in
        waiting. Raises DeadlineError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            check_alive()
            try:
                if run(self.ssh(["true"]), check=False, timeout=30).returncode == 0:
                    return
            except DeadlineError:
                pass
            if time.monotonic() > deadline:
                raise DeadlineError(f"the guest did not answer within {timeout:.0f} s")
            time.sleep(0.5)
