"""What counts as a move."""

from __future__ import annotations

from pathlib import Path

from rekernel.carry.memory import migrations


def test_count(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 77\npgmigrate_success 5\npgmigrate_fail 9\n")
    assert migrations.count(vmstat) == 5
    vmstat.write_text(
        "pgmigrate_success 5\nthp_collapse_alloc 2\nthp_collapse_alloc_failed 8\n"
        "thp_underused_split_page 1\n"
    )
    assert migrations.count(vmstat) == 8


def test_this_kernel() -> None:
    assert 0 <= migrations.count() <= migrations.count()
