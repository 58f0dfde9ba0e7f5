"""Notes of ifupdown 0.8, as Debian 13 has it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rekernel.carry.network import ifupdown


def test_where_it_is_not_used(tmp_path: Path) -> None:
    assert ifupdown.files(tmp_path) == {}


def test_what_a_dhcp_client_serves_is_set_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ifstate").write_text("lo=lo\neth0=eth0\neth1=office\neth1:1=eth1:1\n")
    unit = SimpleNamespace(cgroup="/system.slice/networking.service")
    monkeypatch.setattr(ifupdown, "active", lambda *types, **only: ["networking.service"])
    monkeypatch.setattr(ifupdown, "show", lambda names: [unit])
    monkeypatch.setattr(ifupdown, "processes_of", lambda cgroup: {7: cgroup, 8: cgroup})
    commands = {7: b"dhclient\0-4\0-pf\0/run/dhclient.eth0.pid\0eth0\0"}
    monkeypatch.setattr(Path, "read_bytes", lambda path: commands[int(path.parts[2])], raising=True)
    commands[8] = b"dhcpcd: wlan0 [ip4] [ip6]\0"
    assert ifupdown.files(tmp_path) == {
        f"{tmp_path}/ifstate": "lo=lo\neth1=office\neth1:1=eth1:1\n",
        f"{tmp_path}/ifstate.lo": "lo\n",
        f"{tmp_path}/ifstate.eth1": "office\n",
        f"{tmp_path}/ifstate.eth1:1": "eth1:1\n",
    }
