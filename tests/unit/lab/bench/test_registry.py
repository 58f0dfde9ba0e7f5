"""What the blackout benchmark makes of its measurements."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from rekernel_lab.bench import registry as bench
from rekernel_lab.bench.jump import Parting
from rekernel_lab.bench.result import (
    COLD,
    IMAGE,
    IN_PLACE,
    Found,
    Measurement,
    phases_of_blackout,
    table,
)
from rekernel_lab.cli import parser
from rekernel_lab.errors import LabError

GIB = 1 << 30


def found() -> Found:
    result = Found({"kernel": "7.3.4", "cpus": 2})
    for size, blackout in ((64, 10.0), (2048, 11.0)):
        phases = {"dump": 1.0, "restore": blackout - 1}
        one = Measurement(IN_PLACE, size, blackout + 1, blackout, phases, GIB, GIB // 1000)
        result.measurements.append(one)
        result.measurements.append(Measurement(IMAGE, size, 60.0, size / 50, {}, GIB, GIB))
    result.measurements.append(Measurement(COLD, 64, 70.0))
    result.floor_s = [5.0, 4.0]
    return result


def test_ratios() -> None:
    ratios = {ratio.name: ratio for ratio in found().ratios()}
    assert [round(ratio.value, 3) for ratio in ratios.values()] == [1.1, 3.724, 2.444, 0.001]
    assert [ratio.reached for ratio in ratios.values()] == [True, False, True, True]


def test_only_what_was_measured_has_a_ratio() -> None:
    assert Found().ratios() == []
    one = Found(measurements=[Measurement(IN_PLACE, 64, 9, 8.0)])
    assert one.ratios() == []
    assert "in place" in table(one)


def test_the_round_in_the_middle() -> None:
    rounds = [
        Measurement(IN_PLACE, 64, 9.0, blackout, {"freeze": blackout})
        for blackout in (9.0, 5.0, 6.0, 30.0)
    ]
    found = Found(measurements=[*rounds, Measurement(COLD, 64, 20.0)])
    assert [one.blackout_s for one in found.typical()] == [6.0]
    assert "6.00" in table(found).partition("blackout by phase")[2]


def test_median_of_rounds() -> None:
    result = found()
    result.measurements += [Measurement(IN_PLACE, 64, 9, value) for value in (8.0, 30.0)]
    assert result.blackout(IN_PLACE, 64) == 10.0


def test_table_and_json_have_everything() -> None:
    text = table(found())
    assert "NOT REACHED" in text
    assert "cold reboot" in text
    assert "floor: reboot(2) to /init: 5.00, 4.00 s" in text
    document = json.loads(json.dumps(found().to_json()))
    assert document["schema"] == 1
    assert len(document["measurements"]) == 5
    assert document["measurements"][0]["phases"]["dump"] == 1.0


def test_phases_are_cut_to_the_blackout() -> None:
    second = 10**9
    report = {
        "frozen_ns": 10 * second,
        "resumed_ns": 20 * second,
        "phases": [
            {"name": "plan", "start_ns": 0, "end_ns": 9 * second},
            {"name": "freeze", "start_ns": 9 * second, "end_ns": 11 * second},
            {"name": "restore", "start_ns": 12 * second, "end_ns": 25 * second},
        ],
    }
    assert phases_of_blackout(report) == {"freeze": 1.0, "restore": 8.0}


def test_sizes_on_the_command_line() -> None:
    arguments = parser().parse_args(["bench", "blackout", "--sizes", "64,512", "--rounds", "2"])
    assert (arguments.sizes, arguments.rounds) == ((64, 512), 2)
    with pytest.raises(SystemExit):
        parser().parse_args(["bench", "blackout", "--sizes", "64,x"])


def ended(code: int) -> Parting:
    words = ["sh", "-c", f"echo why it failed; exit {code}"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    process.wait()
    return Parting(["jump.py", "floor"], process)


def test_what_failed_in_the_guest_is_told_in_its_words() -> None:
    with pytest.raises(LabError, match=r"jump.py floor: exited with 1\nwhy it failed"):
        ended(1).check()


@pytest.mark.parametrize("code", [0, 255])
def test_a_guest_that_goes_away_is_no_failure(code: int) -> None:
    ended(code).check()


def test_all_benchmarks_are_known() -> None:
    modules = Path(str(bench.__file__)).parent.glob("*.py")
    registered = sum("\n@benchmark(" in path.read_text() for path in modules)
    assert registered
    assert len(bench.names()) == registered
