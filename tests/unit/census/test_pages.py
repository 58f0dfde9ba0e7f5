"""Where pages lie, as the recorder tells it."""

from __future__ import annotations

import json

from rekernel.census.pages import parse
from rekernel.records import replace


def test_page_survey() -> None:
    # From rekernel-pagemap on Linux 6.12, shortened.
    text = (
        '{"schema":1,"spaces":[{"pid":680,"nspid":680,"tree":0,"pages":1201,"stray_pages":0,'
        '"swapped_pages":0,"runs":130}],"pages":1201,"stray_pages":724,"swapped_pages":0,'
        '"runs":605,"bytes":14720,"stray_bytes":2965504}\n'
    )
    found = parse(json.loads(text))
    assert (found.in_region_bytes, found.stray_bytes) == (1201 * 4096, 2965504)
    assert found.by_process == {680: 1201 * 4096}
    assert (found.gatherable_bytes, found.left_bytes) == (0, 2965504)


def test_strays_that_can_be_moved_into_the_region() -> None:
    text = (
        '{"spaces":[{"pid":7,"pages":1,"stray_pages":1100,"stray_chunks":[4194304,6291456]}],'
        '"pages":1,"stray_pages":1100}\n'
    )
    found = parse(json.loads(text))
    assert found.gatherable_bytes == 4 << 20
    assert found.left_bytes == 1100 * 4096 - (4 << 20)
    assert found.by_process == {7: 1101 * 4096}
    assert replace(found, gatherable_bytes=1 << 30).left_bytes == 0
