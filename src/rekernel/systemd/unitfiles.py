"""What unit files say to us in a section [X-Rekernel], which systemd passes over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rekernel.errors import UsageError
from rekernel.policy import WISHES
from rekernel.systemd.units import Unit

SECTION = "X-Rekernel"
_HINT = "see rekernel.toml(5)"


def files_of(unit: Unit) -> list[Path]:
    """A unit's file and its drop-ins, in the order in which systemd reads them."""
    names = [
        unit.properties.get("FragmentPath", ""),
        *unit.properties.get("DropInPaths", "").split(),
    ]
    return [Path(name) for name in names if name]


def settings(paths: Sequence[Path]) -> dict[str, str]:
    """The section's settings, later files first. Raises UsageError for a line that is none.

    A file that cannot be read has none.
    """
    found: dict[str, str] = {}
    for path in paths:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        for line in _section(text):
            key, equals, value = line.partition("=")
            if not equals or key.strip() != "Policy":
                raise UsageError(f"{path}: unknown setting {line!r} in [{SECTION}]", _HINT)
            found[key.strip()] = value.strip()
    return found


def _section(text: str) -> list[str]:
    lines = []
    inside = False
    # A backslash at its end continues a line.
    for line in re.sub(r"\\\n", " ", text).splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            inside = stripped == f"[{SECTION}]"
        elif inside and stripped and stripped[0] not in "#;":
            lines.append(stripped)
    return lines


def wish(unit: Unit) -> str | None:
    """What the unit wishes for itself: as in the policy file; None if nothing."""
    policy = settings(files_of(unit)).get("Policy")
    if not policy:
        return None
    if policy not in WISHES:
        raise UsageError(
            f"{unit.name}: Policy={policy} in [{SECTION}] is none of {', '.join(WISHES)}", _HINT
        )
    return policy
