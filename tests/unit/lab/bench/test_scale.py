"""What the benchmark of scale makes of its measurements."""

from __future__ import annotations

import json

from rekernel_lab.bench.scale import (
    ALONE,
    LOADS,
    MORE,
    SPREAD,
    Alone,
    Found,
    Load,
    Measurement,
    table,
)


def measured(load: Load, blackout: float) -> Measurement:
    return Measurement(load, blackout, {"dump": 1.0, "restore": blackout - 1}, 1 << 20, 0)


def test_ratio_and_table() -> None:
    found = Found({"cpus": 2})
    assert found.ratios() == []
    found.measurements += [measured(ALONE, 8.0), measured(ALONE, 10.0), measured(MORE, 18.0)]
    (ratio,) = found.ratios()
    assert (ratio.value, ratio.reached) == (2.0, False)
    lines = table(found).splitlines()
    assert any(line.split() == ["101", "processes", "18.00", "2.00", "18.00"] for line in lines)
    assert any("NOT REACHED" in line for line in lines)
    assert json.loads(json.dumps(found.to_json()))["measurements"][2]["load"]["processes"] == 101


def test_the_same_processes_in_several_trees() -> None:
    found = Found({})
    found.measurements += [measured(ALONE, 8.0), measured(MORE, 14.0), measured(SPREAD, 10.0)]
    assert [(item.value, item.reached) for item in found.ratios()] == [(1.75, False), (1.25, True)]
    assert len(SPREAD.unit_names()) * SPREAD.processes == 100


def test_how_much_is_criu_itself() -> None:
    found = Found({})
    found.measurements += [measured(ALONE, 8.0), measured(MORE, 14.0)]
    found.criu_alone += [Alone(ALONE, 0.25, 0.25), Alone(MORE, 4.0, 1.5)]
    own = found.ratios()[-1]
    assert (own.name, own.value) == ("growth by 100 processes / criu's own", 1.2)
    assert own.reached
    assert "101 processes: dump 4.00, restore 1.50" in table(found).splitlines()
    # Not with figures that cannot be.
    found.criu_alone[1] = Alone(MORE, 0.1, 0.1)
    assert len(found.ratios()) == 1


def test_instances_tell_what_they_carry() -> None:
    assert ALONE.unit_names() == ["load@0-1-0.service"]
    names = [name for load in LOADS for name in load.unit_names() if load.connections]
    assert set(names) == {"load@0-1-7000.service"}
    assert len({load.name for load in LOADS}) == len(LOADS)
