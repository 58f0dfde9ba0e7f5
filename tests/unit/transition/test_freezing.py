"""Control groups that freeze, or do not."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from rekernel.attempt import undo
from rekernel.errors import RekernelError
from rekernel.transition import freezing


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group that does not freeze by itself."""
    monkeypatch.setattr(freezing, "CGROUPS", tmp_path)
    monkeypatch.setattr(undo, "CGROUPS", tmp_path)
    group = tmp_path / "a.service"
    group.mkdir()
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    return group


def test_freezing(group: Path) -> None:
    def check() -> None:
        assert (group / "cgroup.freeze").read_text() == "1"
        (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")

    freezing.freeze(["/a.service"], check)
    assert "frozen 1" in (group / "cgroup.events").read_text()


def test_what_does_not_freeze(group: Path) -> None:
    with pytest.raises(RekernelError, match=r"^/a\.service does not freeze$") as error:
        freezing.freeze(["/a.service"], lambda: None, timeout=0)
    assert error.value.hint == "a process there is in uninterruptible sleep"


def test_nobody_need_wait_for_the_freeze(group: Path) -> None:
    def cancelled() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        freezing.freeze(["/a.service"], cancelled)


def test_a_control_group_that_vanishes_while_it_freezes(group: Path) -> None:
    with pytest.raises(RekernelError, match=r"^/a\.service ended while the upgrade was prepared$"):
        freezing.freeze(["/a.service"], lambda: shutil.rmtree(group))
    with pytest.raises(RekernelError, match=r"^/a\.service ended while"):
        freezing.freeze(["/a.service"], lambda: None)


def test_a_control_group_that_vanishes_while_it_is_open(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> str:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(Path, "read_text", gone)
    with pytest.raises(RekernelError, match=r"^/a\.service ended while"):
        freezing.freeze(["/a.service"], lambda: None)
    # Nothing in it that could stand still.
    monkeypatch.setattr(Path, "write_text", gone)
    undo.thaw("/a.service")
