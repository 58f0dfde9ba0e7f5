"""The history on disk, and what is predicted from it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rekernel.errors import NothingToDoError, RekernelError, RolledBackError, UsageError
from rekernel.report import builder, layout
from rekernel.report.history import History
from rekernel.report.prediction import Copied, boot_seconds, predict


def report(identifier: str, **more: Any) -> dict[str, Any]:
    return builder.undone({"id": identifier}, RolledBackError("stopped")) | more


def test_newest_first(tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    assert history.ids() == []
    for identifier in ("20261122-100000", "20261123-090000", "20261122-110000"):
        history.record(report(identifier), tmp_path / "none")
    ids = ["20261123-090000", "20261122-110000", "20261122-100000"]
    assert [item["id"] for item in history.reports()] == ids
    assert history.get()["id"] == ids[0]
    assert history.get(ids[2])["id"] == ids[2]


def test_what_is_not_there(tmp_path: Path) -> None:
    history = History(tmp_path)
    with pytest.raises(NothingToDoError, match="no upgrade was tried") as caught:
        history.get()
    assert caught.value.exit_code == 6
    for wrong in ("20261122-100000", "../../etc", "x"):
        with pytest.raises(UsageError, match="no report"):
            history.get(wrong)


def test_a_full_disk_is_found_out_at_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RekernelError, match="cannot be written: No space left"):
        History(tmp_path).begin("20261122-100000", {})
    # There was no attempt then, and nothing keeps room for its report.
    assert History(tmp_path).unfinished() == []
    assert list(tmp_path.iterdir()) == []


def test_damaged_reports_are_passed_over(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.record(report("20261122-100000"), tmp_path / "none")
    (tmp_path / "20261122-110000").mkdir()
    (tmp_path / "20261122-110000" / "report.json").write_text('{"schema": 1, ')
    (tmp_path / "20261122-120000").mkdir()
    (tmp_path / "20261122-120000" / "report.json").write_text('{"schema": 99}')
    assert [item["id"] for item in history.reports()] == ["20261122-100000"]


def test_attempts_without_a_report(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.begin("20261122-100000", {"boot_id": "a", "old_release": "6.12"})
    history.begin("20261122-110000", {"boot_id": "b"})
    assert [item["id"] for item in history.unfinished()] == ["20261122-110000", "20261122-100000"]
    history.record(report("20261122-110000"), tmp_path / "none")
    assert [item["boot_id"] for item in history.unfinished()] == ["a"]


def test_room_for_reports_that_nobody_writes(tmp_path: Path) -> None:
    history = History(tmp_path)
    for identifier in ("20261122-100000", "20261122-110000", "20261122-120000"):
        history.begin(identifier, {"boot_id": "a"})
    # Of the first there is a report, and another one was begun; the second is damaged.
    history.record(report("20261122-100000"), tmp_path / "none")
    (tmp_path / "20261122-100000" / ".report.json.new").touch()
    (tmp_path / "20261122-110000" / "attempt.json").write_text("{")
    history.release_room()
    left = [path.parent.name for path in tmp_path.glob("*/.report.json.new")]
    assert left == ["20261122-120000"]


def test_logs_are_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("restore/nginx/restore.log", "upgrade/work/nginx/dump.log", "pager.log"):
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    (run / "empty.log").touch()
    directory = History(tmp_path / "history").record(report("20261122-100000"), run)
    found = {path.name: path.read_text() for path in (directory / "logs").iterdir()}
    assert found == {
        "restore-nginx-restore.log": "content of restore/nginx/restore.log",
        "dump-nginx-dump.log": "content of upgrade/work/nginx/dump.log",
        "pager.log": "content of pager.log",
    }
    assert json.loads((directory / "report.json").read_text())["schema"] == 1


def test_old_attempts_go_away(tmp_path: Path) -> None:
    history = History(tmp_path)
    for number in range(53):
        history.record(report(f"20261122-10{number:04}"), tmp_path / "none")
    assert len(history.ids()) == 50
    assert history.ids()[-1] == "20261122-100003"


def past(blackout: float, trees: int = 2, backend: str = "region", outcome: str = "done") -> Any:
    units = [{"verdict": "carried"}] * trees + [{"verdict": "plumbing"}]
    return {
        "blackout_s": blackout,
        "backend": backend,
        "outcome": outcome,
        "units": units,
        "memory": {"resident_bytes": 512 << 20},
    }


def test_prediction_is_the_median_of_the_past() -> None:
    history = [past(4.0), past(9.0), past(5.0), past(None), past(50.0, outcome="failed")]  # type: ignore[arg-type]
    found = predict(backend="region", trees=2, resident_bytes=0, past=history)
    assert (found.seconds, found.basis, found.samples) == (5.0, "history", 3)
    assert "3 upgrades" in found.explanation


def test_prediction_grows_with_the_trees_but_not_with_memory_in_place() -> None:
    found = predict(backend="region", trees=8, resident_bytes=64 << 30, past=[past(6.0)])
    assert found.seconds == 9.0
    assert "the last upgrade" in found.explanation


def test_prediction_of_images_grows_with_memory() -> None:
    history = [past(10.0, backend="image"), past(1.0)]
    found = predict(backend="image", trees=2, resident_bytes=(1 << 30) + (512 << 20), past=history)
    assert (found.seconds, found.samples) == (20.0, 1)


def test_prediction_counts_what_containers_write() -> None:
    second = 150 << 20
    history = [past(6.0) | {"memory": {"container_bytes": 2 * second}}]
    found = predict(
        backend="region", trees=2, resident_bytes=0, container_bytes=5 * second, past=history
    )
    assert found.seconds == 9.0
    without = predict(backend="region", trees=2, resident_bytes=0)
    more = predict(backend="region", trees=2, resident_bytes=0, container_bytes=second)
    assert more.seconds == without.seconds + 1


def copying(store: int, disk: int, seconds: float) -> Any:
    """A past upgrade that took 10 s, some of them to copy so much."""
    memory = {"bytes_copied": store + disk, "disk_bytes": disk}
    phases = [{"name": "dump", "seconds": seconds}, {"name": "kexec and kernel boot", "seconds": 5}]
    return past(10.0) | {"memory": memory, "phases": phases}


def test_prediction_counts_what_is_copied() -> None:
    """What is left in place costs nothing, but shared memory does; it was left out."""
    second = 500 << 20
    none = predict(backend="region", trees=2, resident_bytes=0)
    store = predict(backend="region", trees=2, resident_bytes=0, copied=Copied(2 * second))
    disk = predict(backend="region", trees=2, resident_bytes=0, copied=Copied(0, 150 << 20))
    assert store.seconds == none.seconds + 2
    assert disk.seconds == none.seconds + 1


def test_prediction_has_its_speed_from_the_past() -> None:
    # 100 MiB in each second, as 0.2 s would have been the two trees' anyway.
    history = [copying(400 << 20, 0, 4.2)]

    def seconds(copied: Copied) -> float:
        return predict(
            backend="region", trees=2, resident_bytes=0, copied=copied, past=history
        ).seconds

    assert seconds(Copied(400 << 20)) == 10.0
    assert seconds(Copied()) == 6.0
    assert seconds(Copied(1400 << 20)) == 20.0
    # Of the disk nothing is known by that.
    assert seconds(Copied(0, 150 << 20)) == 7.0
    history.append(copying(1 << 20, 400 << 20, 5.2))
    assert seconds(Copied(0, 400 << 20)) == pytest.approx(10.5, abs=0.02)
    # Too little to tell anything by.
    history = [copying(1 << 20, 0, 4.2)]
    assert seconds(Copied(1 << 20)) == 10.0
    assert seconds(Copied(500 << 20)) == pytest.approx(11.0, abs=0.01)


def test_prediction_without_a_past_says_that_it_is_a_guess() -> None:
    found = predict(backend="region", trees=2, resident_bytes=1 << 30, boot_seconds=2.0)
    assert (found.seconds, found.basis) == (3.4, "model")
    assert "a guess" in found.explanation
    images = predict(backend="image", trees=2, resident_bytes=1 << 30, boot_seconds=2.0)
    assert images.seconds > found.seconds + 5


@pytest.mark.parametrize(
    ("stamps", "seconds"),
    [
        ([0, 3512345], 3.512345),
        ([1500000, 9000000], 1.5),
        ([0, 95000000], 0.0),
        ([0, 0], 0.0),
    ],
)
def test_boot_seconds(stamps: list[int], seconds: float) -> None:
    assert boot_seconds(stamps) == seconds


def test_numbers_for_people() -> None:
    assert [layout.human_bytes(value) for value in (0, 1536, 300 << 20, 5 << 40)] == [
        "0 B", "1.5 KiB", "300 MiB", "5.0 TiB",
    ]  # fmt: skip
    assert [layout.human_seconds(value) for value in (0.0123, 3.25, 75)] == [
        "12 ms", "3.25 s", "1 min 15 s",
    ]  # fmt: skip
    assert [layout.plural(2, word) for word in ("page", "process", "reply")] == [
        "2 pages", "2 processes", "2 replies",
    ]  # fmt: skip
    assert layout.plural(1, "process") == "1 process"


def test_tables_align_coloured_cells() -> None:
    paint = layout.Paint(True)
    lines = layout.table([[paint.good("ok"), "x"], ["failed", "y"]], indent="")
    assert layout.width(lines[0]) == layout.width(lines[1])
    assert layout.table([], ("a", "b")) == []


def test_bars() -> None:
    assert layout.bar(10, 10, 4) == "████"
    assert layout.bar(0.0001, 10, 4) == "▏"
    assert layout.bar(0, 10) == layout.bar(1, 0) == ""
