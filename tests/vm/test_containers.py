"""Containers of podman, with a published port and with connections of their own."""

from __future__ import annotations

from vm.support import run_scenario


def test_containers() -> None:
    result = run_scenario("containers")
    (upgrade,) = result.upgrades
    verdicts: dict[str, list[str]] = {}
    for unit in upgrade.report["units"]:
        if unit["unit"].startswith("libpod-"):
            verdicts.setdefault(unit["verdict"], []).append(unit["reason"])
            assert unit["kept"] == (unit["verdict"] == "carried"), unit
    assert sorted(verdicts) == ["carried", "plumbing", "restarted"]
    names = sorted(reason.partition(":")[0] for reason in verdicts["carried"])
    assert names == ["container asker", "container counter"]
    assert verdicts["restarted"] == ["container terminal: it has a terminal (--tty)"]
    # Their monitors.
    assert len(verdicts["plumbing"]) == 3
    # The machine's own services go with them, whatever podman has mounted.
    redis = next(unit for unit in upgrade.report["units"] if unit["unit"] == "redis-server.service")
    assert redis["kept"], redis
