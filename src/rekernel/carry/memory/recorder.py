"""The native page-map recorder: where it is, and how it is told of the region."""

from __future__ import annotations

from collections.abc import Sequence

from rekernel.carry.memory.dax import Range

RECORDER = "/usr/lib/rekernel/rekernel-pagemap"


def region_option(parts: Sequence[Range]) -> str:
    """The value of its ``--region``."""
    return ",".join(f"{item.start:#x}:{item.end:#x}" for item in parts) or "none"
