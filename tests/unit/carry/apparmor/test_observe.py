"""Profiles of AppArmor: who is confined by what, and policies as the kernel keeps them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from rekernel.carry.apparmor import observe as apparmor
from rekernel.errors import RekernelError

# The first bytes of Debian's named profile, as 6.12 gives them back.
NAMED = bytes.fromhex("04080076657273696f6e000207202000040800") + b"profile\x00\x07"


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "policy/profiles"
    for number, (name, data) in enumerate({"named": NAMED, "/usr/bin/x": NAMED + b"x"}.items()):
        own = directory / f"{name.strip('/').replace('/', '.')}.{number}"
        own.mkdir(parents=True)
        (own / "name").write_text(f"{name}\n")
        (own / "raw_data").write_bytes(data)
    (tmp_path / ".replace").touch()
    monkeypatch.setattr(apparmor, "_SECURITY", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("named (enforce)\n", "named"),
        ("/usr/sbin/chronyd (enforce)\n", "/usr/sbin/chronyd"),
        ("name with blank//child (complain)\n", "name with blank//child"),
        ("unconfined\n", ""),
        ("unconfined\n\x00", ""),
    ],
)
def test_labels(text: str, label: str) -> None:
    match = apparmor._LABEL.match(text)
    assert match is not None
    assert (match[1] if match[1] != "unconfined" else "") == label


def test_of_processes(policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {1: "", 2: "named", 3: "named//child", 4: "/usr/bin/x"}
    monkeypatch.setattr(apparmor, "label", labels.get)
    assert apparmor.policies([1]) == []
    assert apparmor.policies([1, 2, 3, 2]) == [NAMED]
    assert apparmor.policies([4, 2]) == [NAMED + b"x", NAMED]
    labels[5] = "gone"
    with pytest.raises(RekernelError, match="profile gone cannot be read"):
        apparmor.policies([5])


def test_a_policy_that_forbids_nothing(policies: Path) -> None:
    changed = apparmor.relaxed(NAMED)
    (before,) = struct.unpack_from("<I", NAMED, 12)
    (after,) = struct.unpack_from("<I", changed, 12)
    assert after == before | 0x800
    assert changed[:12] + NAMED[12:16] + changed[16:] == NAMED
    apparmor.replace(changed)
    assert (policies / ".replace").read_bytes() == changed


def test_a_policy_that_nobody_knows() -> None:
    with pytest.raises(RekernelError, match="a form that is not known"):
        apparmor.relaxed(NAMED[:20] + b"else")


def test_only_versions_of_profiles_are_changed() -> None:
    """Permissions have tables of their own in a policy that was made for 7.3."""
    table = bytes.fromhex("04080076657273696f6e0002010000000bc3000200000000")
    inside = bytes.fromhex("04080076657273696f6e000207202000040a00") + b"namespace\x00\x05"
    changed = apparmor.relaxed(NAMED + table + inside + NAMED)
    relaxed = apparmor.relaxed(NAMED)
    assert changed.startswith(relaxed + table)
    assert changed.endswith(relaxed)
    assert changed[len(NAMED + table) :][12:16] == bytes.fromhex("07282000")
    assert len(changed) == len(NAMED + table + inside + NAMED)


@pytest.mark.parametrize(
    ("name", "simple"),
    [("named", True), ("a//b", True), ("a//&b", False), (":lxd://x:y", False)],
)
def test_what_can_be_loaded_again(name: str, simple: bool) -> None:
    assert apparmor.is_simple(name) is simple
