"""Thirty-four people at their terminals, over ssh, to the new kernel."""

from __future__ import annotations

from vm.support import run_scenario

# As in the scenario's host-client.
USERS = 34
# Who has something below `systemd --user`: windows of tmux, services.
BUSY = ("lingerer", "user9", "user10", "user16")


def test_logins() -> None:
    result = run_scenario("logins")
    (upgrade,) = result.upgrades
    found = [unit for unit in upgrade.report["units"] if unit["unit"].startswith("session-")]
    assert all(unit["kept"] for unit in found if unit["verdict"] == "carried"), found
    users = [unit for unit in found if unit["reason"].startswith("user")]
    assert len(users) == USERS
    assert {unit["verdict"] for unit in users} == {"carried"}
    managers = [unit for unit in upgrade.report["units"] if unit["unit"].startswith("user@")]
    carried = [unit for unit in managers if unit["verdict"] == "carried"]
    assert all(unit["kept"] for unit in carried), carried
    # The others run nothing but themselves.
    assert {unit["verdict"] for unit in managers} == {"carried", "plumbing"}
    assert {unit["reason"] for unit in carried} == {f"{user}'s own services" for user in BUSY}
    assert upgrade.report["connections"]["lost"] == []
