"""criu's command lines for one tree; docs/architecture.md says why each option is there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rekernel.criu.log import DUMP_LOG, RESTORE_LOG
from rekernel.records import record

HOOK = "/usr/lib/rekernel/rekernel-hook"
# A bind mount of / with which criu can pivot when a tree has a mount namespace of its own.
RESTORE_ROOT = "/run/rekernel/root"

# Makes criu check the kernel and keep the result in /run/criu.kdat. It talks to itself over
# loopback, so it must have run before the network is locked.
CRIU_CHECK = ("criu", "check", "--feature", "pidfd_store")

_COMMON = (
    "--tcp-established",
    # The lock is ours: one cut over all trees.
    "--network-lock", "skip",
    "--file-locks",
    "--ext-unix-sk",
    "--link-remap",
    "--manage-cgroups=ignore",
    # Warnings and errors; -v4 costs blackout time.
    "-v2",
)  # fmt: skip

_MOUNTS = (
    "--ext-mount-map", "auto",
    "--enable-external-masters",
    "--enable-external-sharing",
)  # fmt: skip


@record
class TreeOptions:
    """What decides the options of one tree."""

    root_pid: int
    cgroup: str
    private_mounts: bool
    lazy: bool
    externals: tuple[str, ...] = ()
    # Whether the leader of its session is another one, or gone: it comes back in one of its own.
    led_elsewhere: bool = False
    # Mount points of its own namespace that are not there on the next kernel.
    skipped: tuple[str, ...] = ()


def dump_argv(
    tree: TreeOptions, images: Path, work: Path, parent: Path, log: str = DUMP_LOG
) -> list[str]:
    """criu dump: everything written, then held in the post-dump hook until told.

    ``parent``: images that have all pages; for a lazy tree, whose pages stay where they are.
    """
    argv = [
        "criu", "dump",
        "--tree", str(tree.root_pid),
        "--images-dir", str(images),
        "--work-dir", str(work),
        "--log-file", log,
        # Whatever ends the dump without the kexec: the tree runs on.
        "--leave-running",
        "--skip-in-flight",
        "--ghost-limit", "256M",
        "--timeout", "60",
        "--action-script", HOOK,
        *_COMMON,
    ]  # fmt: skip
    if tree.lazy:
        # As criu sees it from there, whatever links lead there.
        directory = os.path.realpath(images)
        argv += ["--track-mem", "--prev-images-dir", os.path.relpath(parent, directory)]
    if tree.led_elsewhere:
        argv.append("--shell-job")
    if tree.private_mounts:
        argv += _MOUNTS
    for target in tree.skipped:
        argv += ["--skip-mnt", target]
    for external in tree.externals:
        argv += ["--external", external]
    return argv


def restore_argv(tree: TreeOptions) -> list[str]:
    """criu restore, for the agent: {images} and {work} stand for its directories."""
    argv = [
        "criu", "restore",
        "--restore-detached",
        "--images-dir", "{images}",
        "--work-dir", "{work}",
        "--log-file", RESTORE_LOG,
        "--action-script", HOOK,
        *_COMMON,
    ]  # fmt: skip
    if tree.lazy:
        argv.append("--lazy-pages")
    if tree.led_elsewhere:
        argv.append("--shell-job")
    if tree.private_mounts:
        argv += [*_MOUNTS, "--root", RESTORE_ROOT]
    for external in tree.externals:
        if external.startswith("mnt["):
            argv += ["--external", external]
    return argv


def holds_namespace(pid: int, name: str) -> bool:
    """Whether a process has another namespace of this kind than the init system."""
    return Path(f"/proc/{pid}/ns/{name}").readlink() != Path(f"/proc/1/ns/{name}").readlink()


def led_elsewhere(root: int) -> bool:
    """Whether a process belongs to a session that another one leads, or led."""
    return os.getsid(root) != root


def trees_of(pids: Iterable[int], parents: Mapping[int, int]) -> dict[int, list[int]]:
    """The process trees that these form: each root, whose parent is not among them, and its own.

    One that ``parents`` does not know has come or gone meanwhile: left out.
    """
    inside = {pid for pid in pids if pid in parents}
    found: dict[int, list[int]] = {}
    for pid in sorted(inside):
        root = pid
        while parents.get(root) in inside:
            root = parents[root]
        found.setdefault(root, []).append(pid)
    return dict(sorted(found.items()))
