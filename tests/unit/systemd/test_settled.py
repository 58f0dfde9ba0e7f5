"""Services that have done what they are for."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from rekernel.handover.manifest import FILTER
from rekernel.systemd import settled
from rekernel.systemd.units import Unit

from .test_volatile import unit


def test_whose_part_is_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    def exited(*patterns: str) -> list[Unit]:
        names = ["wg-quick@wg0.service", "wg-quick@gone.service", "ufw.service"]
        return [unit(name) for name in names if any(fnmatch(name, pattern) for pattern in patterns)]

    monkeypatch.setattr(settled, "exited", exited)
    found = {item.unit.name: item.part for item in settled.observe(["wg0", "wg1"])}
    assert found == {"ufw.service": FILTER, "wg-quick@wg0.service": "wg0"}
