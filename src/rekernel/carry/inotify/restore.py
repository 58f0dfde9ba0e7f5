"""What leads criu to watched files that it could not open by their path."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rekernel.carry.inotify.entry import WATCHED
from rekernel.pid1.console import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextmanager
def leading_to(watched: Mapping[str, str]) -> Iterator[None]:
    """Links below WATCHED for as long as this lasts: name -> file.

    A symbolic link that is opened by its path is followed, one behind a descriptor is not.
    """
    opened = []
    try:
        for name, path in watched.items():
            try:
                fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                opened.append(fd)
                os.makedirs(WATCHED, exist_ok=True)
                os.symlink(f"/proc/{os.getpid()}/fd/{fd}", f"{WATCHED}/{name}")
            except OSError as error:
                # Who watches it does not come back.
                say(f"{path} cannot be watched again: {error.strerror}")
        yield
    finally:
        for fd in opened:
            os.close(fd)
