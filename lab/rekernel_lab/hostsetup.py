"""What the lab and the package build need on the host, and how it gets there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from rekernel_lab.errors import LabError
from rekernel_lab.images import aptsources
from rekernel_lab.run import run
from rekernel_lab.vm import qemu

# Each Debian package, and what it is for.
PACKAGES = {
    "qemu-system-x86": "the virtual machines",
    "qemu-utils": "disk images",
    "ovmf": "virtual machines with UEFI",
    "cpio": "looking into initrds",
    "mmdebstrap": "root file systems",
    "debian-archive-keyring": "the keys of the archives",
    "e2fsprogs": "disk images without mounting",
    "btrfs-progs": "tests that recognise file systems",
    "dosfstools": "tests that recognise file systems",
    "xfsprogs": "tests that recognise file systems",
    "iproute2": "tap devices and network namespaces",
    "nftables": "scenarios that filter",
    "dnsmasq-base": "networks that lend addresses (DHCP)",
    "wireguard-go": "the other end of tunnels, as this kernel may have none",
    "wireguard-tools": "keys and peers of tunnels",
    "openssh-client": "the way into a guest",
    "util-linux": "namespaces, parent-death signals",
    "python3-rich": "progress on the screen",
    "debhelper": "the product's package",
    "dh-python": "the product's package",
    "dpkg-dev": "the product's package",
    "python3-all": "the product's package",
    "python3-setuptools": "the product's package",
    "pybuild-plugin-pyproject": "the product's package",
    "gcc": "the product's native helper",
    "libc6-dev": "the product's native helper",
    "make": "the product's native helper",
}

# QEMU 7.2, Debian 12's own, gives guests wrong flags under emulation: they crash.
QEMU_MINIMUM = 10
_FROM_BACKPORTS = ("qemu-system-x86", "qemu-utils")
_SOURCES = Path("/etc/apt/sources.list.d/rekernel-lab.sources")


def parse_qemu_version(output: str) -> int:
    """Return the major version from what `qemu-system-x86_64 --version` prints, 0 if unclear."""
    match = re.search(r"version (\d+)\.", output)
    return int(match[1]) if match else 0


def missing(status: str) -> list[str]:
    """Return the packages of the table that are not installed.

    `status` is the output of dpkg-query with lines `package abbreviated-status`.
    """
    installed = {
        line.split()[0].split(":")[0] for line in status.splitlines() if line.endswith(" ii ")
    }
    return [name for name in PACKAGES if name not in installed]


def backports_source(mirror: str, codename: str) -> str:
    """Return the deb822 sources file for the backports of `codename`."""
    return (
        "Types: deb\n"
        f"URIs: {mirror}\n"
        f"Suites: {codename}-backports\n"
        "Components: main\n"
        f"Signed-By: {aptsources.KEYRING}\n"
    )


def setup(tell: Callable[[str], None], mirror: str = "") -> bool:
    """Install what is missing; return whether anything was. `tell` gets a line per action.

    Raises LabError if this host is no Debian >= 12 on amd64, or if apt fails.
    """
    lacking = missing(_status())
    qemu_is_old = "qemu-system-x86" in lacking or _qemu_version() < QEMU_MINIMUM
    if not lacking and not qemu_is_old:
        return False
    release = aptsources.os_release()
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        raise LabError("this host is not Debian", hint=f"install by hand: {', '.join(PACKAGES)}")
    backports = codename == "bookworm" and qemu_is_old
    if backports and not any(
        source.suite == f"{codename}-backports" for source in aptsources.host_sources()
    ):
        tell(f"adding {_SOURCES}")
        _SOURCES.write_text(backports_source(mirror or aptsources.host_mirror(), codename))
    tell("updating the package lists")
    run(["apt-get", "--quiet", "update"], timeout=300)
    install = ["apt-get", "--yes", "--quiet", "--no-install-recommends", "install"]
    if backports:
        tell(f"installing {' '.join(_FROM_BACKPORTS)} from {codename}-backports")
        run([*install, "-t", f"{codename}-backports", *_FROM_BACKPORTS], timeout=1800)
    rest = [name for name in missing(_status()) if not (backports and name in _FROM_BACKPORTS)]
    if rest:
        tell(f"installing {' '.join(rest)}")
        run([*install, *rest], timeout=1800)
    if _qemu_version() < QEMU_MINIMUM:
        raise LabError(f"QEMU is older than {QEMU_MINIMUM} even now", hint="use Debian 12 or 13")
    return True


def _status() -> str:
    done = run(
        ["dpkg-query", "--show", "--showformat=${binary:Package} ${db:Status-Abbrev}\n", *PACKAGES],
        check=False,
    )
    return done.stdout.decode()


def _qemu_version() -> int:
    try:
        return parse_qemu_version(run([qemu.BINARY, "--version"]).stdout.decode())
    except LabError:
        return 0
