"""Plain text with a little colour: tables, bars, numbers for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rekernel.records import record

# Of containers and their monitors.
_LONG = re.compile(r"((?:libpod|libpod-conmon|docker)-[0-9a-f]{12})[0-9a-f]{52}")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@record
class Paint:
    """Colours for a terminal, or none."""

    colour: bool = False

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def bold(self, text: str) -> str:
        """What to look at first."""
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        """What can be skipped."""
        return self._wrap("2", text)

    def good(self, text: str) -> str:
        """Style of what is as it should be."""
        return self._wrap("32", text)

    def warn(self, text: str) -> str:
        """Worth a thought."""
        return self._wrap("33", text)

    def bad(self, text: str) -> str:
        """Not as it should be."""
        return self._wrap("31", text)

    def mark(self, text: str) -> str:
        """Set apart."""
        return self._wrap("36", text)


PLAIN = Paint()


def width(text: str) -> int:
    """Columns that a text takes on the screen."""
    return len(_ANSI.sub("", text))


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Fill up with blanks."""
    blanks = " " * max(0, columns - width(text))
    return blanks + text if right else text + blanks


def short(text: str) -> str:
    """A name with containers by twelve digits, as podman shows them, instead of all."""
    return _LONG.sub(r"\1…", text)


def table(
    rows: Sequence[Sequence[str]],
    head: Sequence[str] = (),
    *,
    paint: Paint = PLAIN,
    right: Sequence[int] = (),
    indent: str = "  ",
) -> list[str]:
    """Lines of aligned columns; the last column is as long as it likes.

    ``right``: indexes of the columns that hold numbers.
    """
    if not rows:
        return []
    every = [list(map(paint.dim, head))] if head else []
    every += [list(map(short, row)) for row in rows]
    widths = [max(width(row[i]) for row in every) for i in range(len(every[0]))]
    return [
        (
            indent + "  ".join(pad(cell, widths[i], right=i in right) for i, cell in enumerate(row))
        ).rstrip()
        for row in every
    ]


def bar(value: float, longest: float, columns: int = 28) -> str:
    """A bar in eighths of a column; something that took any time has at least one eighth."""
    if longest <= 0 or value <= 0:
        return ""
    eighths = max(1, round(value / longest * columns * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def human_bytes(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """0.0123 -> "12 ms", 3.25 -> "3.25 s", 75 -> "1 min 15 s"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def plural(count: int, word: str) -> str:
    """(1, "page") -> "1 page", (1200, "page") -> "1,200 pages"."""
    if count == 1:
        return f"1 {word}"
    plural_word = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    plural_word = f"{word}es" if word.endswith("ss") else plural_word
    return f"{count:,} {plural_word}"
