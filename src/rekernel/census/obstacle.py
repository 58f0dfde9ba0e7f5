"""What stands in the way of a dump, as people are told."""

from __future__ import annotations

from rekernel.records import record


@record
class Obstacle:
    """``what`` a process has, as "process 7 has …", and what can be done about it."""

    what: str
    remedy: str = "criu cannot dump that"
