"""What of the host cannot be set up again before the restore, as a refusal."""

from __future__ import annotations

from collections.abc import Sequence

from rekernel.errors import BlockedError


def refuse(problems: Sequence[str]) -> None:
    """Raises BlockedError if there are any. ``problems``: mounts and interfaces, in words."""
    if problems:
        raise BlockedError(
            f"cannot be set up again before the restore: {', '.join(problems)}",
            "`rekernel check` says more: take it down or unmount it for the upgrade",
        )
