"""What another kernel lacks, by what modprobe says of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rekernel.kernel import fitness
from rekernel.kernel.installed import Kernel
from rekernel.records import replace
from rekernel.run import CommandFailedError

NEW = Kernel("7.3.4", Path("/boot/vmlinuz-7.3.4"), Path("/x"))
DISK, BRIDGE = "virtio:d00000002v00001AF4", "pci:v00008086d00001237"
WANTED = fitness.Needs((DISK, BRIDGE, "fs-xfs", "fs-ext4", "dax_hmem", "nf_tables"))


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """Release -> alias -> the last line that modprobe prints for it."""
    both = {
        DISK: "insmod /lib/modules/x/drivers/block/virtio_blk.ko.xz ",
        "fs-xfs": "builtin xfs",
        "fs-ext4": "insmod /lib/modules/x/ext4.ko.xz ",
        "dax_hmem": "insmod /lib/modules/x/dax_hmem.ko.xz region_idle=1",
        "nf_tables": "insmod /lib/modules/x/nf_tables.ko.xz ",
    }
    found = {"6.12.1": dict(both), "7.3.4": dict(both)}

    def modprobe(argv: Sequence[str], *, check: bool = True) -> str:
        words = argv[argv.index("--") + 1 :]
        answers = found[argv[2]]
        lines = [
            f"modprobe: FATAL: Module {word.replace('-', '_')} not found in directory /lib/modules"
            for word in words
            if word not in answers
        ]
        if lines and check:
            raise CommandFailedError(argv, 1, "\n".join(lines))
        return "".join(f"insmod /first.ko\n{answers[word]}\n" for word in words if word in answers)

    monkeypatch.setattr(fitness, "run", modprobe)
    monkeypatch.setattr(fitness, "_BOOT", tmp_path)
    return found


def shortcomings(*, region: bool = True) -> list[str]:
    return fitness.shortcomings(NEW, "6.12.1", WANTED, region=region)


def test_what_the_running_one_does_not_have_either(known: dict[str, dict[str, str]]) -> None:
    assert shortcomings() == []


def test_drivers(known: dict[str, dict[str, str]]) -> None:
    for alias in (DISK, "fs-xfs", "dax_hmem"):
        del known["7.3.4"][alias]
    assert shortcomings() == ["no virtio_blk", "no xfs", "no dax_hmem"]
    assert shortcomings(region=False) == ["no virtio_blk", "no xfs"]


def test_what_is_built_in_by_another_name(known: dict[str, dict[str, str]], tmp_path: Path) -> None:
    del known["7.3.4"][DISK], known["7.3.4"]["fs-xfs"]
    (tmp_path / "modules.builtin").write_text("kernel/drivers/block/virtio-blk.ko\n")
    kernel = replace(NEW, modules=tmp_path)
    assert fitness.shortcomings(kernel, "6.12.1", WANTED, region=True) == ["no xfs"]


def test_options(known: dict[str, dict[str, str]], tmp_path: Path) -> None:
    config = tmp_path / "config-7.3.4"
    options = ["BLK_DEV_INITRD", "CHECKPOINT_RESTORE", "MEMFD_CREATE", "UNIX", "USERFAULTFD"]
    config.write_text("".join(f"CONFIG_{name}=y\n" for name in options))
    assert shortcomings() == []
    config.write_text("".join(f"CONFIG_{name}=y\n" for name in options[2:4]))
    lacking = ["no CONFIG_BLK_DEV_INITRD", "no CONFIG_CHECKPOINT_RESTORE"]
    assert shortcomings() == [*lacking, "no CONFIG_USERFAULTFD"]
    assert shortcomings(region=False) == lacking


def test_what_an_older_driver_does_not_know(
    known: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "md-mod.ko"
    module.write_bytes(b"\0logical_block_size\0")
    monkeypatch.setattr(fitness, "run", lambda argv, check: f"{module}\n")
    monkeypatch.setattr(fitness, "unknown", lambda release, aliases: [])
    needs = fitness.Needs((), {"md_mod": ("logical_block_size", "llbitmap")})
    assert fitness.shortcomings(NEW, "6.12.1", needs, region=True) == ["no llbitmap in md_mod"]
    # Built in: it is not known what it knows.
    monkeypatch.setattr(fitness, "run", lambda argv, check: "(builtin)\n")
    lacking = ["no logical_block_size in md_mod", "no llbitmap in md_mod"]
    assert fitness.shortcomings(NEW, "6.12.1", needs, region=True) == lacking
