"""Services that are connected with each other, while bytes are on their way, to the new kernel and
back.
"""

from __future__ import annotations

from vm.support import run_scenario

CARRIED = (
    "bus-client",
    "halves",
    "nginx",
    "oddities",
    "php8.4-fpm",
    "sorter",
    "talker-client",
    "talker-server",
    "twins",
)


def test_between() -> None:
    result = run_scenario("between")
    assert len(result.upgrades) == 2
    for upgrade in result.upgrades:
        units = {unit["unit"]: unit for unit in upgrade.report["units"]}
        for name in CARRIED:
            assert units[f"{name}.service"]["kept"], units[f"{name}.service"]
        # Stopped processes, for one, in "oddities"; what the next kernel lacks is known before.
        light = units.get("udplite.service")
        assert (light is None) == (upgrade is not result.upgrades[0])
        assert light is None or (light["verdict"] == "restarted" and "UDP-Lite" in light["reason"])
        # Between two services: both ends of each are in the list.
        assert upgrade.report["connections"]["lost"] == []
