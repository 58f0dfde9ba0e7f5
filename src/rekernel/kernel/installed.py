"""The kernels that can be switched to."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rekernel.errors import BlockedError, UsageError
from rekernel.records import record


@record
class Kernel:
    """An installed kernel: its release, image and modules."""

    release: str
    image: Path
    modules: Path


def _version_key(release: str) -> tuple[tuple[int, int, str], ...]:
    """Order like the releases themselves: numbers as numbers, "-rc" and "~" before nothing."""
    found = [
        (3, int(part), "") if part.isdigit() else (0 if part in ("~", "rc") else 2, 0, part)
        for part in re.findall(r"\d+|~|[a-z]+", release)
    ]
    return (*found, (1, 0, ""))


def installed(root: Path = Path("/")) -> list[Kernel]:
    """Every kernel that has both an image and modules, oldest first."""
    found = {}
    for modules in sorted((root / "usr/lib/modules").glob("*")):
        if not (modules / "modules.dep").exists():
            continue
        for image in (root / "boot" / f"vmlinuz-{modules.name}", modules / "vmlinuz"):
            if image.exists():
                found[modules.name] = Kernel(modules.name, image, modules)
                break
    return sorted(found.values(), key=lambda kernel: _version_key(kernel.release))


def running_release() -> str:
    """The release of the running kernel."""
    return os.uname().release


def choose(wanted: str | None, kernels: list[Kernel]) -> Kernel:
    """The kernel with this release or prefix; None takes the newest.

    Raises UsageError if none matches, BlockedError if none is installed at all.
    """
    if not kernels:
        raise BlockedError(
            "no installed kernel has both an image and modules",
            "install a linux-image package",
        )
    if wanted is None:
        return kernels[-1]
    exact = [kernel for kernel in kernels if kernel.release == wanted]
    if exact:
        return exact[0]
    matching = [
        kernel for kernel in kernels if re.match(re.escape(wanted) + r"(?!\d)", kernel.release)
    ]
    if not matching:
        names = ", ".join(kernel.release for kernel in kernels)
        raise UsageError(f"no installed kernel matches {wanted}", f"installed: {names}")
    return matching[-1]
