"""Logins as systemd-logind has them, and what the logind of the next kernel needs to know them.

A starting logind takes up what an earlier one left in /run/systemd/sessions and /run/systemd/users
(src/login/logind-session.c, session_load; logind-user.c, user_load), if the scope of the session is
active and somebody still has its FIFO open. The scope is a transient unit: systemd reads its file
again while it deserializes.
"""

from __future__ import annotations

import pwd
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from rekernel.records import record
from rekernel.systemd.units import Unit, manager_of

_SYSTEMD = Path("/run/systemd")
# Jobs, descriptors and numbers that mean something to the systemd and the kernel of now only.
_OF_NOW = re.compile(r"(\w+_JOB|LEADER_FD_SAVED|LEADER_PIDFDID)=")


@record
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
        """The login in words, for people."""
        place = f" on {self.terminal}" if self.terminal else ""
        origin = f" from {self.host}" if self.host else ""
        return f"{self.user}{place}{origin}"


@record
class Left:
    """What the next systemd is to find below /run. ``files``: path -> text.

    ``directories``: what /run/user has of whom has logged in, and what of each stays behind.
    """

    files: Mapping[str, str]
    fifos: tuple[str, ...]
    directories: Mapping[str, tuple[str, ...]]


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
        if "SCOPE" in values
    }


def leave(units: Collection[Unit], systemd: Path = _SYSTEMD) -> Left:
    """What the next logind needs of these carried logins. Raises OSError if one ended meanwhile."""
    names = {unit.name for unit in units}
    files: dict[str, str] = {}
    fifos = []
    users = {str(uid) for uid in _of_managers(units)}
    for path, text, values in _sessions(systemd):
        if values.get("SCOPE", f"user@{values['UID']}.service") in names:
            files[str(path)] = _for_the_next(text)
            users.add(values["UID"])
            if "FIFO" in values:
                fifos.append(values["FIFO"])
    for uid in users:
        path = systemd / "users" / uid
        # Not of a manager that was started by hand.
        with suppress(FileNotFoundError):
            files[str(path)] = _for_the_next(path.read_text())
    return Left(
        files,
        tuple(fifos),
        {
            # A manager that starts afresh makes its own.
            f"/run/user/{uid}": () if f"user@{uid}.service" in names else ("systemd",)
            for uid in sorted(users)
        },
    )


def own_mounts(units: Collection[Unit]) -> dict[str, tuple[str, ...]]:
    """What is mounted for these carried units: where, and what of it stays behind. Raises OSError.

    systemd gives each service credentials, and everybody who logs in a directory.
    """
    of_logins = [unit for unit in units if unit.is_login or unit.is_manager]
    credentials: dict[str, tuple[str, ...]] = {
        f"/run/credentials/{unit.name}": () for unit in units
    }
    return {**leave(of_logins).directories, **credentials}


def user_of(manager: str) -> str:
    """Name of the user whose manager a unit is, or the UID if it has none."""
    uid = manager_of(manager)
    try:
        return pwd.getpwuid(uid or 0).pw_name
    except KeyError:
        return str(uid)


def taken_along(units: Collection[Unit]) -> list[str]:
    """Units without processes that these logins and managers need, and that nobody else starts."""
    slices = {unit.properties["Slice"] for unit in units}
    # Managers are bound to them.
    return sorted(slices | {f"user-runtime-dir@{uid}.service" for uid in _of_managers(units)})


def _of_managers(units: Collection[Unit]) -> list[int]:
    return [uid for unit in units if (uid := manager_of(unit.name)) is not None]


def _sessions(systemd: Path) -> Iterator[tuple[Path, str, dict[str, str]]]:
    """File, its text and its values of every session that somebody or a user's manager has.

    Without those that end just now. That of a manager has no scope.
    """
    directory = systemd / "sessions"
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if path.suffix == ".ref":
            continue
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue
        values = dict(_assignments(text))
        is_manager = values.get("CLASS", "").startswith("manager")
        if "UID" in values and ("SCOPE" in values or is_manager):
            yield path, text, values


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            yield name, "".join(shlex.split(value))


def _for_the_next(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not _OF_NOW.match(line))
