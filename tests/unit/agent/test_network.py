"""Interfaces by their address, and loopback without a program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


_LOOPBACK = """
import sys
sys.path.insert(0, sys.argv[1])
from rekernel.agent import network
network.loopback_up()
network.loopback_up()
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="needs root and network namespaces",
)
def test_loopback() -> None:
    script = f"{sys.executable} -c '{_LOOPBACK}' {SOURCE} && ip -brief link show lo"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "LOOPBACK,UP" in done.stdout
