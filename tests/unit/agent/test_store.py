"""The handover store on the new kernel."""

from __future__ import annotations

from pathlib import Path

from rekernel.agent.store import map_store
from rekernel.carry.disks.entry import RootConfig
from rekernel.handover.config import AgentConfig


def test_a_store_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(bytes(8192))
    root = RootConfig("uuid", "ext4", 0, "")
    store = map_store(AgentConfig("id", root, (), None, None, str(path), (), ()), None)
    store.area[:4] = b"used"
    store.area.flush()
    assert store.path == str(path)
    assert path.read_bytes()[:4] == b"used"
