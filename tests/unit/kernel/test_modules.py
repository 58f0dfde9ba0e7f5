"""Modules in waves, from what modprobe and depmod say of real kernels."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from recorded import Recorded, on_each_kernel

from rekernel.errors import BlockedError
from rekernel.kernel import initrd, modules
from rekernel.kernel.modules import ModuleSet

NETWORK = "virtio:d00000001v00001AF4"
DISK = "virtio:d00000002v00001AF4"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(modules, "_MODULES", tmp_path)
    return tmp_path


def replay(recorded: Recorded, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """modprobe answers what it answered on that machine, about modules below `tree`."""
    (tree / recorded.release).mkdir()
    (tree / recorded.release / "modules.dep").write_text(recorded.text("modules.dep"))

    def modprobe(argv: Sequence[str], *, check: bool) -> str:
        options = ["modprobe", "-S", recorded.release, "--show-depends", "--all", "--"]
        assert argv[: len(options)] == options
        # It fails for the one that it does not know, and has told of the others.
        assert not check
        answers = [recorded.directory / "modprobe" / alias for alias in argv[len(options) :]]
        text = "".join(path.read_text() for path in answers if path.exists())
        return text.replace("/lib/modules", str(tree))

    monkeypatch.setattr(modules, "run", modprobe)


def names(found: ModuleSet) -> list[set[str]]:
    return [{path.name for path in wave} for wave in found.waves]


@on_each_kernel
def test_a_virtual_machine(recorded: Recorded, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay(recorded, tree, monkeypatch)
    aliases = [NETWORK, DISK, "fs-ext4", "fs-tmpfs", "no_such_module", *modules.ALWAYS]
    found = modules.resolve(recorded.release, aliases)
    waves = names(found)
    first = {"failover.ko.xz", "virtio_blk.ko.xz", "dax_hmem.ko.xz", "device_dax.ko.xz"}
    assert first <= waves[0]
    assert waves[1] >= {"net_failover.ko.xz"}
    assert waves[2] == {"virtio_net.ko.xz"}
    # Each once, each after everything that it needs.
    assert len(found.files) == len(set(found.files))
    done: set[Path] = set()
    for wave in found.waves:
        for path in wave:
            line = next(
                line
                for line in recorded.text("modules.dep").splitlines()
                if line.startswith(f"{path.relative_to(tree / recorded.release)}:")
            )
            needs = {tree / recorded.release / word for word in line.split(":")[1].split()}
            assert needs <= done, path.name
        done |= {*wave}
    assert initrd.module_waves(found)[2] == ("/modules/virtio_net.ko",)
    # From the kernel command line of that machine.
    assert initrd.module_parameters(found) == {"/modules/dax_hmem.ko": "region_idle=1"}


@on_each_kernel
def test_nothing_needed(recorded: Recorded, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay(recorded, tree, monkeypatch)
    assert modules.resolve(recorded.release, ["no_such_module"]) == ModuleSet(())


def test_no_index(tree: Path) -> None:
    with pytest.raises(BlockedError, match=r"kernel 6\.12\.1 has no module index") as error:
        modules.resolve("6.12.1", ["ext4"])
    assert error.value.hint == "run depmod 6.12.1"


def test_modules_are_decompressed(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    (tmp_path / "a.ko").write_bytes(content)
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(content))
    assert modules.read_module(tmp_path / "a.ko") == content
    assert modules.read_module(tmp_path / "a.ko.xz") == content
    if shutil.which("zstd"):
        subprocess.run(["zstd", "-q", str(tmp_path / "a.ko")], check=True)
        assert modules.read_module(tmp_path / "a.ko.zst") == content


def test_devices_by_way_of_what_they_hang_on(tmp_path: Path) -> None:
    block = tmp_path / "pci0000:00/0000:00:02.0/virtio0/block/vda"
    block.mkdir(parents=True)
    (block.parents[1] / "modalias").write_text(f"{DISK}\n")
    (block.parents[2] / "modalias").write_text("pci:v00001AF4d00001042\n")
    (tmp_path / "dev").symlink_to(block)
    assert modules._device_aliases(tmp_path / "dev") == [DISK, "pci:v00001AF4d00001042"]
