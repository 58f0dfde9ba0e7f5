"""Profiles of AppArmor that carried processes run under.

A dump runs criu's code in them, which a profile does not allow for; and on the next kernel one gets
its profile back only if that is loaded (criu/lsm.c). Policy is what apparmor_parser(8) makes.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rekernel import smallfiles
from rekernel.errors import RekernelError

_SECURITY = Path("/sys/kernel/security/apparmor")
_LABEL = re.compile(r"(.*?)(?: \(\w+\))?\n?\0?$", re.S)
# security/apparmor/policy_unpack.c, verify_header(): the name of a number, and that; a profile
# follows, or first the namespace that it belongs to. Tables inside of one have versions as well.
_HEADER = b"\x04\x08\x00version\x00\x02"
_PROFILE_HEADER = re.compile(
    re.escape(_HEADER) + rb"(....)(?=\x04(?:\x08\x00profile|\x0a\x00namespace)\x00)", re.S
)
_VERSION = struct.Struct("<I")
# include/policy_unpack.h: every profile of this policy is to be loaded in complain mode.
_FORCE_COMPLAIN = 0x800


def label(pid: int) -> str:
    """What confines a process, "" for nothing: a profile, or several with "//&" between them."""
    # Without AppArmor it is not there, or cannot be read.
    with suppress(OSError):
        text = os.fsdecode(smallfiles.read(f"/proc/{pid}/attr/apparmor/current"))
        match = _LABEL.match(text)
        found = match[1] if match else ""
        return "" if found == "unconfined" else found
    return ""


def is_simple(name: str) -> bool:
    """Whether a label is a profile, or a part of one, of the machine itself."""
    return "//&" not in name and not name.startswith(":")


def policy(name: str) -> bytes | None:
    """The policy that a label was loaded with; None if the kernel does not have it any more."""
    top = name.partition("//")[0]
    with suppress(OSError):
        for directory in (_SECURITY / "policy/profiles").iterdir():
            if (directory / "name").read_text().rstrip("\n") == top:
                return (directory / "raw_data").read_bytes()
    return None


def policies(pids: Iterable[int]) -> list[bytes]:
    """The policies of all that confines these processes, each once. Raises RekernelError."""
    found: dict[bytes, None] = {}
    for name in dict.fromkeys(label(pid) for pid in pids):
        if not name:
            continue
        data = policy(name)
        if data is None or not data.startswith(_HEADER):
            raise RekernelError(
                f"the policy of AppArmor's profile {name} cannot be read", "aa-disable that profile"
            )
        found[data] = None
    return list(found)


def relaxed(data: bytes) -> bytes:
    """A policy that forbids only what this one denies explicitly. Raises RekernelError."""
    changed = bytearray(data)
    # There may be one before each of several profiles.
    headers = list(_PROFILE_HEADER.finditer(data))
    if not headers:
        raise RekernelError(
            "a policy of AppArmor has a form that is not known", "aa-disable the profile of it"
        )
    for header in headers:
        (version,) = _VERSION.unpack(header[1])
        _VERSION.pack_into(changed, header.start(1), version | _FORCE_COMPLAIN)
    return bytes(changed)


def replace(data: bytes) -> None:
    """Load a policy, also in place of one that is there. Raises OSError."""
    # Only one write counts.
    with (_SECURITY / ".replace").open("wb", buffering=0) as file:
        file.write(data)
