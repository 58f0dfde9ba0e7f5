"""The main job: the demo scenario, exactly as `make demo` runs it."""

from __future__ import annotations

import json

from vm.support import run_scenario

CARRIED = ("demo.service", "nginx.service", "redis-server.service")


def test_demo() -> None:
    result = run_scenario("demo")
    report = result.upgrades[0].report
    units = {unit["unit"]: unit for unit in report["units"]}
    for name in CARRIED:
        assert units[name]["kept"], units[name]
        assert units[name]["main_pid_before"] == units[name]["main_pid_after"] != 0
    # The three clients' connections, known by their 4-tuples.
    clients = json.loads((result.output / "clients.json").read_text())
    assert all(client["requests"] > 8 for client in clients.values())
    assert len(report["connections"]["before"]) >= len(clients)
    assert report["connections"]["lost"] == []
    # What users would call a copy: hardly any of it.
    memory = report["memory"]
    assert memory["backend"] == "region"
    assert memory["pages_in_place"] * 4096 >= 300_000_000
    assert memory["bytes_copied"] < memory["resident_bytes"] / 20
    assert memory["drain"]["pages_lost"] == 0
    worst = max(client["worst_gap_s"] for client in clients.values())
    # A peer that got no answer doubles the time to its next attempt: up to twice as long.
    assert report["blackout_s"] - 1 < worst < 2 * report["blackout_s"] + 30
