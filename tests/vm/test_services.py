"""Databases, a cache, interpreters and pending jobs, as Debian ships them."""

from __future__ import annotations

from vm.support import SCENARIOS, run_scenario


def test_services() -> None:
    result = run_scenario("services")
    (upgrade,) = result.upgrades
    units = {unit["unit"]: unit for unit in upgrade.report["units"]}
    for name in (SCENARIOS / "services" / "units").read_text().split():
        assert units[f"{name}.service"]["kept"], units[f"{name}.service"]
    assert upgrade.report["connections"]["lost"] == []
    # What criu does not keep by itself is among what is compared.
    not_kept_by_criu = ("affinity", "I/O priority", "core dump filter", "timer slack")
    lost = [
        line
        for line in upgrade.report["differences"]
        if any(name in line for name in not_kept_by_criu)
    ]
    assert lost == []
