"""What a lab that was killed may have left behind, and its removal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from rekernel_lab import cache
from rekernel_lab.errors import LabError
from rekernel_lab.run import text
from rekernel_lab.vm import saved, state
from rekernel_lab.vm.netns import Namespace

_STALE_DAYS = 14


def clean(tell: Callable[[str], None], *, everything: bool = False) -> None:
    """End all VMs of this cache and remove what they used; with `everything` the cache too."""
    for path in sorted(state.vms_root().glob("*/")):
        try:
            state.forget(state.load(path.name))
        except LabError:
            shutil.rmtree(path, ignore_errors=True)
        tell(f"removed VM {path.name}")
    for name in orphans(text(["ip", "netns", "list"])):
        Namespace(name).delete()
        tell(f"removed network namespace {name}")
    # A build that goes on holds its lock and would lose its work.
    for kind in ("base", "images", "keys", saved.KIND):
        for part in (cache.root() / kind).glob("*.part"):
            with cache.lock(f"{kind}-{part.stem}"):
                shutil.rmtree(part, ignore_errors=True)
            tell(f"removed unfinished {part.name}")
    for kind in ("base", "images", "runs", saved.KIND):
        for path in cache.stale(kind, _STALE_DAYS):
            shutil.rmtree(path, ignore_errors=True)
            tell(f"removed {kind}/{path.name}, not used for {_STALE_DAYS} days")
    if everything:
        for entry in cache.root().iterdir():
            _remove(entry)
        tell(f"emptied {cache.root()}")


def orphans(listing: str) -> list[str]:
    """Return this cache's namespaces in the output of `ip netns list`."""
    names = (line.split()[0] for line in listing.splitlines() if line.strip())
    return [name for name in names if state.is_own_namespace(name)]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
