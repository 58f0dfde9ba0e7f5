"""Profiles of AppArmor that carried processes are to run under, before any of these is there."""

from __future__ import annotations

from collections.abc import Iterable

from rekernel.pid1.console import say

_LOAD = "/sys/kernel/security/apparmor/.replace"


def load(policies: Iterable[bytes]) -> None:
    """What cannot be loaded is said: who runs under it does not come back."""
    for policy in policies:
        try:
            with open(_LOAD, "wb", buffering=0) as file:
                file.write(policy)
        except OSError as error:
            say(f"a profile of AppArmor is not loaded: {error.strerror}")
