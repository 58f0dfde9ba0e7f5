"""Whether the kernel has put pages elsewhere: a record of their frames is wrong then."""

from __future__ import annotations

from pathlib import Path

# Migration, for whatever reason; collapse into a huge page; zero-filled parts of one given back.
_COUNTERS = frozenset({"pgmigrate_success", "thp_collapse_alloc", "thp_underused_split_page"})


def count(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Grows with every page of the machine that is put elsewhere. Raises OSError."""
    lines = (line.split() for line in vmstat.read_text().splitlines())
    return sum(int(value) for name, value in lines if name in _COUNTERS)
