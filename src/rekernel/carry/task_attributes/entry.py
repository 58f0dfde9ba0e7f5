"""Attributes of tasks that criu does not keep."""

from __future__ import annotations

from rekernel.records import field, record


@record
class TaskAttributes:
    """What criu does not keep of a tree; only where it is not as usual."""

    # Thread -> CPUs that it is bound to.
    affinities: dict[str, tuple[int, ...]] = field(default_factory=dict)
    # Thread -> I/O priority, as ioprio_set(2) takes it.
    io_priorities: dict[str, int] = field(default_factory=dict)
    # Name below /proc -> what is to be written there.
    files: dict[str, str] = field(default_factory=dict)
