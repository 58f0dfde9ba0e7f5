"""Addresses that are lent: each of Debian's clients gets its own again, and keeps it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from rekernel_lab.vm.netns import FAR_ADDRESS
from vm.support import NEW, OLD, Guest, get, opened

pytestmark = pytest.mark.slow

# What dnsmasq lends for at least, and some more.
_LEASE_S = 150


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with opened(
        "dhcp",
        "demo",
        limit_s=2400,
        memory_mib=3072,
        packages=("ifupdown", "dhcpcd-base", "network-manager"),
    ) as running:
        # However long it takes: an idle connection stays.
        running.text(
            "sed -i '/listen 80 /a keepalive_timeout 1h;' /etc/nginx/sites-available/default"
        )
        running.text("systemctl --quiet disable NetworkManager.service")
        running.write("/etc/network/interfaces", "auto lo\niface lo inet loopback\n")
        with running.session.machine.state.namespace.dhcp():
            _networkd(running)
            running.session.set_up(1024)
            yield running


def _networkd(guest: Guest) -> None:
    guest.write(
        "/etc/systemd/network/10-lab.network",
        "[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\n",
    )


def _ifupdown(guest: Guest) -> None:
    guest.text("systemctl --quiet mask systemd-networkd.service systemd-networkd.socket")
    link = guest.json("ip -json route show default")[0]["dev"]
    guest.write(
        "/etc/network/interfaces",
        f"auto lo\niface lo inet loopback\nallow-hotplug {link}\niface {link} inet dhcp\n"
        f"iface {link} inet6 auto\n",
    )
    guest.session.reboot()


def _network_manager(guest: Guest) -> None:
    link = guest.json("ip -json route show default")[0]["dev"]
    guest.write("/etc/network/interfaces", "auto lo\niface lo inet loopback\n")
    guest.write(
        "/etc/NetworkManager/system-connections/lab.nmconnection",
        f"[connection]\nid=lab\ntype=ethernet\ninterface-name={link}\n"
        "[ipv4]\nmethod=auto\n[ipv6]\nmethod=auto\n",
    )
    guest.text("chmod 600 /etc/NetworkManager/system-connections/lab.nmconnection")
    guest.text("systemctl --quiet enable NetworkManager.service")
    guest.session.reboot()


def network(guest: Guest) -> tuple[list[tuple[str, str, bool]], list[str], set[tuple[str, str]]]:
    """Addresses, with their interface and whether they are lent; routes, and those of IPv6."""
    addresses = [
        (link["ifname"], item["local"], item.get("dynamic", False))
        for link in guest.json("ip -json address")
        for item in link["addr_info"]
    ]
    # What has been heard of a router since may be there beside what we have set up.
    to = {(route["dst"], route.get("gateway", "")) for route in guest.json("ip -6 -json route")}
    return sorted(addresses), sorted(guest.text("ip route").splitlines()), to


def own_address(guest: Guest) -> str:
    """What the guest has made of what the router announced, once it has the way by it, too."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        links = guest.json("ip -6 -json address show scope global")
        addresses = [item for link in links for item in link["addr_info"]]
        if guest.text("ip -6 route show default") and addresses:
            return str(addresses[0]["local"])
        time.sleep(1)
    raise AssertionError("no router was heard")


def keep_asking(connections: Sequence[socket.socket], seconds: float) -> None:
    """Every now and then, as somebody who uses it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for connection in connections:
            get(connection)
        time.sleep(1)


@pytest.mark.parametrize(
    ("configure", "kernel"),
    [(lambda guest: None, NEW), (_ifupdown, OLD), (_network_manager, NEW)],
    ids=["networkd", "ifupdown", "NetworkManager"],
)
def test_an_address_that_is_lent(
    guest: Guest, configure: Callable[[Guest], None], kernel: str
) -> None:
    configure(guest)
    address = own_address(guest)
    before = network(guest)
    assert any(lent for _, _, lent in before[0])
    redis = guest.main_pid("redis-server")
    namespace = guest.session.machine.state.namespace
    with (
        guest.connect(80) as connection,
        namespace.connect((address, 80), 60, FAR_ADDRESS) as far,
    ):
        get(connection)
        get(far)
        outcome = guest.upgrade(kernel)
        assert outcome.passed, guest.explain(outcome)
        # Also once whoever has lent the address would want it back.
        keep_asking((connection, far), _LEASE_S)
    assert guest.main_pid("redis-server") == redis
    addresses, routes, routes6 = network(guest)
    assert (routes, routes6) == before[1:]
    assert {*addresses} >= {*before[0]}
    # Where ifupdown asks for autoconfiguration and dhcpcd does it, the kernel may do so as well if
    # a router is heard at that moment; here the interface is up already when they begin.
    assert all(":" in address and lent for _, address, lent in {*addresses} - {*before[0]})
    assert guest.text("systemctl --failed --no-legend") == ""
    assert guest.text("systemctl is-system-running") == "running"
