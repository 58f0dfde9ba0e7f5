from __future__ import annotations

import pytest
from said import Said

from rekernel.pid1 import console
from rekernel.pid1.console import Timeline, say


def test_a_lost_message_loses_nothing(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    say("one")
    assert said.lines == ["<5>rekernel: one"]
    monkeypatch.setattr(console, "_sinks", [(1 << 20, ""), *(console._sinks or [])])
    say("two")
    assert said.lines[1:] == ["<5>rekernel: two"]


def test_a_phase_is_timed_even_if_it_fails() -> None:
    timeline = Timeline()
    with timeline.phase("store"):
        pass
    with pytest.raises(ValueError, match="x"), timeline.phase("restore"):
        raise ValueError("x")
    (first, start, end), (second, later, latest) = timeline.phases
    assert (first, second) == ("store", "restore")
    assert start <= end <= later <= latest
