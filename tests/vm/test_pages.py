"""Every byte of every kind of page: through a chain of upgrades, and through images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from rekernel_lab.client import HostClient
from vm.support import NEW, OLD, Guest, opened


@dataclass(frozen=True)
class Carried:
    """The guest with the pages service, and the client that talks to it all the time."""

    guest: Guest
    client: HostClient


@pytest.fixture(scope="module")
def carried() -> Iterator[Carried]:
    with opened("pages", "pages", limit_s=1500) as guest:
        guest.session.set_up(2048)
        prepared = guest.session.script("guest-prepare")
        assert prepared.exit_code == 0, prepared.log.read_text()
        guest.install_faults()
        with guest.client() as client:
            yield Carried(guest, client)


def check(carried: Carried, label: str) -> None:
    """All memory is right, and the client is content."""
    script = carried.guest.session.script("guest-check", label)
    assert script.exit_code == 0, f"{script.log.read_text()}; see {carried.guest.kept}"
    carried.client.check_alive()


def test_chain_in_one_boot(carried: Carried) -> None:
    guest = carried.guest
    pid = guest.main_pid("pages.service")
    for number, prefix in enumerate((NEW, OLD, NEW), 1):
        outcome = guest.upgrade(prefix)
        assert outcome.passed, guest.explain(outcome)
        check(carried, f"guest-check-{number}")
        report = outcome.report
        assert report["connections"]["lost"] == []
        assert report["memory"]["backend"] == "region"
        assert report["memory"]["drain"]["pages_lost"] == 0
        # The region is whole again: the next upgrade finds its pages there.
        region = guest.json("rekernel status --json")["region"]
        assert region["drain_bytes"] == 0
        assert region["ram_bytes"] + region["store_bytes"] == region["size"]
    assert guest.main_pid("pages.service") == pid


def test_image_backend(carried: Carried) -> None:
    guest = carried.guest
    outcome = guest.upgrade(NEW, "--memory=image")
    assert outcome.passed, guest.explain(outcome)
    check(carried, "guest-check-image")
    memory = outcome.report["memory"]
    assert memory["backend"] == "image"
    assert memory["pages_in_place"] == 0
    # Nothing is left of it on the disk.
    assert guest.text("ls /var/lib/rekernel/images 2>/dev/null || true") == ""


def test_the_client_saw_nothing(carried: Carried) -> None:
    carried.guest.finish(carried.client)
    verified = carried.guest.session.script("guest-verify")
    assert verified.exit_code == 0, verified.log.read_text()
