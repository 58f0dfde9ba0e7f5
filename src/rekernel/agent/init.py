"""What /init of the initrd runs first: makes the agent importable from memory, and starts it.

Importing must depend on no file, as the root directory changes meanwhile, and in memory it takes
half the time. kernel/initrd.py puts the interpreter's line before this text.
"""

import marshal
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

PAYLOAD = "/rekernel.agent"


class _FromMemory:
    """An importer of what was read in one go: module name -> (is a package, its code)."""

    def __init__(self, modules: "dict[str, tuple[bool, CodeType]]") -> None:
        self._modules = modules

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> "ModuleSpec | None":
        """importlib.abc.MetaPathFinder"""
        found = self._modules.get(name)
        if found is None:
            return None
        # A loader in all but its base class, which would be one more import.
        return ModuleSpec(name, self, origin="initrd", is_package=found[0])  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> "ModuleType | None":
        """importlib.abc.Loader: the default one will do."""
        return None

    def exec_module(self, module: "ModuleType") -> None:
        """importlib.abc.Loader"""
        exec(self._modules[module.__name__][1], module.__dict__)


def make_importable() -> "dict[str, Any]":
    """From here on the agent can be imported; returns its configuration as plain data."""
    with open(PAYLOAD, "rb") as file:
        config, extensions, modules = marshal.loads(file.read())
    sys.meta_path.insert(0, _FromMemory(modules))
    # Shared objects are files; later there may be no way to them.
    for name in extensions:
        __import__(name)
    return config  # type: ignore[no-any-return]


if __name__ == "__main__":
    config = make_importable()
    from rekernel.agent.main import main

    main(config)
