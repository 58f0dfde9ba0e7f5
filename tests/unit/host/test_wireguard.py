"""Tunnels, as wg tells of them."""

from __future__ import annotations

import pytest

from rekernel.errors import RekernelError
from rekernel.host import wireguard


def test_what_cannot_be_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str]) -> str:
        if argv == ["wg", "showconf", "wg0"]:
            return "[Interface]\n"
        raise RekernelError("Unable to access interface: No such device")

    monkeypatch.setattr(wireguard, "run", run)
    assert wireguard.observe(["wg0", "wg1"]) == {"wg0": "[Interface]\n"}
    assert wireguard.observe([]) == {}
