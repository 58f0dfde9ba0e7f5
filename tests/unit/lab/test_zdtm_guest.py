"""The part of `rekernel-lab zdtm` that runs in the guest: what it makes of a test's traces."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rekernel_lab import cache

SPEC = {
    "name": "static/pid00",
    "command": "./pid00 --pidfile=pid00.pid --outfile=pid00.out",
    "env": {},
    "dump_options": [],
    "restore_options": [],
    "features": [],
    "alone": False,
}

# Of criu 4.2.1, the last lines of both outcomes.
PASS = "22:51:02.730:    55: PASS\n"
FAIL = "22:51:02.728:    55: FAIL: pid00.c:53: (errno = 11 (Resource temporarily unavailable))\n"

# As a test does it: it says what it found when it is told to end.
DAEMON = """\
trap 'echo "22:51:02.730:    55: {word}" > {out}; exit 0' TERM
echo ready
while :; do sleep 0.05; done
"""


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    path = cache.REPOSITORY / "lab" / "zdtm" / "guest.py"
    spec = importlib.util.spec_from_file_location("zdtm_guest", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "LOGS", tmp_path / "logs")
    (tmp_path / "zdtm/static").mkdir(parents=True)
    return module


def test_verdict(guest: Any) -> None:
    test = guest.Test(SPEC)
    assert test.verdict() == (False, "")
    out = Path("zdtm/static/pid00.out")
    in_progress = Path("zdtm/static/pid00.out.inprogress")
    in_progress.write_text(PASS)
    # It has not ended yet.
    assert test.verdict() == (False, PASS.strip())
    out.write_text(FAIL)
    assert test.verdict() == (False, FAIL.strip())
    out.write_text(FAIL + PASS)
    assert test.verdict() == (True, PASS.strip())


def test_first_error_of_criu(guest: Any) -> None:
    test = guest.Test(SPEC)
    assert test.first_error("dump") == ""
    test.logs.mkdir(parents=True)
    (test.logs / "dump.log").write_text(
        "(00.010) Dumping fds\n"
        "(00.011) Error (criu/sk-inet.c:196): inet: Connected TCP socket\n"
        "(00.012) Error (criu/cr-dump.c:2128): Dumping FAILED.\n"
    )
    assert "sk-inet.c:196" in test.first_error("dump")
    with pytest.raises(guest.Failure, match=r"dump: exit code 3: Error \(criu/sk-inet"):
        test.run(["sh", "-c", "exit 3"], "dump", 10)


def test_a_step_that_does_not_end(guest: Any) -> None:
    test = guest.Test(SPEC)
    test.logs.mkdir(parents=True)
    with pytest.raises(guest.Failure, match=r"dump: not done in 0\.1 s"):
        test.run(["sleep", "60"], "dump", 0.1)


def test_clean_out(guest: Any) -> None:
    static = Path("zdtm/static")
    for name in ("pid00", "pid00.desc", "pid00.hook", "pid001.out", "pid00.pid", "pid00.out"):
        (static / name).touch()
    (static / "pid00.dir.test").mkdir()
    (static / "pid00.dir.test" / "file").touch()
    guest.Test(SPEC).clean_out()
    left = sorted(path.name for path in static.iterdir())
    assert left == ["pid00", "pid00.desc", "pid00.hook", "pid001.out"]


@pytest.mark.parametrize(("word", "outcome"), [("PASS", "passed"), ("FAIL: pid00.c", "failed")])
def test_end(guest: Any, word: str, outcome: str, tmp_path: Path) -> None:
    script = DAEMON.format(word=word, out="zdtm/static/pid00.out")
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        Path("zdtm/static/pid00.pid").write_text(str(process.pid))
        Path("spec").write_text(json.dumps([SPEC]))
        found = guest.end("spec")["static/pid00"]
    assert (found["outcome"], found["pid"]) == (outcome, process.pid)
    # Once more: nothing is there to be ended.
    Path("zdtm/static/pid00.out").write_text(PASS)
    found = guest.end("spec")["static/pid00"]
    assert found["outcome"] == "failed"
    assert found["why"].startswith("end: the process is gone")


def test_a_process_that_stays(guest: Any) -> None:
    with pytest.raises(guest.Failure, match=r"end: process \d+ was still there after 0\.1 s"):
        guest.wait_gone(os.getpid(), 0.1, "end")


def test_a_zombie_is_gone(guest: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        deadline = time.monotonic() + 20
        while guest.alive(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        guest.wait_gone(process.pid, 1, "end")


def test_a_test_that_cannot_run_here(guest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "has_feature", lambda feature: feature != "timens")
    with pytest.raises(guest.Skipped, match="criu has no feature timens on this kernel"):
        guest.Test({**SPEC, "features": ["aio_remap", "timens"]}).check()
    skip = Path("zdtm/static/pid00.checkskip")
    skip.write_text("#!/bin/sh\nexit 1\n")
    skip.chmod(0o755)
    with pytest.raises(guest.Skipped, match="its own check says that it cannot run here"):
        guest.Test(SPEC).check()
    skip.write_text("#!/bin/sh\nexit 0\n")
    guest.Test(SPEC).check()


def test_outcome_of_one_that_was_late_or_left_nothing(guest: Any) -> None:
    test = guest.Test(SPEC)
    test.logs.mkdir(parents=True)
    (test.logs / "pages-1.img").touch()
    assert guest.outcome(test, time.monotonic(), False)["why"] == f"not done in {guest.ONE_S} s"
    assert not list(test.logs.iterdir())
    assert "without a finding" in guest.outcome(test, time.monotonic(), True)["why"]
    (test.logs / "finding.json").write_text(json.dumps(guest.finding("passed", "", 0.0)))
    assert guest.outcome(test, time.monotonic(), True)["outcome"] == "passed"
    assert not test.logs.exists()
