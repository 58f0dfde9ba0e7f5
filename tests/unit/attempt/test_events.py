"""One stream of events; and that a reader of the file sees the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekernel.attempt.events import Event, EventStream, JsonLines
from rekernel.attempt.state import Follower


def test_a_phase_is_told_from_begin_to_end() -> None:
    stream = EventStream()
    seen: list[Event] = []
    stream.subscribe(seen.append)
    with stream.phase("freeze"):
        stream.emit("note", "slow", unit="a.service")
    assert [(event.kind, event.name) for event in seen] == [
        ("begin", "freeze"),
        ("note", "slow"),
        ("end", "freeze"),
    ]
    assert seen[1].detail == {"unit": "a.service"}
    (phase,) = stream.phases
    assert (phase.name, phase.side) == ("freeze", "old")
    assert seen[0].at_ns <= seen[2].at_ns
    assert phase.start_ns <= seen[0].at_ns <= phase.end_ns
    seconds = (phase.end_ns - phase.start_ns) / 1e9
    assert seen[2].detail["seconds"] == pytest.approx(seconds, abs=1e-4)


@pytest.mark.parametrize("error", [ValueError("no room"), KeyboardInterrupt("no room")])
def test_a_phase_that_fails(error: BaseException) -> None:
    stream = EventStream()
    seen: list[Event] = []
    stream.subscribe(seen.append)
    with pytest.raises(type(error)), stream.phase("dump"):
        raise error
    assert (seen[-1].kind, seen[-1].name, seen[-1].detail) == (
        "failed",
        "dump",
        {"error": "no room"},
    )
    assert [phase.name for phase in stream.phases] == ["dump"]


def test_a_reader_of_the_file_sees_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    stream = EventStream()
    seen: list[Event] = []
    stream.subscribe(seen.append)
    stream.subscribe(JsonLines(path))
    reader = Follower(path)
    with stream.phase("one\n\u2028"):
        # At once: the terminal shows what is under way.
        assert reader.poll() == seen[:1]
        stream.emit("note", "x", numbers=[1, 2], nothing=None)
    assert reader.poll() == seen[1:]
    # The next attempt begins anew.
    JsonLines(path)
    assert Follower(path).poll() == []
