"""The initrd with the agent: for exactly this machine, this kernel and this interpreter."""

from __future__ import annotations

import json
import py_compile
import re
import sys
import tempfile
from pathlib import Path

from rekernel.handover.config import CONFIG_PATH, AgentConfig, dump_config
from rekernel.kernel.cpio import CpioArchive
from rekernel.kernel.modules import ModuleSet, read_module
from rekernel.run import run

_PACKAGES = "/rekernel"
_MODULES = "/modules"

# The interpreter starts isolated (-I: no environment, no user site) and without site (-S).
_INIT = f"""#!{{python}} -IS
import sys
sys.path.insert(0, "{_PACKAGES}")
from rekernel.agent.main import main
main()
"""

_LIST_IMPORTS = """
import sys, json
sys.path.insert(0, sys.argv[1])
import rekernel.agent.main
files = {}
for name, module in sorted(sys.modules.items()):
    path = getattr(module, "__file__", None)
    if path:
        files[name] = path
    elif getattr(module, "__spec__", None) and module.__spec__.origin == "frozen":
        files.setdefault(name, "")
print(json.dumps(files))
"""

# Imported by name while the interpreter starts or when text is first decoded.
_ALWAYS = ("encodings", "encodings.aliases", "encodings.utf_8", "encodings.ascii", "encodings.idna")


def agent_imports(python: str) -> dict[str, Path]:
    """Module name -> source file of everything the agent imports, as this interpreter finds it."""
    here = Path(__file__).resolve().parents[2]
    text = run([python, "-I", "-S", "-B", "-c", _LIST_IMPORTS, str(here)])
    return {name: Path(path) for name, path in json.loads(text).items() if path}


def shared_objects(paths: list[Path]) -> list[Path]:
    """The libraries that these objects are linked with, and the loader."""
    found: dict[Path, None] = {}
    for path in paths:
        for match in re.finditer(r"(/\S+) \(0x", run(["ldd", str(path)], check=False)):
            found.setdefault(Path(match[1]))
    return list(found)


def _compile(source: Path, name: str, directory: Path) -> bytes:
    target = directory / "module.pyc"
    # Unchecked: nobody compares time stamps in the blackout.
    py_compile.compile(
        str(source),
        cfile=str(target),
        dfile=name,
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    return target.read_bytes()


def build(config: AgentConfig, modules: ModuleSet) -> bytes:
    """The archive, uncompressed: unpacking a compressed one would cost blackout time."""
    python = str(Path(sys.executable).resolve())
    archive = CpioArchive()
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3, 0o666)
    archive.file("init", _INIT.format(python=python).encode(), 0o755)
    imports = agent_imports(python)
    ours = Path(__file__).resolve().parents[1]
    stdlib = Path(json.__file__).resolve().parents[1]
    for name in _ALWAYS:
        path = stdlib / (name.replace(".", "/") + ".py")
        imports.setdefault(name, path if path.exists() else path.with_suffix("") / "__init__.py")
    objects = [Path(python)]
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in imports.items():
            if path.suffix == ".so":
                objects.append(path)
                archive.copy(path)
            elif path.is_relative_to(ours):
                target = f"{_PACKAGES}/rekernel/{path.relative_to(ours).with_suffix('.pyc')}"
                archive.file(target, _compile(path, name, Path(scratch)))
            else:
                archive.file(str(path.with_suffix(".pyc")), _compile(path, name, Path(scratch)))
    archive.copy(Path(python))
    for library in shared_objects(objects):
        archive.copy(library)
    archive.directory(str(stdlib / "lib-dynload"))
    for path in modules.files:
        archive.file(f"{_MODULES}/{_module_name(path)}", read_module(path))
    archive.file(CONFIG_PATH, dump_config(config))
    for directory in ("proc", "sys", "sysroot", "run"):
        archive.directory(directory)
    return archive.finish()


def _module_name(path: Path) -> str:
    return re.sub(r"\.ko(\.\w+)?$", ".ko", path.name)


def module_waves(modules: ModuleSet) -> tuple[tuple[str, ...], ...]:
    """Where :func:`build` puts the modules, for the agent's configuration."""
    return tuple(
        tuple(f"{_MODULES}/{_module_name(path)}" for path in wave) for wave in modules.waves
    )
