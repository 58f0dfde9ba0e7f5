"""From the initrd to the root file system."""

from __future__ import annotations

import json
from pathlib import Path

from said import Said

from rekernel.agent import boot
from rekernel.pid1 import console


def test_a_failure_is_told_once(tmp_path: Path, said: Said) -> None:
    path = tmp_path / "agent.json"
    console.miss("md0 lacks sdb")
    boot.tell_failure("TimeoutError: x", str(path))
    told = {
        "schema": 1,
        "handover": "failed",
        "reason": "TimeoutError: x",
        "missing": ["md0 lacks sdb"],
    }
    assert json.loads(path.read_text()) == told
    boot.tell_failure("another", str(path))
    assert json.loads(path.read_text()) == told
    boot.tell_failure("another", str(tmp_path / "nowhere" / "agent.json"))
    assert len(said.lines) == 2
    assert "that is in no report: No such file or directory" in said.lines[1]


def test_what_a_panic_does(tmp_path: Path, said: Said) -> None:
    setting = tmp_path / "panic"
    setting.write_text("30\n")
    boot.set_panic("", str(setting))
    assert setting.read_text() == "30\n"
    boot.set_panic("-1", str(setting))
    assert setting.read_text() == "-1"
    boot.set_panic("0", str(tmp_path / "nowhere" / "panic"))
    assert "kernel.panic is not as it was: " in said.lines[0]


def test_modules_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "b.ko").write_bytes(b"no module")
    failed = boot.load_modules([[str(tmp_path / "a.ko"), str(tmp_path / "b.ko")], []], {})
    assert len(failed) == 2
    assert "a.ko: No such file or directory" in failed
    # Operation not permitted, or Exec format error: this kernel's word.
    assert [line for line in failed if line.startswith("b.ko: ")]


def test_prefetch_passes_over_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    boot.prefetch([str(tmp_path / "gone"), str(tmp_path / "file")])
