"""Services that have done what they are for."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from carry.runtime_units.test_observe import unit
from rekernel.carry.network.entry import FILTER
from rekernel.carry.oneshot_units import observe as oneshot_units
from rekernel.systemd.units import Unit


def test_whose_part_is_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    def exited(*patterns: str) -> list[Unit]:
        names = ["wg-quick@wg0.service", "wg-quick@gone.service", "ufw.service"]
        return [unit(name) for name in names if any(fnmatch(name, pattern) for pattern in patterns)]

    monkeypatch.setattr(oneshot_units, "exited", exited)
    found = {item.unit.name: item.part for item in oneshot_units.observe(["wg0", "wg1"])}
    assert found == {"ufw.service": FILTER, "wg-quick@wg0.service": "wg0"}
