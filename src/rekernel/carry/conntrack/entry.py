"""Where what the packet filter remembers lies in the store."""

from __future__ import annotations

# Requests to ctnetlink, as they are sent; not there if nothing is remembered of connections.
CONNTRACK_BLOB = "conntrack"
