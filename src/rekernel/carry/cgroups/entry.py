"""A control group, as the agent makes it again."""

from __future__ import annotations

from rekernel.records import field, record


@record
class Cgroup:
    """A control group of a carried unit, or one above or below it."""

    # Below /sys/fs/cgroup.
    path: str
    uid: int = 0
    gid: int = 0
    # Controllers for the groups below it, as cgroup.subtree_control has them.
    passed_on: str = ""
    # File -> what is to be written there.
    settings: dict[str, str] = field(default_factory=dict)
