"""What another kernel lacks, by its configuration and by the aliases of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rekernel.kernel import features, fitness
from rekernel.kernel.features import Feature, lacking
from rekernel.kernel.installed import Kernel

NEXT = Kernel("7.3", Path("/boot/vmlinuz-7.3"), Path("/usr/lib/modules/7.3"))
UDPLITE = "net-pf-16-proto-4-type-2-136"


@pytest.fixture(autouse=True)
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """6.12 with all, 7.3 without fanotify and UDP-Lite."""
    monkeypatch.setattr(fitness, "_BOOT", tmp_path)
    (tmp_path / "config-6.12").write_text("CONFIG_FANOTIFY=y\nCONFIG_PACKET=m\n")
    (tmp_path / "config-7.3").write_text("# CONFIG_FANOTIFY is not set\nCONFIG_PACKET=m\n")
    known = {"6.12": {UDPLITE}, "7.3": set[str]()}

    def unknown(release: str, aliases: Sequence[str]) -> list[str]:
        return [alias for alias in aliases if alias not in known[release]]

    monkeypatch.setattr(features, "unknown", unknown)


def test_by_option_and_by_alias() -> None:
    wanted = [Feature.FANOTIFY, Feature.PACKET, Feature.UDPLITE]
    assert lacking(NEXT, "6.12", wanted) == {Feature.FANOTIFY, Feature.UDPLITE}


def test_what_this_kernel_does_not_show_either_cannot_be_told() -> None:
    assert lacking(NEXT, "6.12", [Feature.PRESSURE, Feature.NETLINK_XFRM]) == set()


def test_without_a_configuration_nothing_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config-7.3").unlink()
    assert lacking(NEXT, "6.12", [Feature.FANOTIFY]) == set()


def test_each_can_be_told_in_one_way() -> None:
    for item in Feature:
        assert bool(item.option) != bool(item.alias), item
        assert item.words
