"""Thirty-four people at their terminals, over ssh, to the new kernel."""

from __future__ import annotations

from vm.support import run_scenario

# As in the scenario's host-client.
USERS = 34


def test_logins() -> None:
    result = run_scenario("logins")
    (upgrade,) = result.upgrades
    found = [unit for unit in upgrade.report["units"] if unit["unit"].startswith("session-")]
    assert all(unit["kept"] for unit in found if unit["verdict"] == "carried"), found
    users = [unit for unit in found if unit["reason"].startswith("user")]
    assert len(users) == USERS
    assert {unit["verdict"] for unit in users} == {"carried"}
    assert upgrade.report["connections"]["lost"] == []
