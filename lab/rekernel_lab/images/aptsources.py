"""Where this host gets its Debian packages from: the lab uses the same mirror."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab.errors import LabError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Archives that live next to the main one and carry only part of the suites we need.
_PARTIAL = re.compile(r"-(security|updates|backports|proposed-updates)$|/updates$")


@dataclass(frozen=True, slots=True)
class Source:
    """One archive and suite of an apt configuration."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


def parse_one_line(content: str) -> Iterator[Source]:
    """Yield the binary sources of a sources.list(5) file in one-line style."""
    for line in content.splitlines():
        words = line.split("#", 1)[0].strip()
        match = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)$", words)
        if not match:
            continue
        options = dict(option.split("=", 1) for option in (match[1] or "").split() if "=" in option)
        yield Source(match[2], match[3], tuple(match[4].split()), options.get("signed-by", ""))


def parse_deb822(content: str) -> Iterator[Source]:
    """Yield the enabled binary sources of a sources.list(5) file in deb822 style."""
    without_comments = "\n".join(
        line for line in content.splitlines() if not line.lstrip().startswith("#")
    )
    for paragraph in re.split(r"\n\s*\n", without_comments):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        components = tuple(fields.get("components", "").split())
        # An inline key is of no use to another machine; apt then falls back to its keyring.
        signed_by = fields.get("signed-by", "")
        signed_by = signed_by if signed_by.startswith("/") else ""
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri, suite, components, signed_by)


def host_sources(directory: Path = Path("/etc/apt")) -> list[Source]:
    """Return every binary source that apt on this host uses."""
    found: list[Source] = []
    main = directory / "sources.list"
    one_line = [main, *sorted((directory / "sources.list.d").glob("*.list"))]
    for path in one_line:
        if path.is_file():
            found += parse_one_line(path.read_text())
    for path in sorted((directory / "sources.list.d").glob("*.sources")):
        found += parse_deb822(path.read_text())
    return found


def pick_mirror(sources: Iterable[Source], codename: str) -> str:
    """Return the base URI of the Debian archive that serves the host's own release.

    Raises LabError if the host has none (not a Debian, or apt is configured another way).
    """
    candidates = [
        source
        for source in sources
        if "main" in source.components and not _PARTIAL.search(source.suite)
    ]
    own = [source for source in candidates if source.suite == codename]
    named = [source for source in candidates if "debian" in source.uri.lower()]
    for source in own or named:
        return source.uri.rstrip("/")
    raise LabError(
        "no Debian archive in this host's apt configuration",
        hint="name one with --mirror",
    )


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """Return the fields of os-release(5)."""
    return dict(
        word.split("=", 1) for word in shlex.split(path.read_text(), comments=True) if "=" in word
    )


def host_mirror() -> str:
    """Return the URI of the Debian mirror that this host uses."""
    return pick_mirror(host_sources(), os_release().get("VERSION_CODENAME", ""))
