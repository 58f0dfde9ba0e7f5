"""Where the agent leaves what others read."""

from __future__ import annotations

# What it has to say, for `rekernel finish`.
AGENT_RESULT = "/run/rekernel/agent.json"
# One empty file for each unit that must not start: who removes it lets systemd start the unit.
NOT_ENDED = "/run/rekernel/not-ended"
