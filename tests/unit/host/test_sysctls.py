from __future__ import annotations

from pathlib import Path

import pytest

from rekernel.host import sysctls


def test_values_can_be_written_back_as_they_are() -> None:
    found = sysctls.values()
    assert found["kernel/pid_max"].isdigit()
    for name, value in found.items():
        assert value == Path("/proc/sys", name).read_text().strip()


def test_what_is_tuned_is_set_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "vm/swappiness" in sysctls.tuned()
    monkeypatch.setattr(sysctls, "_PROC_SYS", tmp_path)
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm/swappiness").write_text("60\n")
    (tmp_path / "vm/dirty_ratio").write_text("20\n")
    assert sysctls.tuned() == {"vm/swappiness": "60", "vm/dirty_ratio": "20"}
    wanted = {"vm/swappiness": "10", "vm/dirty_ratio": "20", "vm/not_here": "1"}
    assert sysctls.set_again(wanted) == []
    assert (tmp_path / "vm/swappiness").read_text() == "10"
    # What was right is not written.
    assert (tmp_path / "vm/dirty_ratio").read_text() == "20\n"


def test_what_the_kernel_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing can be written below a directory of the kernel's that tells what it is.
    monkeypatch.setattr(sysctls, "_PROC_SYS", Path("/proc/sys"))
    (problem,) = sysctls.set_again({"kernel/osrelease": "9.9"})
    assert problem.startswith("kernel/osrelease is not 9.9 as before: ")
