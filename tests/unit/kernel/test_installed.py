"""Which kernels are there, in which order, and which of them somebody means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekernel.errors import BlockedError, UsageError
from rekernel.kernel.installed import Kernel, _version_key, choose, installed

# As Debian names them, oldest first.
RELEASES = [
    "5.10.0-9-amd64",
    "5.10.0-30-amd64",
    "6.1.0-9-amd64",
    "6.1.0-18-amd64",
    "6.11.10+bpo-amd64",
    "6.12-rc6-amd64",
    "6.12~rc7-amd64",
    "6.12-amd64",
    "6.12.9-amd64",
    "6.12.43+deb13-amd64",
    "6.12.43+deb13-cloud-amd64",
    "6.12.107+deb13-cloud-amd64",
    "7.0~rc1+unreleased-amd64",
    "7.0-amd64",
    "7.3.4+deb13-cloud-amd64",
]


def install(root: Path, release: str, image: str = "boot") -> None:
    modules = root / "usr/lib/modules" / release
    modules.mkdir(parents=True, exist_ok=True)
    (modules / "modules.dep").write_text("")
    path = root / "boot" / f"vmlinuz-{release}" if image == "boot" else modules / "vmlinuz"
    path.parent.mkdir(exist_ok=True)
    path.write_text("")


def kernels(*releases: str) -> list[Kernel]:
    return [Kernel(release, Path("i"), Path("m")) for release in releases]


def test_oldest_first(tmp_path: Path) -> None:
    for release in reversed(RELEASES):
        install(tmp_path, release)
    assert [kernel.release for kernel in installed(tmp_path)] == RELEASES


version = st.lists(st.integers(0, 300), min_size=2, max_size=4)


@given(version, version)
def test_numbers_count_as_numbers(one: list[int], other: list[int]) -> None:
    def release(numbers: list[int]) -> str:
        return ".".join(map(str, numbers)) + "-amd64"

    assert (_version_key(release(one)) < _version_key(release(other))) == (one < other)


def test_only_kernels_with_image_and_modules(tmp_path: Path) -> None:
    install(tmp_path, "6.12.1")
    install(tmp_path, "6.12.2", "modules")
    install(tmp_path, "6.12.3")
    (tmp_path / "usr/lib/modules/6.12.3/modules.dep").unlink()
    install(tmp_path, "6.12.4")
    (tmp_path / "boot/vmlinuz-6.12.4").unlink()
    found = installed(tmp_path)
    assert [kernel.release for kernel in found] == ["6.12.1", "6.12.2"]
    assert [kernel.image.relative_to(tmp_path) for kernel in found] == [
        Path("boot/vmlinuz-6.12.1"),
        Path("usr/lib/modules/6.12.2/vmlinuz"),
    ]


@pytest.mark.parametrize(
    ("wanted", "release"),
    [
        (None, RELEASES[-1]),
        ("6.1", "6.1.0-18-amd64"),
        ("6.1.0-9", "6.1.0-9-amd64"),
        ("6.12", "6.12.107+deb13-cloud-amd64"),
        ("6.12.43", "6.12.43+deb13-cloud-amd64"),
        ("6.12.43+deb13-amd64", "6.12.43+deb13-amd64"),
        ("6", "6.12.107+deb13-cloud-amd64"),
        ("6.12-amd64", "6.12-amd64"),
        ("6.12~rc7", "6.12~rc7-amd64"),
    ],
)
def test_choose(wanted: str | None, release: str) -> None:
    assert choose(wanted, kernels(*RELEASES)).release == release


@pytest.mark.parametrize("wanted", ["6.1", "6.12.4", "6.12.10", "6x12", "", "12", "6.12.43.", "("])
def test_no_such_kernel(wanted: str) -> None:
    message = rf"^no installed kernel matches {wanted}$".replace("(", r"\(")
    with pytest.raises(UsageError, match=message) as error:
        choose(wanted, kernels("6.12.43-amd64", "6.12.107-amd64"))
    assert error.value.hint == "installed: 6.12.43-amd64, 6.12.107-amd64"
    assert error.value.exit_code == 2


def test_no_kernel_at_all() -> None:
    with pytest.raises(BlockedError, match="no installed kernel has both an image and modules"):
        choose(None, [])
