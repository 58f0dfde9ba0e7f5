"""Files that setup writes, and the record by which all of it is taken back."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rekernel.carry.memory.dax import Range
from rekernel.errors import RekernelError
from rekernel.records import asdict, field, record
from rekernel.setup.host import Host

RECORD = "/etc/rekernel/setup.json"
SCHEMA = 1


@record
class Content:
    """A file as it was."""

    data: bytes
    mode: int
    uid: int
    gid: int


def read(path: Path) -> Content | None:
    """The file, or None if there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    status = path.stat()
    return Content(data, status.st_mode & 0o7777, status.st_uid, status.st_gid)


def write(path: Path, content: Content) -> None:
    """Replace the file in one step, so that a crash leaves the old one or the new one."""
    # A link stays one: what it points to is replaced.
    path = path.resolve()
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "wb") as file:
            file.write(content.data)
            os.fchmod(fd, content.mode)
            os.fchown(fd, content.uid, content.gid)
            file.flush()
            os.fsync(fd)
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise


def restore(path: Path, content: Content | None) -> None:
    """Make the file what it was."""
    if content is None:
        path.unlink(missing_ok=True)
    elif read(path) != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)


def digest(data: bytes) -> str:
    """By which a file that setup wrote is known again."""
    return hashlib.sha256(data).hexdigest()


@record
class Written:
    """A file that setup wrote, and what was there before."""

    path: str
    digest: str
    before: Content | None


@record(frozen=False)
class Record:
    """Everything that setup changed; kept in /etc/rekernel/setup.json."""

    region: Range
    boot_loader: str
    # "applying" while setup works: a record found in this state is of a setup that was killed.
    state: str = "applying"
    files: list[Written] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    enabled: list[str] = field(default_factory=list)
    # Bytes of the handover store, 0 for the usual.
    store: int = 0

    def file(self, path: str) -> Written | None:
        """What is on record for this file."""
        return next((item for item in self.files if item.path == path), None)

    def dump(self) -> bytes:
        """The record as JSON."""
        raw = asdict(self) | {"schema": SCHEMA}
        raw["files"] = [
            {
                "path": item.path,
                "digest": item.digest,
                "before": item.before
                and asdict(item.before) | {"data": base64.b64encode(item.before.data).decode()},
            }
            for item in self.files
        ]
        return (json.dumps(raw, indent=1) + "\n").encode()


def _content(raw: dict[str, Any] | None) -> Content | None:
    if raw is None:
        return None
    data = base64.b64decode(raw["data"], validate=True)
    return Content(data, int(raw["mode"]), int(raw["uid"]), int(raw["gid"]))


def parse_record(data: bytes) -> Record:
    """Raises RekernelError if this is no record that we can read."""
    try:
        raw = json.loads(data)
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']}")
        return Record(
            region=Range(int(raw["region"]["start"]), int(raw["region"]["end"])),
            boot_loader=str(raw["boot_loader"]),
            state=str(raw["state"]),
            files=[
                Written(str(item["path"]), str(item["digest"]), _content(item["before"]))
                for item in raw["files"]
            ],
            directories=[str(item) for item in raw["directories"]],
            enabled=[str(item) for item in raw["enabled"]],
            # Records of before have none.
            store=int(raw.get("store", 0)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RekernelError(
            f"{RECORD} cannot be read: {error!r}",
            "it says what setup changed; restore it from a backup, or take the changes back by "
            "hand and remove it",
        ) from None


def load_record(host: Host) -> Record | None:
    """The record of this machine's setup, or None. Raises RekernelError if it is damaged."""
    content = read(host.path(RECORD))
    return parse_record(content.data) if content is not None else None


def save_record(host: Host, record: Record) -> None:
    """Write it to where :func:`load_record` finds it."""
    write(host.path(RECORD), Content(record.dump(), 0o644, os.geteuid(), os.getegid()))


def missing_parents(host: Host, path: str) -> list[str]:
    """The directories above a file that are not there, outermost first."""
    missing = []
    parent = Path(path).parent
    while not host.path(str(parent)).exists():
        missing.append(str(parent))
        parent = parent.parent
    missing.reverse()
    return missing


def remove_empty(host: Host, directories: Sequence[str]) -> None:
    """Remove directories that setup made, unless something else lives there by now."""
    for item in reversed(directories):
        with contextlib.suppress(OSError):
            host.path(item).rmdir()
