"""What takes far too long is interrupted, and so is what stands still on the way out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from rekernel.agent import resume
from rekernel.pid1 import background as beside
from rekernel.pid1 import watchdog


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    watchdog.stop()
    signal.signal(signal.SIGALRM, before)


def test_a_system_call_that_does_not_return() -> None:
    reading, writing = os.pipe()
    thread = beside.Background(lambda: os.read(reading, 1))
    began = time.monotonic()
    watchdog.allow(0.1)
    with pytest.raises(watchdog.StuckError, match=r"stands still in .*pid1\.background\.run:\d+"):
        thread.join()
    assert time.monotonic() - began < 10
    watchdog.stop()
    os.write(writing, b"x")
    thread.join()
    os.close(reading)
    os.close(writing)


def test_the_way_out_is_interrupted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_AGAIN_S", 0.1)
    watchdog.allow(0.1)
    for _ in range(2):
        with pytest.raises(watchdog.StuckError):
            time.sleep(10)


def test_what_is_done_is_not_interrupted() -> None:
    watchdog.allow(0.1)
    watchdog.stop()
    time.sleep(0.2)


def test_steps_that_must_not_keep_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(resume, "miss", said.append)
    monkeypatch.setattr(watchdog, "STEP_S", 0.1)
    resume._go_on_after("the first step", lambda: time.sleep(10))
    resume._go_on_after("the second step", lambda: said.append("done"))
    assert said[0].startswith("the first step: it stands still in ")
    assert said[1:] == ["done"]
    # Nothing is left that could interrupt what follows.
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
