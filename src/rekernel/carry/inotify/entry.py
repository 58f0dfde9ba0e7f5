"""Where watched files are to be found while criu restores."""

from __future__ import annotations

# Where criu's images look for watched files that have no path for it.
WATCHED = "/run/rekernel/watched"
