"""The product as a package: built by its own makefile, installed as a user would."""

from __future__ import annotations

import re
from pathlib import Path

from rekernel_lab import cache
from rekernel_lab.errors import LabError
from rekernel_lab.run import run, text
from rekernel_lab.vm.guest import Guest

_IN_GUEST = "/root/rekernel.deb"


def newest(directory: Path) -> Path:
    """Return the newest rekernel package in `directory`; raises LabError if there is none."""
    found = sorted(directory.glob("rekernel_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise LabError(f"no rekernel_*.deb in {directory}", hint="make deb, or give --deb FILE")
    return found[-1]


def build() -> Path:
    """Build the package from this repository and return it."""
    run(["make", "-C", cache.REPOSITORY, "deb"], timeout=900)
    return newest(cache.REPOSITORY / ".cache" / "dist")


def parse_depends(field: str) -> list[str]:
    """Return the package names of a Depends field; of alternatives the first."""
    names = (item.split("|")[0].split("(")[0].strip() for item in field.split(","))
    return sorted({re.sub(r":.*", "", name) for name in names if name})


def dependencies(package: Path) -> list[str]:
    """Return what the package needs: to be in the image, as guests have no way out."""
    return parse_depends(text(["dpkg-deb", "--field", package, "Depends"]))


def install(guest: Guest, package: Path) -> None:
    """Install the package in a guest with apt; raises LabError if that fails."""
    guest.push(package, _IN_GUEST)
    apt = "DEBIAN_FRONTEND=noninteractive apt-get --yes --quiet --no-install-recommends install"
    guest.run(f"{apt} {_IN_GUEST}", timeout=300)
