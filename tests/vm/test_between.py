"""Services that are connected with each other, while bytes are on their way, to the new kernel and
back.
"""

from __future__ import annotations

from rekernel_lab import assemble, scenario
from rekernel_lab.progress import Progress
from rekernel_lab.runner import Runner
from vm.support import SCENARIOS

CARRIED = ("bus-client", "nginx", "php8.4-fpm", "talker-client", "talker-server")


def test_between() -> None:
    between = scenario.load(SCENARIOS / "between")
    result = Runner(between, Progress(terminal=False), assemble.Options(), None).run()
    assert result.passed, f"{result.error}; logs in {result.output}"
    assert len(result.upgrades) == 2
    for upgrade in result.upgrades:
        units = {unit["unit"]: unit for unit in upgrade.report["units"]}
        for name in CARRIED:
            assert units[f"{name}.service"]["kept"], units[f"{name}.service"]
        # Between two services: both ends of each are in the list.
        assert upgrade.report["connections"]["lost"] == []
