"""The main job on a machine with UEFI: it knows memory, variables and time by other ways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vm.support import NEW, OLD, Guest, opened

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with opened("uefi", "demo", limit_s=1800, memory_mib=4096, uefi=True) as running:
        running.session.set_up(1024)
        prepared = running.session.script("guest-prepare")
        assert prepared.exit_code == 0, prepared.log.read_text()
        yield running


def variables(guest: Guest) -> list[str]:
    """The names of what the firmware remembers."""
    return guest.text("ls /sys/firmware/efi/efivars").split()


@pytest.mark.parametrize("kernel", [NEW, OLD])
def test_upgrade(guest: Guest, kernel: str) -> None:
    known = variables(guest)
    assert known
    with guest.client() as client:
        outcome = guest.upgrade(kernel)
        assert outcome.passed, guest.explain(outcome)
        guest.finish(client)
    assert outcome.report["memory"]["pages_in_place"] > 1000
    assert variables(guest) == known
    assert guest.text("systemctl is-system-running") == "running"
    verified = guest.session.script("guest-verify", f"guest-verify-{kernel}")
    assert verified.exit_code == 0, verified.log.read_text()
