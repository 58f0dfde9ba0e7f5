"""What the administrator wants: the configuration file, and options that override it."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from rekernel.errors import UsageError
from rekernel.records import record

CONFIG = Path("/etc/rekernel/rekernel.toml")
WISHES = ("carry", "restart", "block")


@record
class Policy:
    """Patterns of unit names and what is wished for them; the first that fits counts."""

    rules: tuple[tuple[str, str], ...] = ()
    max_blackout: float | None = None
    # What was asked to be carried by an option.
    asked: tuple[str, ...] = ()

    def wish(self, unit: str) -> str | None:
        """ "carry" (or stop the upgrade), "restart", "block", or None for the product's choice."""
        for pattern, wish in self.rules:
            if fnmatch.fnmatch(unit, pattern):
                return wish
        return None

    def without_units(self, units: Iterable[str]) -> list[str]:
        """The patterns that fit none of these."""
        names = list(units)
        return [pattern for pattern, _ in self.rules if not fnmatch.filter(names, pattern)]


def _full(name: str) -> str:
    # With a slash it is the control group of what no unit has.
    return name if "." in name or name.startswith("/") else f"{name}.service"


def load(carry: Sequence[str] = (), restart: Sequence[str] = (), config: Path = CONFIG) -> Policy:
    """The policy; options come before the file. Raises UsageError for an unknown key or wish."""
    rules = [(_full(name), "carry") for name in carry]
    rules += [(_full(name), "restart") for name in restart]
    both = {_full(name) for name in carry} & {_full(name) for name in restart}
    if both:
        raise UsageError(f"{', '.join(sorted(both))}: both --carry and --restart")
    limit: float | None = None
    if config.exists():
        try:
            raw = tomllib.loads(config.read_text())
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{config}: {error}", "see rekernel.toml(5)") from None
        for key, value in raw.items():
            if key == "units" and isinstance(value, dict):
                for name, wish in value.items():
                    if wish not in WISHES:
                        raise UsageError(
                            f"{config}: {name} = {wish!r}", f"one of {', '.join(WISHES)}"
                        )
                    rules.append((_full(name), wish))
            elif key == "max_blackout" and isinstance(value, (int, float)):
                limit = float(value)
            else:
                raise UsageError(f"{config}: unknown key {key}", "see rekernel.toml(5)")
    return Policy(tuple(rules), limit, tuple(_full(name) for name in carry))
