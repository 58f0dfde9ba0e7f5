"""Before anything is frozen: command line, clock, and a kernel that does not want to be loaded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rekernel import syscalls
from rekernel.errors import BlockedError
from rekernel.transition import staging


def test_clock() -> None:
    calibration = staging.TscCalibration()
    time.sleep(0.02)
    assert 100_000_000 < calibration.hertz() < 10_000_000_000


def test_a_clock_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "rdtsc", lambda: 5)
    with pytest.raises(BlockedError, match="the time stamp counter of this machine stands still"):
        staging.TscCalibration().hertz()


def test_what_is_kept_meanwhile_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SCRATCH", tmp_path / "run" / "upgrade")
    staging.make_scratch()
    staging.make_scratch()
    assert staging.SCRATCH.stat().st_mode & 0o777 == 0o700
