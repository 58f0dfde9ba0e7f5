"""The network as Debian's installer sets it up on a server: by ifupdown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rekernel_lab.images.guestfiles import GUEST_ADDRESS, HOST_ADDRESS, PREFIX_LENGTH
from vm.support import NEW, OLD, Guest, get, opened

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with opened(
        "ifupdown", "demo", limit_s=1200, memory_mib=3072, packages=("ifupdown",)
    ) as running:
        # However long it takes: an idle connection stays.
        running.text(
            "sed -i '/listen 80 /a keepalive_timeout 1h;' /etc/nginx/sites-available/default"
        )
        link = running.json("ip -json route show default")[0]["dev"]
        running.write(
            "/etc/network/interfaces",
            f"auto lo\niface lo inet loopback\nallow-hotplug {link}\n"
            f"iface {link} inet static\n"
            f"    address {GUEST_ADDRESS}/{PREFIX_LENGTH}\n    gateway {HOST_ADDRESS}\n",
        )
        running.text("systemctl --quiet disable systemd-networkd.service systemd-networkd.socket")
        running.text("systemctl --quiet mask systemd-networkd.service")
        running.session.set_up(1024)
        yield running


def network(guest: Guest) -> list[str]:
    """Addresses and routes."""
    lines = guest.text("ip -o address; ip route; ip -6 route").splitlines()
    # In the kernel's own order, and for a second after an interface came up.
    return sorted(line.replace(" tentative", "").strip() for line in lines)


@pytest.mark.parametrize("kernel", [NEW, OLD])
def test_upgrade(guest: Guest, kernel: str) -> None:
    assert guest.text("systemctl is-active networking.service") == "active"
    before = network(guest)
    redis = guest.main_pid("redis-server")
    with guest.connect(80) as connection:
        get(connection)
        outcome = guest.upgrade(kernel)
        assert outcome.passed, guest.explain(outcome)
        get(connection)
    assert guest.main_pid("redis-server") == redis
    assert network(guest) == before
    assert guest.text("systemctl --failed --no-legend") == ""
    assert guest.text("systemctl is-system-running") == "running"
    # What sets the interface up knows that it is.
    state = guest.text("ifquery --state").splitlines()
    assert len(state) == 2 and "lo=lo" in state
    guest.text("systemctl restart networking.service")
    assert network(guest) == before
