"""Interfaces by their address, and loopback without a program."""

from __future__ import annotations

from pathlib import Path

from rekernel.agent import network
from rekernel.handover.manifest import Link

from .conftest import Said

SOURCE = Path(__file__).parents[3] / "src"


def test_an_interface_that_is_gone(said: Said) -> None:
    # A locally administered address that nothing here has.
    network._rename([Link("eth0", "02:ff:ff:ff:ff:fe")], timeout=0)
    assert said.lines == [
        "<5>rekernel: no network interface has the address 02:ff:ff:ff:ff:fe (eth0)"
    ]
