"""Debian's kernel packages: which ones there are, and which one a version prefix means."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab import cache
from rekernel_lab.errors import UsageError
from rekernel_lab.images.aptsources import KEYRING
from rekernel_lab.run import run, text

FLAVOUR = "cloud-amd64"
SUITES = ("trixie", "trixie-backports")
DEFAULT_PREFIXES = ("6.12", "7")

# The package lists are asked for again after this time; within it, builds are repeatable.
_LISTS_MAX_AGE_S = 7 * 24 * 3600

_PACKAGE = re.compile(r"linux-image-(?P<release>(?P<version>[0-9][0-9.]*)\S*)$")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One installable kernel. `release` is what uname -r will say."""

    release: str

    @property
    def package(self) -> str:
        """The package that brings the whole kernel, split into several (>= 6.19) or not."""
        return f"linux-image-{self.release}"

    @property
    def version(self) -> tuple[int, ...]:
        """The numeric version, for ordering."""
        return version_of(self.release)


def version_of(release: str) -> tuple[int, ...]:
    """Return the leading dotted number of a kernel release as integers."""
    match = re.match(r"[0-9]+(\.[0-9]+)*", release)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def parse_packages(names: Iterable[str], flavour: str = FLAVOUR) -> list[Kernel]:
    """Return the kernels of `flavour` among package names, oldest first."""
    found = {
        match["release"]
        for match in map(_PACKAGE.match, names)
        if match and match["release"].endswith(f"-{flavour}")
    }
    return sorted((Kernel(release) for release in found), key=lambda kernel: kernel.version)


def matches(release: str, prefix: str) -> bool:
    """Tell whether `prefix` names `release`: whole numbers only, so 7.1 is not 7.13."""
    if release == prefix:
        return True
    return release.startswith(prefix) and not (
        prefix[-1:].isdigit() and release[len(prefix)].isdigit()
    )


def pick(kernels: Iterable[Kernel], prefix: str) -> Kernel:
    """Return the newest kernel that `prefix` names.

    Raises UsageError if there is none.
    """
    available = list(kernels)
    fitting = [kernel for kernel in available if prefix and matches(kernel.release, prefix)]
    if not fitting:
        known = ", ".join(kernel.release for kernel in available) or "none"
        raise UsageError(f"no kernel {prefix!r} in {' or '.join(SUITES)}", hint=f"there: {known}")
    return max(fitting, key=lambda kernel: kernel.version)


def available(mirror: str) -> list[Kernel]:
    """Return the kernels that the Debian archive `mirror` offers, oldest first.

    Asks apt, in a configuration of its own, so that signatures are checked and the host's
    apt is left alone.
    """
    directory = cache.root() / "apt" / cache.key(mirror, SUITES)
    with cache.lock("apt"):
        stamp = directory / "updated"
        options = _private_apt(directory, mirror)
        if not stamp.exists() or time.time() - stamp.stat().st_mtime > _LISTS_MAX_AGE_S:
            run(["apt-get", *options, "--error-on=any", "update"], timeout=300)
            stamp.touch()
        names = text(["apt-cache", *options, "pkgnames", "linux-image-"])
    return parse_packages(names.split())


def resolve(mirror: str, prefixes: Iterable[str]) -> list[Kernel]:
    """Return the kernel for each prefix, in the same order."""
    offered = available(mirror)
    return [pick(offered, prefix) for prefix in prefixes]


def _private_apt(directory: Path, mirror: str) -> list[str]:
    for name in ("etc/apt/sources.list.d", "etc/apt/preferences.d", "lists/partial", "archives"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    status = directory / "status"
    status.touch()
    (directory / "etc/apt/sources.list").write_text(
        "".join(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n" for suite in SUITES)
    )
    settings = {
        "Dir::Etc": directory / "etc/apt",
        "Dir::State::lists": directory / "lists",
        "Dir::State::status": status,
        "Dir::Cache": directory / "archives",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        # A mirror frozen in time is fine for a lab: it is about this kernel, not about today.
        "Acquire::Check-Valid-Until": "false",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
    }
    return [f"-o{name}={value}" for name, value in settings.items()]
