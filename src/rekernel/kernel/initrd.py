"""The initrd with the agent: for exactly this machine, this kernel and this interpreter."""

from __future__ import annotations

import json
import marshal
import py_compile
import re
import sys
import tempfile
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

from rekernel.agent.init import PAYLOAD
from rekernel.handover.config import AgentConfig, dump_config
from rekernel.kernel import kept
from rekernel.kernel.cpio import CpioArchive
from rekernel.kernel.modules import ModuleSet, read_module
from rekernel.records import record
from rekernel.run import run

_MODULES = "/modules"
# What decides where libraries are found, beside them.
_LINKER = ("/etc/ld.so.cache", "/etc/ld.so.preload")

# The interpreter starts isolated (-I: no environment, no user site) and without site (-S).
_INTERPRETER = "#!{python} -IS\n"

_LIST_IMPORTS = """
import sys
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
import rekernel.agent.main, rekernel.agent.resume, rekernel.agent.remains, traceback, json
found = {}
for name, module in sorted(sys.modules.items()):
    path = getattr(module, "__file__", None)
    if path and name != "__main__":
        found[name] = [path, name in before, hasattr(module, "__path__")]
print(json.dumps(found))
"""

# Imported by name while the interpreter starts or when text is first decoded. By the file of os it
# knows where its library is.
_ALWAYS = (
    "encodings", "encodings.aliases", "encodings.utf_8", "encodings.ascii", "encodings.idna", "os",
)  # fmt: skip


@record
class Imported:
    """A module of the agent. ``early``: the interpreter itself needs it to start."""

    path: Path
    early: bool
    package: bool


def agent_imports(python: str) -> dict[str, Imported]:
    """Everything the agent imports, by name, as this interpreter finds it."""
    here = Path(__file__).resolve().parents[2]
    # A file, as /init is one: with -c the interpreter imports more by itself.
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(_LIST_IMPORTS)
        script.flush()
        found = json.loads(run([python, "-I", "-S", "-B", script.name, str(here)]))
    return {
        name: Imported(Path(path), early, package) for name, (path, early, package) in found.items()
    }


def shared_objects(paths: list[Path]) -> list[Path]:
    """The libraries that these objects are linked with, and the loader."""
    names = [str(path) for path in paths]
    name = kept.key("ldd", names)
    path = kept.get(name)
    if path is not None:
        return [Path(item) for item in json.loads(path.read_bytes())]
    began = time.time_ns()
    # It fails if one of them is a script, say, and has told of the others.
    text = run(["ldd", *names], check=False)
    found = list(dict.fromkeys(re.findall(r"(/\S+) \(0x", text)))
    kept.keep(name, json.dumps(found).encode(), [*_LINKER, *names, *found], began)
    return [Path(item) for item in found]


def _code(module: Imported, name: str) -> CodeType:
    """Compiled, as installed already if it is: nothing is parsed in the blackout.

    Raises ImportError.
    """
    code = SourceFileLoader(name, str(module.path)).get_code(name)
    assert code is not None
    return _renamed(code, name)


def _renamed(code: CodeType, name: str) -> CodeType:
    """Modules have their names in tracebacks, wherever they were built."""
    inner = (_renamed(one, name) if isinstance(one, CodeType) else one for one in code.co_consts)
    return code.replace(co_filename=name, co_consts=tuple(inner))


def _startup_module(source: Path, directory: Path) -> bytes:
    target = directory / "module.pyc"
    # Unchecked: nobody compares time stamps in the blackout.
    py_compile.compile(
        str(source),
        cfile=str(target),
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    return target.read_bytes()


def file_for(config: AgentConfig, modules: ModuleSet, scratch: Path, *, again: bool) -> Path:
    """Where the archive lies: one that was made before, if it would be the same now.

    ``scratch``: where it is written if it cannot be kept. ``again``: whether another attempt could
    need the same.
    """
    python = str(Path(sys.executable).resolve())
    name = kept.key("initrd", dump_config(config), python, [str(path) for path in modules.files])
    if again:
        path = kept.get(name)
        if path is not None:
            return path
    began = time.time_ns()
    content, made_of = build(config, modules)
    path = kept.keep(name, content, made_of, began) if again else None
    if path is None:
        path = scratch
        path.write_bytes(content)
    return path


def build(config: AgentConfig, modules: ModuleSet) -> tuple[bytes, list[str]]:
    """The archive, and all that it is made of: files, and directories that were searched.

    Uncompressed: unpacking would cost blackout time.
    """
    python = str(Path(sys.executable).resolve())
    archive = CpioArchive()
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3, 0o666)
    ours = Path(__file__).resolve().parents[1]
    init = (ours / "agent" / "init.py").read_text()
    archive.file("init", (_INTERPRETER.format(python=python) + init).encode(), 0o755)
    imports = agent_imports(python)
    stdlib = Path(json.__file__).resolve().parents[1]
    for name in _ALWAYS:
        path = stdlib / (name.replace(".", "/") + ".py")
        path = path if path.exists() else path.with_suffix("") / "__init__.py"
        imports[name] = Imported(path, early=True, package=False)
    extensions = {name: item for name, item in imports.items() if item.path.suffix == ".so"}
    with tempfile.TemporaryDirectory() as scratch:
        for item in imports.values():
            if item.early and item not in extensions.values():
                content = _startup_module(item.path, Path(scratch))
                archive.file(str(item.path.with_suffix(".pyc")), content)
    # Also what the interpreter itself reads from files: it must not matter which of them it did.
    code = {
        name: (item.package, _code(item, name))
        for name, item in imports.items()
        if name not in extensions
    }
    payload = (dump_config(config), list(extensions), code)
    archive.file(PAYLOAD, marshal.dumps(payload))
    for item in extensions.values():
        archive.copy(item.path)
    objects = [Path(python), *(item.path for item in extensions.values())]
    archive.copy(Path(python))
    libraries = shared_objects(objects)
    for library in libraries:
        archive.copy(library)
    archive.directory(str(stdlib / "lib-dynload"))
    for path in modules.files:
        archive.file(f"{_MODULES}/{_module_name(path)}", read_module(path))
    for directory in ("proc", "sys", "sysroot", "run"):
        archive.directory(directory)
    sources = [item.path for item in imports.values()]
    searched = [here for path in sources for here in path.parents if here != Path("/")]
    # Beside the interpreter it would say where its library is.
    venv = [path / "pyvenv.cfg" for path in Path(python).parents[:2]]
    own = [ours / "agent" / "init.py", *sorted((ours / "kernel").glob("*.py"))]
    made_of = [
        *sources,
        *searched,
        *objects,
        *libraries,
        *modules.files,
        *own,
        *venv,
        *map(Path, _LINKER),
    ]
    return archive.finish(), [str(path) for path in made_of]


def _module_name(path: Path) -> str:
    return re.sub(r"\.ko(\.\w+)?$", ".ko", path.name)


def module_parameters(modules: ModuleSet) -> dict[str, str]:
    """Modules' parameters, for the agent's configuration: path in the initrd -> text."""
    return {f"{_MODULES}/{_module_name(path)}": text for path, text in modules.parameters.items()}


def module_waves(modules: ModuleSet) -> tuple[tuple[str, ...], ...]:
    """Where :func:`build` puts the modules, for the agent's configuration."""
    return tuple(
        tuple(f"{_MODULES}/{_module_name(path)}" for path in wave) for wave in modules.waves
    )
