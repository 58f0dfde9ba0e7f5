"""Logins as systemd-logind has them, and what the logind of the next kernel needs to know them.

A starting logind takes up what an earlier one left in /run/systemd/sessions and /run/systemd/users
(src/login/logind-session.c, session_load; logind-user.c, user_load), if the scope of the session is
active and somebody still has its FIFO open. The scope is a transient unit: systemd reads its file
again while it deserializes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rekernel.systemd import unitfiles
from rekernel.systemd.units import Unit

_SYSTEMD = Path("/run/systemd")
# Jobs, descriptors and numbers that mean something to the systemd and the kernel of now only.
_OF_NOW = re.compile(r"(\w+_JOB|LEADER_FD_SAVED|LEADER_PIDFDID)=")


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody who has logged in. ``service``: of PAM; "sshd" for ssh."""

    scope: str
    uid: int
    user: str
    service: str
    terminal: str
    host: str

    @property
    def words(self) -> str:
        """For people."""
        place = f" on {self.terminal}" if self.terminal else ""
        origin = f" from {self.host}" if self.host else ""
        return f"{self.user}{place}{origin}"


@dataclass(frozen=True, slots=True)
class Left:
    """What the next systemd is to find below /run. ``files``: path -> text.

    ``directories``: what /run/user has of whom has logged in.
    """

    files: Mapping[str, str]
    fifos: tuple[str, ...]
    directories: tuple[str, ...]


def observe(systemd: Path = _SYSTEMD) -> dict[str, Login]:
    """Everybody who has logged in, by the scope that their processes are in."""
    return {
        values["SCOPE"]: Login(
            scope=values["SCOPE"],
            uid=int(values["UID"]),
            user=values.get("USER", values["UID"]),
            service=values.get("SERVICE", ""),
            terminal=values.get("TTY", ""),
            host=values.get("REMOTE_HOST", ""),
        )
        for _, _, values in _sessions(systemd)
    }


def leave(units: Collection[Unit], systemd: Path = _SYSTEMD) -> Left:
    """For these carried logins. Raises OSError if one ended meanwhile."""
    scopes = {unit.name for unit in units}
    files: dict[str, str] = {}
    fifos = []
    directories: dict[str, None] = {}
    for path, text, values in _sessions(systemd):
        if values["SCOPE"] in scopes:
            files[str(path)] = _for_the_next(text)
            user = systemd / "users" / values["UID"]
            files[str(user)] = _for_the_next(user.read_text())
            directories[f"/run/user/{values['UID']}"] = None
            if "FIFO" in values:
                fifos.append(values["FIFO"])
    for unit in units:
        for path in unitfiles.files_of(unit):
            # All others are where they are on a disk.
            if path.is_relative_to(systemd):
                files[str(path)] = path.read_text()
    return Left(files, tuple(fifos), tuple(directories))


def slices(units: Collection[Unit]) -> list[str]:
    """The slices that these logins lie in: nobody else starts them."""
    return sorted({unit.properties["Slice"] for unit in units})


def _sessions(systemd: Path) -> Iterator[tuple[Path, str, dict[str, str]]]:
    """File, its text and its values of every session; without those that end just now."""
    directory = systemd / "sessions"
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if path.suffix == ".ref":
            continue
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue
        values = dict(_assignments(text))
        if "SCOPE" in values and "UID" in values:
            yield path, text, values


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            yield name, "".join(shlex.split(value))


def _for_the_next(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not _OF_NOW.match(line))
