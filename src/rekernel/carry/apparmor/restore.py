"""Profiles of AppArmor that carried processes are to run under, before any of these is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rekernel.carry.apparmor.entry import APPARMOR_BLOBS
from rekernel.pid1.console import say

if TYPE_CHECKING:
    from rekernel.handover.store import StoreReader

_LOAD = "/sys/kernel/security/apparmor/.replace"


def load(reader: StoreReader) -> None:
    """What cannot be loaded is said: who runs under it does not come back."""
    for entry in reader:
        if entry.name.startswith(APPARMOR_BLOBS):
            try:
                with open(_LOAD, "wb", buffering=0) as file:
                    file.write(reader.read(entry.name))
            except OSError as error:
                say(f"a profile of AppArmor is not loaded: {error.strerror}")
