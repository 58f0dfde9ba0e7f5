#!/usr/bin/python3
"""What `rekernel-lab zdtm` does inside the guest.

    guest.py ready SPEC RESULT   what the tests need of the machine
    guest.py plain SPEC RESULT   criu alone dumps and restores each test, as zdtm.py would
    guest.py end SPEC RESULT     ends the tests that run as services, and reads their verdicts

SPEC is the JSON of rekernel_lab.zdtm.tests, RESULT a JSON object with a finding per test. A line is
printed for each test that is done. The working directory is the suite's folder test.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

JOBS = 2
# Emulated, and two at a time: zdtm.py gives 10 s to a dump, on a machine that has nothing else.
CRIU_S = 120
# A test that looks at all its memory takes a while beside 200 others.
END_S = 180
# The dump, the restore, and everything around them.
ONE_S = 400

LOGS = Path("/var/log/zdtm")


class Failure(Exception):
    """A step of a test that failed."""


class Skipped(Exception):
    """A test that says that it cannot run here."""


class Test:
    """A test of the suite, as the specification has it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name: str = spec["name"]
        self.command: str = spec["command"]
        self.env: dict[str, str] = spec["env"]
        self.dump_options: list[str] = spec["dump_options"]
        self.restore_options: list[str] = spec["restore_options"]
        self.features: list[str] = spec["features"]
        self.alone: bool = spec["alone"]
        self.path = Path("zdtm", self.name)
        self.hook_env: dict[str, str] = {}

    @property
    def logs(self) -> Path:
        """Where criu's images and logs of this test are."""
        return LOGS / self.name.replace("/", "-")

    def run(
        self,
        words: Sequence[str],
        what: str,
        timeout: float,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        """Run one step; its output is kept. Raises Failure if it fails or takes too long."""
        with (self.logs / "output.log").open("ab") as log:
            log.write(f"+ {shlex.join(words)}\n".encode())
            log.flush()
            try:
                done = subprocess.run(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=cwd,
                    env={**os.environ, **(env or {})},
                    timeout=timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise Failure(f"{what}: not done in {timeout} s") from None
        if done.returncode:
            raise Failure(f"{what}: exit code {done.returncode}{self.first_error(what)}")

    def first_error(self, what: str) -> str:
        """What criu's log says about it, or the test's own output."""
        log = self.logs / f"{what}.log"
        if log.exists():
            for line in log.read_text(errors="replace").splitlines():
                if "Error (" in line:
                    return f": {line[line.index('Error (') :]}"
        return ""

    def hook(self, when: str) -> None:
        """Run the test's hook, if it has one."""
        hook = self.path.with_name(f"{self.path.name}.hook")
        if os.access(hook, os.X_OK):
            self.run([str(hook), f"--{when}"], f"hook --{when}", CRIU_S, env=self.hook_env)

    def check(self) -> None:
        """Raise Skipped if the test cannot run here."""
        for feature in self.features:
            if not has_feature(feature):
                raise Skipped(f"criu has no feature {feature} on this kernel")
        skip = self.path.with_name(f"{self.path.name}.checkskip")
        if os.access(skip, os.X_OK):
            done = subprocess.run([str(skip)], capture_output=True, check=False, timeout=60)
            if done.returncode:
                raise Skipped("its own check says that it cannot run here")

    def pid(self) -> int | None:
        """The process that the test daemonised into; None if there is no such file."""
        try:
            return int(self.path.with_name(f"{self.path.name}.pid").read_text())
        except (OSError, ValueError):
            return None

    def verdict(self) -> tuple[bool, str]:
        """Whether the test said PASS at its end, and its last words."""
        last: list[str] = []
        for suffix in (".out", ".out.inprogress"):
            path = self.path.with_name(self.path.name + suffix)
            if path.exists():
                last = path.read_text(errors="replace").strip().splitlines()[-4:]
                if suffix == ".out" and last and "PASS" in last[-1].split():
                    return True, last[-1]
                break
        return False, "\n".join(last)

    def start(self) -> int:
        """Start it as its makefile does; return its process."""
        # A shell, because the makefile's line is one for a shell.
        words = ["sh", "-c", self.command]
        try:
            environment = {**self.env, "ZDTM_THREAD_BOMB": "5"}
            self.run(words, "start", CRIU_S, self.path.parent, environment)
        except Failure as failure:
            raise Failure(f"{failure}, {self.verdict()[1]}".rstrip(", ")) from None
        pid = self.pid()
        if pid is None or not alive(pid):
            raise Failure(f"start: no process, {self.verdict()[1]}")
        return pid

    def criu(self, verb: str, words: Sequence[str]) -> None:
        """Run criu on it."""
        common = ["--log-file", f"{verb}.log", "--images-dir", str(self.logs), "--verbosity=4"]
        pidfile = self.path.with_name(f"{self.path.name}.pid").resolve()
        self.run(["criu", verb, *common, "--pidfile", str(pidfile), *words], verb, CRIU_S)

    def plain(self) -> None:
        """Start, dump, restore and end it. Raises Failure, or Skipped."""
        self.check()
        self.clean_out()
        pid = self.start()
        self.hook_env = {"ZDTM_TEST_PID": str(pid), "ZDTM_IMG_DIR": str(self.logs)}
        self.hook("pre-dump")
        timeout = ["--timeout", str(CRIU_S)]
        self.criu("dump", ["--tree", str(pid), *timeout, *self.dump_options])
        wait_gone(pid, CRIU_S, "dump")
        # As zdtm.py does: criu writes the restored one's.
        self.path.with_name(f"{self.path.name}.pid").unlink(missing_ok=True)
        self.hook("pre-restore")
        self.criu("restore", ["--restore-detached", *self.restore_options])
        self.hook("post-restore")
        self.end()

    def clean_out(self) -> None:
        """Remove what an earlier run left, as the makefile's cleanout does."""
        name = self.path.name
        for pattern in (f"{name}.pid*", f"{name}.out*", f"{name}.test*", f"{name}.*.test*"):
            for path in self.path.parent.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def end(self) -> None:
        """End it, and raise Failure if it does not say PASS."""
        pid = self.pid()
        if pid is None or not alive(pid):
            raise Failure(f"end: the process is gone, {self.verdict()[1]}")
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid, END_S, "end")
        passed, words = self.verdict()
        if not passed:
            raise Failure(f"verdict: {words}")

    def clean(self) -> None:
        """Undo what the test's hook did."""
        with contextlib.suppress(Failure):
            self.hook("clean")


def alive(pid: int) -> bool:
    """Whether there is such a process, a zombie being none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_gone(pid: int, timeout: float, what: str) -> None:
    """Wait until a process has ended."""
    deadline = time.monotonic() + timeout
    while alive(pid):
        if time.monotonic() > deadline:
            raise Failure(f"{what}: process {pid} was still there after {timeout} s")
        time.sleep(0.05)


def finding(outcome: str, why: str, began: float) -> dict[str, Any]:
    """What the host reads about a test."""
    took = round(time.monotonic() - began, 2)
    return {"outcome": outcome, "why": why, "seconds": took}


def attempt(function: Callable[[], None]) -> dict[str, Any]:
    """Run a step of a test and make a finding of how it went."""
    began = time.monotonic()
    try:
        function()
    except Skipped as reason:
        return finding("skipped", str(reason), began)
    except (Failure, OSError, subprocess.SubprocessError) as failure:
        return finding("failed", str(failure), began)
    return finding("passed", "", began)


@functools.cache
def has_feature(feature: str) -> bool:
    """Whether criu and this kernel have a feature of criu's."""
    words = ["criu", "check", "--feature", feature]
    return not subprocess.run(words, capture_output=True, check=False, timeout=CRIU_S).returncode


def one(test: Test) -> None:
    """A plain test, in the first process of its namespaces."""
    worker = os.fork()
    if worker:
        # What the test leaves behind is ours now, and must not stay a zombie.
        while os.wait()[0] != worker:
            pass
        return
    # Of a mount namespace that nobody else sees.
    subprocess.run(["mount", "--make-rslave", "/"], check=True, timeout=60)
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True, timeout=60)
    subprocess.run(["ip", "link", "set", "up", "dev", "lo"], check=True, timeout=60)
    found = attempt(test.plain)
    test.clean()
    (test.logs / "finding.json").write_text(json.dumps(found))


