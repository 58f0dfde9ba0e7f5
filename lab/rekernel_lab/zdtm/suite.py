"""CRIU's test suite, built from Debian's source package of the very criu that the guests have."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab import cache
from rekernel_lab.errors import LabError
from rekernel_lab.images import aptsources, rootfs
from rekernel_lab.progress import Progress
from rekernel_lab.run import run

# Raise this when the way the suite is built changes.
LAYOUT = 1

# To build every test of the host flavour.
BUILD_PACKAGES = (
    "gcc",
    "libaio-dev",
    "libbpf-dev",
    "libc6-dev",
    "libcap-dev",
    "libprotobuf-c-dev",
    "libtracefs-dev",
    "make",
    "pkg-config",
    "protobuf-c-compiler",
    "python3",
    "xz-utils",
)

# What the built tests, and their hooks, need in a guest.
GUEST_PACKAGES = (
    "apparmor",
    "iptables",
    "libaio1t64",
    "libbpf1",
    "libcap2",
    "libtracefs1",
    "python3-pycriu",
)

KINDS = ("static", "transition")

_SOURCES = "root/zdtm"
_BUILD_S = 1800.0

# The tarball is upstream's: none of Debian's patches is for tests, and so no dpkg-dev is needed.
#
# What a test needs at run time is its program, and what lies beside it under its name. The start
# command comes from the suite's own makefile: only that knows the arguments of each test.
_BUILD = r"""
set -eu
cd /{sources}
apt-get update
apt-get source --yes --tar-only criu={version}
tar -xf criu_*.orig.tar.*
cd criu-*/test/zdtm
make -C lib
for kind in {kinds}; do
    make -C "$kind" --keep-going --jobs="$(nproc)" || echo "not everything could be built"
done
for source in {globs}; do
    test=${{source%.c}}
    command=$(make --dry-run --no-print-directory -C "${{test%/*}}" "${{test##*/}}.pid" 2>&1) ||
        command="none: $command"
    printf '%s\t%s\n' "$test" "$(printf '%s' "$command" | tr '\n\t' '  ')"
done > commands
"""


@dataclass(frozen=True, slots=True)
class Suite:
    """The built suite: `directory` is its folder test/zdtm, `version` that of the source."""

    directory: Path
    version: str

    def commands(self) -> dict[str, str]:
        """Return what the makefile starts each test with, by test; "" if it knows no way."""
        return parse_commands((self.directory / "commands").read_text())


def parse_commands(content: str) -> dict[str, str]:
    """Return the start command of each test from the lines `test TAB what make would run`."""
    found = {}
    for line in content.splitlines():
        test, _, steps = line.partition("\t")
        # Before it come steps that would build the library.
        command = re.search(r"\./\S+ --pidfile=.*", steps)
        found[test] = command[0].strip() if command else ""
    return found


def deb_src(sources: Iterable[aptsources.Source]) -> str:
    """Return the lines of a sources.list(5) file for the source packages of the same archives."""
    return "".join(
        f"deb-src {source.uri} {source.suite} {' '.join(source.components)}\n" for source in sources
    )


def build(base: Path, version: str, progress: Progress) -> Suite:
    """Return the suite of criu `version` (a Debian version), built with the base's compiler.

    Raises LabError if the archive has that version no more, or if it cannot be built.
    """
    name = f"{version}-{cache.key(LAYOUT, BUILD_PACKAGES, _BUILD)}"
    with cache.building("zdtm", name) as scratch:
        if scratch:
            with progress.step(f"Building the tests of criu {version}"):
                _build(base, version, scratch)
    return Suite(cache.root() / "zdtm" / name / "zdtm", version)


def _build(base: Path, version: str, scratch: Path) -> None:
    tree = scratch / "root"
    rootfs.unpack(base, tree)
    rootfs.install(tree, BUILD_PACKAGES)
    archives = aptsources.parse_one_line((tree / "etc/apt/sources.list").read_text())
    (tree / "etc/apt/sources.list.d/sources.list").write_text(deb_src(archives))
    (tree / _SOURCES).mkdir()
    script = _BUILD.format(
        sources=_SOURCES,
        version=version,
        kinds=" ".join(KINDS),
        globs=" ".join(f"{kind}/*.c" for kind in KINDS),
    )
    log = cache.root() / "zdtm" / f"build-{version}.log"
    log.unlink(missing_ok=True)
    try:
        rootfs.in_tree(tree, ["sh", "-c", script], _BUILD_S, log)
    except LabError as error:
        raise LabError(
            f"the tests of criu {version} could not be built: {error}",
            hint=error.hint or "the archive may have a newer criu: remove base/ from the cache",
        ) from error
    built = next((tree / _SOURCES).glob("criu-*/test/zdtm"))
    for pattern in ("*.o", "*.d", "*.a", "*.c", "*.h"):
        for path in built.rglob(pattern):
            path.unlink()
    shutil.move(built, scratch / "zdtm")
    run(["rm", "-r", "--one-file-system", tree])
