"""What systemd has answered on its bus, and what ``systemctl show`` said beside it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from rekernel.systemd import bus, units
from rekernel.systemd.units import Unit

_RECORDED = json.loads((Path(__file__).parents[1] / "fixtures/systemd-bus.json").read_text())
ASKED: list[tuple[str, str, str]] = [(unit, kind, name) for unit, kind, name in _RECORDED["asked"]]
RECEIVED = base64.b64decode(_RECORDED["received"])
NAMES = list(dict.fromkeys(unit for unit, _, _ in ASKED))
# Not splitlines(): one of them has a status text with vertical tabs and all.
SHOWN: dict[str, dict[str, str]] = {
    name: dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
    for name, block in zip(NAMES, _RECORDED["shown"].split("\n\n"), strict=True)
}


class RecordedBus:
    """Answers as systemd did."""

    def __enter__(self) -> RecordedBus:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get(self, wanted: list[tuple[str, str, str]]) -> list[Any]:
        """What was recorded."""
        return [ANSWERS[item] for item in wanted]


def _answers() -> dict[tuple[str, str, str], Any]:
    found = {}
    data = RECEIVED
    while data:
        size = bus._size(data)
        # Signals come in between.
        if data[1] in (bus._RETURN, bus._ERROR):
            serial, answer = bus._parse(data[:size])
            found[ASKED[serial - 1]] = None if isinstance(answer, bus.BusError) else answer[0]
        data = data[size:]
    return found


ANSWERS = _answers()


def show(monkeypatch: pytest.MonkeyPatch) -> dict[str, Unit]:
    """The recorded units, by name."""
    monkeypatch.setattr(bus, "Bus", RecordedBus)
    return {unit.name: unit for unit in units.show(NAMES)}
