"""A newc cpio archive, as the kernel unpacks it (Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath


class CpioArchive:
    """Collects files, then gives the whole archive; parents are added by themselves."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()
        self._inode = 1

    def __contains__(self, name: str) -> bool:
        return name.lstrip("/") in self._names

    def _add(self, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = name.lstrip("/")
        if name in self._names:
            return
        parent = str(PurePosixPath(name).parent)
        if parent != ".":
            self._add(parent, stat.S_IFDIR | 0o755, b"")
        self._names.add(name)
        encoded = os.fsencode(name) + b"\0"
        fields = (
            self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0,
        )  # fmt: skip
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._inode += 1
        self._parts.append(_pad(header + encoded) + _pad(data))

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file; one that is there already stays."""
        self._add(name, stat.S_IFREG | mode, data)

    def directory(self, name: str) -> None:
        """A directory."""
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def symlink(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device node."""
        self._add(name, stat.S_IFCHR | mode, b"", (major, minor))

    def copy(self, path: Path) -> None:
        """A file of this machine under its own name; links are followed and kept."""
        resolved = Path(os.path.realpath(path))
        if resolved != path:
            real_parent = Path(os.path.realpath(path.parent)) / path.name
            if real_parent != resolved:
                self.symlink(str(path), os.path.relpath(resolved, path.parent))
            else:
                self.file(str(path), resolved.read_bytes(), resolved.stat().st_mode & 0o777)
                return
        self.file(str(resolved), resolved.read_bytes(), resolved.stat().st_mode & 0o777)

    def finish(self) -> bytes:
        """The archive, with its trailer."""
        self._inode = 0
        self._add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
