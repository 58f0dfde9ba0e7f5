"""What the benchmark of the verbs makes of its measurements."""

from __future__ import annotations

import json

import pytest

from rekernel_lab.bench.verbs import AFTER, BEFORE, Found, Measurement, package_of, table
from rekernel_lab.errors import LabError


def measured(version: str, factor: float) -> Measurement:
    raw = {
        "check": 2 * factor,
        "plan": 1 * factor,
        "first": {"before": 3 * factor, "all": 3 * factor},
        "again": {"before": 3 * factor, "plan": factor, "between": 0.5, "all": 4 * factor + 0.5},
    }
    return Measurement.parse(version, json.dumps(raw))


def test_ratios_are_of_adjacent_rounds() -> None:
    found = Found({"cpus": 2})
    assert found.ratios() == []
    # The machine was busy in the second round.
    for slower in (1.0, 3.0, 1.0):
        found.measurements += [measured(BEFORE, 2 * slower), measured(AFTER, slower)]
    ratios = {ratio.name: (ratio.value, ratio.reached) for ratio in found.ratios()}
    assert ratios["plan, after / before"] == (0.5, True)
    assert ratios["upgrade to the freeze, first, after / before"] == (0.5, True)
    assert ratios["upgrade to the freeze, again, after / before"] == (4.5 / 8.5, False)
    lines = [line.split() for line in table(found).splitlines()]
    assert ["plan", "2.00", "1.00", "2.00/1.00,", "6.00/3.00,", "2.00/1.00"] in lines
    # By phase.
    assert ["plan", "2.00", "1.00"] in lines
    assert json.loads(json.dumps(found.to_json()))["measurements"][1]["version"] == AFTER


@pytest.mark.parametrize("text", ["", "{}", '{"check": 1, "plan": 2, "first": {}, "again": {}}'])
def test_what_is_no_measurement(text: str) -> None:
    with pytest.raises(LabError, match=r"verbs\.py said "):
        Measurement.parse(BEFORE, text)


def test_a_package_is_taken_as_it_is() -> None:
    with package_of("/x/y.deb") as path:
        assert str(path) == "/x/y.deb"