def begin(test: Test) -> int:
    """Start a plain test in namespaces of its own; return the leader of its process group."""
    shutil.rmtree(test.logs, ignore_errors=True)
    test.logs.mkdir(parents=True)
    test.logs.chmod(0o777)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        log = os.open(test.logs / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if sys.version_info >= (3, 12):
            os.unshare(os.CLONE_NEWNS | os.CLONE_NEWPID | os.CLONE_NEWNET | os.CLONE_NEWIPC)
        else:
            raise RuntimeError("Python is too old for namespaces")
        first = os.fork()
        if not first:
            one(test)
            os._exit(0)
        os.waitpid(first, 0)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Not back into the loop that belongs to the parent.
        os._exit(code)


def outcome(test: Test, began: float, timely: bool) -> dict[str, Any]:
    """What became of a plain test; its images go, its logs stay if it failed."""
    try:
        found: dict[str, Any] = json.loads((test.logs / "finding.json").read_text())
    except (OSError, ValueError):
        why = "it ended without a finding" if timely else f"not done in {ONE_S} s"
        found = finding("failed", why, began)
    if found["outcome"] == "passed":
        shutil.rmtree(test.logs, ignore_errors=True)
    else:
        for image in test.logs.glob("*.img"):
            image.unlink()
    return found


def run_all(tests: Sequence[Test], jobs: int) -> dict[str, Any]:
    """Run plain tests, so many at a time. Whatever is left of one ends with its namespaces."""
    waiting = list(tests)
    running: dict[int, tuple[Test, float]] = {}
    found: dict[str, Any] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            test = waiting.pop(0)
            running[begin(test)] = test, time.monotonic()
        for pid, (test, began) in list(running.items()):
            late = time.monotonic() - began > ONE_S
            if late:
                os.killpg(pid, signal.SIGKILL)
            if os.waitpid(pid, 0 if late else os.WNOHANG)[0]:
                del running[pid]
                found[test.name] = outcome(test, began, not late)
                say(test, found[test.name])
        time.sleep(0.05)
    return found


def plain(spec_path: str) -> dict[str, Any]:
    """Everything that is wanted, two at a time where a test allows that."""
    tests = read(spec_path)
    # Asked once, by whom all tests come from.
    for feature in {feature for test in tests for feature in test.features}:
        has_feature(feature)
    found = run_all([test for test in tests if not test.alone], JOBS)
    found |= run_all([test for test in tests if test.alone], 1)
    # With nothing beside it, as emulation is slow and limits are not.
    again = [test for test in tests if found[test.name]["outcome"] == "failed"]
    return found | run_all(again, 1)


def ready(spec_path: str) -> dict[str, Any]:
    """Let tests prepare the machine as zdtm.py would: some load a profile while they check it."""
    tests = read(spec_path)
    for test in tests:
        test.clean_out()
    return {test.name: attempt(test.check) for test in tests}


def end(spec_path: str) -> dict[str, Any]:
    """End the services."""

    def run(test: Test) -> tuple[str, dict[str, Any]]:
        test.logs.mkdir(parents=True, exist_ok=True)
        pid = test.pid()
        found = {**attempt(test.end), "pid": pid}
        say(test, found)
        return test.name, found

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return dict(pool.map(run, read(spec_path)))


def say(test: Test, found: dict[str, Any]) -> None:
    """One line of progress."""
    print(f"{test.name} {found['outcome']} {found['seconds']} s {found['why']}", flush=True)


def read(path: str) -> list[Test]:
    """The tests of a specification."""
    return [Test(spec) for spec in json.loads(Path(path).read_text())]


def main() -> None:
    verb, spec, result = sys.argv[1:]
    found = {"plain": plain, "ready": ready, "end": end}[verb](spec)
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
