"""Where the private anonymous pages of processes lie, without stopping them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rekernel.errors import RekernelError
from rekernel.memory.dax import Range
from rekernel.memory.recorder import RECORDER, region_option
from rekernel.records import record
from rekernel.run import run

_PAGE = 4096


@record
class Survey:
    """Bytes of private anonymous memory inside and outside of the carry region."""

    in_region_bytes: int
    stray_bytes: int


def parse(text: str) -> Survey:
    """The answer of ``rekernel-pagemap stat``."""
    raw = json.loads(text.splitlines()[-1])
    return Survey(raw["pages"] * _PAGE, raw["stray_pages"] * _PAGE)


def survey(pids: Sequence[int], regions: Sequence[Range]) -> Survey | None:
    """Look at these processes as they run; None if it cannot be told (no recorder, …).

    Only an estimate: the processes go on, and one may end meanwhile.
    """
    if not pids:
        return Survey(0, 0)
    try:
        return parse(run([RECORDER, "stat", "--region", region_option(regions), *map(str, pids)]))
    except (RekernelError, ValueError, LookupError):
        return None
