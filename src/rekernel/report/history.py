"""What was done on this machine: one directory per attempt, with its report and its logs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rekernel import preallocated
from rekernel.errors import NothingToDoError, RekernelError, UsageError

DIRECTORY = Path("/var/lib/rekernel/history")
_RUN = Path("/run/rekernel")
_KEPT = 50
# More than a report of some hundred units has.
_REPORT_BYTES = 256 << 10
_ID = re.compile(r"^[0-9]{8}-[0-9]{6}(-[0-9]+)?$")
# Enough of a log to see why something failed.
_LOG_LIMIT = 1 << 20


class History:
    """The attempts in a directory, by their IDs; an ID is the time of its start (UTC)."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory

    def begin(self, identifier: str, facts: Mapping[str, Any]) -> None:
        """Write down that an attempt starts, so that it is known whatever becomes of it.

        The room for its report is taken, too. Raises RekernelError if there is none.
        """
        try:
            self._write(identifier, "attempt.json", {"schema": 1, "id": identifier, **facts})
            preallocated.reserve(self.directory / identifier / "report.json", _REPORT_BYTES)
        except OSError as error:
            # Without the whole of it there was none.
            shutil.rmtree(self.directory / identifier, ignore_errors=True)
            raise RekernelError(
                f"the history in {self.directory} cannot be written: {error.strerror}"
            ) from error

    def keep(self, identifier: str, name: str, content: Mapping[str, Any]) -> None:
        """Keep something beside the report of an attempt. Raises OSError."""
        self._write(identifier, name, content)

    def kept(self, identifier: str, name: str) -> dict[str, Any] | None:
        """What :meth:`keep` wrote; None if there is none that can be read."""
        return _load(self.directory / identifier / name)

    def record(self, report: Mapping[str, Any], run: Path | None = None) -> Path:
        """Write (or replace) a report and copy the logs there are; returns its directory."""
        identifier = str(report["id"])
        directory = self.directory / identifier
        self._write(identifier, "report.json", report)
        _copy_logs(run or _RUN, directory)
        self._prune()
        return directory

    def _write(self, identifier: str, name: str, content: Mapping[str, Any]) -> None:
        preallocated.write(self.directory / identifier / name, json.dumps(content, indent=1) + "\n")

    def ids(self) -> list[str]:
        """All attempts, newest first."""
        if not self.directory.is_dir():
            return []
        found = (path.name for path in self.directory.iterdir())
        return sorted((name for name in found if _ID.match(name)), reverse=True)

    def reports(self) -> Iterator[dict[str, Any]]:
        """All reports that can be read, newest first."""
        for identifier in self.ids():
            report = _load(self.directory / identifier / "report.json")
            if report is not None:
                yield report

    def get(self, identifier: str | None = None) -> dict[str, Any]:
        """A report: this one, or the newest. Raises UsageError, NothingToDoError."""
        if identifier is None:
            for report in self.reports():
                return report
            raise NothingToDoError(
                "no upgrade was tried on this machine yet", "see `rekernel check`"
            )
        found = None
        if _ID.match(identifier):
            found = _load(self.directory / identifier / "report.json")
        if found is None:
            raise UsageError(f"no report {identifier}", "`rekernel history` lists them")
        return found

    def attempt(self, identifier: str) -> dict[str, Any] | None:
        """What :meth:`begin` wrote."""
        return _load(self.directory / identifier / "attempt.json")

    def unfinished(self) -> list[dict[str, Any]]:
        """Attempts without a report: under way, or cut off."""
        found = []
        for identifier in self.ids():
            attempt = self.attempt(identifier)
            if attempt is not None and not (self.directory / identifier / "report.json").exists():
                found.append(attempt)
        return found

    def release_room(self) -> None:
        """Give up the room of reports that nobody will write: of attempts that have one, or that
        cannot be read.
        """
        open_ones = {str(item["id"]) for item in self.unfinished()}
        for identifier in self.ids():
            if identifier not in open_ones:
                preallocated.release(self.directory / identifier / "report.json")

    def _prune(self) -> None:
        for identifier in self.ids()[_KEPT:]:
            shutil.rmtree(self.directory / identifier, ignore_errors=True)


def _load(path: Path) -> dict[str, Any] | None:
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return raw if isinstance(raw, dict) and raw.get("schema") == 1 else None


def _copy_logs(run: Path, directory: Path) -> None:
    """criu's logs of both sides and the helpers' own; a log that vanishes is left out."""
    sources = {
        **{f"{path.stem}.log": path for path in run.glob("*.log")},
        **{
            f"dump-{path.parent.name}-{path.name}": path
            for path in run.glob("upgrade/work/*/*.log")
        },
        **{f"restore-{path.parent.name}-{path.name}": path for path in run.glob("restore/*/*.log")},
    }
    for name, path in sources.items():
        try:
            size = path.stat().st_size
            if size == 0:
                continue
            with path.open("rb") as source:
                source.seek(max(0, size - _LOG_LIMIT))
                content = source.read()
            target = directory / "logs"
            target.mkdir(exist_ok=True)
            (target / name).write_bytes(content)
        except OSError:
            continue
