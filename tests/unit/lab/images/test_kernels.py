"""Which kernel package a version prefix means."""

from __future__ import annotations

import pytest

from rekernel_lab.errors import UsageError
from rekernel_lab.images.kernels import Kernel, matches, parse_packages, pick

NAMES = [
    "linux-image-6.12.94+deb13-cloud-amd64",
    "linux-image-6.12.107+deb13-cloud-amd64",
    "linux-image-6.12.107+deb13-cloud-amd64-dbg",
    "linux-image-6.12.107+deb13-cloud-amd64-unsigned",
    "linux-image-6.12.107+deb13-amd64",
    "linux-image-7.1.13+deb13-cloud-amd64",
    "linux-image-7.3.4+deb13-cloud-amd64",
    "linux-image-7.3.4+deb13-cloud-arm64",
    "linux-image-cloud-amd64",
    "linux-image-7.13.1+deb13-cloud-amd64",
]


def test_only_bootable_kernels_of_the_flavour_in_order() -> None:
    assert [kernel.version for kernel in parse_packages(NAMES)] == [
        (6, 12, 94),
        (6, 12, 107),
        (7, 1, 13),
        (7, 3, 4),
        (7, 13, 1),
    ]


@pytest.mark.parametrize(
    ("prefix", "release"),
    [
        ("6.12", "6.12.107+deb13-cloud-amd64"),
        ("6.12.94", "6.12.94+deb13-cloud-amd64"),
        ("7.3", "7.3.4+deb13-cloud-amd64"),
        ("7.1", "7.1.13+deb13-cloud-amd64"),
        ("7", "7.13.1+deb13-cloud-amd64"),
        ("7.3.4+deb13-cloud-amd64", "7.3.4+deb13-cloud-amd64"),
    ],
)
def test_prefix_means_the_newest(prefix: str, release: str) -> None:
    assert pick(parse_packages(NAMES), prefix).release == release


def test_package_name_comes_back() -> None:
    assert Kernel("7.3.4+deb13-cloud-amd64").package == NAMES[6]


@pytest.mark.parametrize("prefix", ["7.2", "6.1", ""])
def test_unknown_prefix_names_what_there_is(prefix: str) -> None:
    with pytest.raises(UsageError, match="no kernel") as caught:
        pick(parse_packages(NAMES), prefix)
    assert "7.3.4" in caught.value.hint


def test_numbers_match_whole() -> None:
    assert matches("7.13.1+deb13", "7.13")
    assert not matches("7.13.1+deb13", "7.1")
    assert not matches("7.1", "7.1.3")
