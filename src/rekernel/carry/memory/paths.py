"""Where the pager is, and what it leaves for others."""

from __future__ import annotations

PAGER = "/usr/lib/rekernel/rekernel-pager"
CONTROL = "/run/rekernel/pager.sock"
LOG = "/run/rekernel/pager.log"
# How far the drain is; in the directory of the agent's result.
DRAIN_STATUS = "/run/rekernel/drain.json"
