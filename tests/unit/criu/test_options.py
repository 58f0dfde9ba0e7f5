"""criu's command lines: what must be the same on both sides, and what must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekernel.criu.options import RESTORE_ROOT, TreeOptions, dump_argv, restore_argv, trees_of

BOTH = {"--tcp-established", "--file-locks", "--ext-unix-sk", "--link-remap"}


def dump(tree: TreeOptions) -> list[str]:
    return dump_argv(tree, Path("/a/images/tree"), Path("/work"), Path("/a/parent"))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("private", [False, True])
def test_pairs(lazy: bool, private: bool) -> None:
    tree = TreeOptions(7, "/system.slice/a.service", private, lazy)
    there, back = dump(tree), restore_argv(tree)
    assert there[:4] == ["criu", "dump", "--tree", "7"]
    assert back[:2] == ["criu", "restore"]
    assert {*there} & {*back} >= BOTH
    for argv in (there, back):
        assert ("--ext-mount-map" in argv) == private
        assert argv[argv.index("--network-lock") + 1] == "skip"
        assert "--manage-cgroups=ignore" in argv
    # What the dump leaves where it is, the restore must not look for in the images.
    assert ("--lazy-pages" in back) == lazy
    assert ("--track-mem" in there) == lazy
    if lazy:
        assert there[there.index("--prev-images-dir") + 1] == "../../parent"
    # An aborted dump must never end the tree.
    assert "--leave-running" in there
    # Another tree may be in the same one: see transition/seizing.py.
    assert "--freeze-cgroup" not in there
    assert (RESTORE_ROOT in back) == private
    assert [part for part in back if "{" in part] == ["{images}", "{work}"]


def test_descriptors_are_external_to_the_dump_only() -> None:
    tree = TreeOptions(7, "/a", False, False, ("unix[12]", "mnt[/data]:data", "file[1e:4]"))
    there, back = dump(tree), restore_argv(tree)
    assert [there[at + 1] for at, word in enumerate(there) if word == "--external"] == [
        *tree.externals
    ]
    # The restore gets descriptors by --inherit-fd.
    assert [back[at + 1] for at, word in enumerate(back) if word == "--external"] == [
        "mnt[/data]:data"
    ]


def test_session_of_somebody_else() -> None:
    tree = TreeOptions(7, "/a", False, False, led_elsewhere=True)
    assert all("--shell-job" in argv for argv in (dump(tree), restore_argv(tree)))
    own = TreeOptions(7, "/a", False, False)
    assert not any("--shell-job" in argv for argv in (dump(own), restore_argv(own)))


def test_trees() -> None:
    parents = {10: 1, 11: 10, 12: 11, 20: 1, 30: 999}
    found = trees_of([12, 20, 11, 10, 30], parents)
    assert list(found.items()) == [(10, [10, 11, 12]), (20, [20]), (30, [30])]
    assert trees_of([11, 12], parents) == {11: [11, 12]}
    assert trees_of([], parents) == {}
    assert trees_of([10, 11, 13], parents) == {10: [10, 11]}
