"""The initrd is all that the agent has: it must start in nothing but that."""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rekernel.carry.disks.entry import RootConfig
from rekernel.carry.memory.entry import Extent
from rekernel.handover.config import AgentConfig, load_config
from rekernel.kernel import initrd
from rekernel.kernel.modules import ModuleSet
from rekernel.records import replace

CONFIG = AgentConfig(
    "id",
    RootConfig("uuid", "ext4", 0, ""),
    (("/modules/one.ko",),),
    Extent(0, 2),
    Extent(0, 1),
    "",
    ("/sbin/init",),
    ("criu", "check"),
)

# Runs in the unpacked archive as /init does, but for its last step. Then all files are gone.
_PROBE = """
import os, sys
init = {"__name__": "init"}
exec(open("/init").read(), init)
config = init["make_importable"]()
before = set(sys.modules)
os.chroot("/proc")
import rekernel.agent.main
early = sorted(set(sys.modules) - before)
import rekernel.agent.resume, rekernel.agent.remains, traceback
import json
loaded = {name: module.__spec__.origin for name, module in sys.modules.items()
    if name.startswith("rekernel")}
print(json.dumps([config, early, loaded]))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() != 0 or shutil.which("cpio") is None:
        pytest.skip("needs root and cpio")
    scratch = tmp_path_factory.mktemp("initrd")
    module = scratch / "one.ko.xz"
    module.write_bytes(lzma.compress(b"module"))
    data, _ = initrd.build(CONFIG, ModuleSet(((module,),)))
    target = scratch / "root"
    target.mkdir()
    command = ["cpio", "--extract", "--make-directories", "--quiet"]
    subprocess.run(command, input=data, cwd=target, check=True)
    return target


def test_contents(unpacked: Path) -> None:
    assert (unpacked / "modules/one.ko").read_bytes() == b"module"
    first = (unpacked / "init").read_text().splitlines()[0]
    interpreter = re.fullmatch(r"#!(/\S+) -IS", first)
    assert interpreter
    assert (unpacked / interpreter[1].lstrip("/")).stat().st_mode & 0o111
    assert (unpacked / "init").stat().st_mode & 0o111
    for name in ("proc", "sys", "sysroot", "run"):
        assert (unpacked / name).is_dir()
    # Small enough to be read and unpacked in no time.
    size = sum(path.stat().st_size for path in unpacked.rglob("*") if path.is_file())
    assert size < 32 << 20


def test_the_agent_starts_there(unpacked: Path) -> None:
    python = str(Path(sys.executable).resolve())
    # A file, as /init is one.
    (unpacked / "probe").write_text(_PROBE)
    done = subprocess.run(
        [shutil.which("chroot") or "chroot", str(unpacked), python, "-IS", "/probe"],
        capture_output=True,
        text=True,
        env={},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    config, early, loaded = json.loads(done.stdout)
    assert load_config(config) == CONFIG
    assert {"rekernel.agent.boot", "rekernel.syscalls"} <= set(early)
    # What is imported before kernel modules begin to load costs blackout time.
    assert not {"dataclasses", "enum", "json", "pathlib", "re", "socket", "typing"} & set(early)
    # Compiled beforehand: nothing is parsed in the blackout.
    assert not list(unpacked.rglob("*.py"))
    assert len(loaded) > 10
    assert set(loaded.values()) == {"initrd"}


def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew for another configuration, or for a module that is another one."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setattr(initrd.kept, "DIRECTORY", tmp_path / "kept")  # type: ignore[attr-defined]
    module, scratch = tmp_path / "one.ko", tmp_path / "scratch"
    module.write_bytes(b"module")
    built: list[int] = []

    def build(config: AgentConfig, modules: ModuleSet) -> tuple[bytes, list[str]]:
        built.append(1)
        return b"made", [str(module)]

    monkeypatch.setattr(initrd, "build", build)
    modules = ModuleSet(((module,),))
    time.sleep(0.15)
    first = initrd.file_for(CONFIG, modules, scratch, again=True)
    assert first.read_bytes() == b"made"
    assert initrd.file_for(CONFIG, modules, scratch, again=True) == first
    assert (len(built), scratch.exists()) == (1, False)
    assert initrd.file_for(replace(CONFIG, panic="9"), modules, scratch, again=True) != first
    assert initrd.file_for(CONFIG, modules, scratch, again=False) == scratch
    module.write_bytes(b"other")
    time.sleep(0.15)
    assert initrd.file_for(CONFIG, modules, scratch, again=True) == first
    assert len(built) == 4


def test_all_that_it_is_made_of_is_known(tmp_path: Path) -> None:
    module = tmp_path / "one.ko"
    module.write_bytes(b"module")
    _, made_of = initrd.build(CONFIG, ModuleSet(((module,),)))
    agent = Path(initrd.__file__).parents[1] / "agent"
    for path in (
        module, agent / "init.py", agent / "main.py", agent, agent.parent, initrd.__file__,
        json.__file__, Path(json.__file__).parent, Path(json.__file__).parents[1],
        Path(sys.executable).resolve(), "/etc/ld.so.cache",
    ):  # fmt: skip
        assert str(path) in made_of, path
