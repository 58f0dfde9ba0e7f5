"""Whether another kernel can do what this machine needs of it until init runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rekernel.kernel.installed import Kernel
from rekernel.kernel.modules import FOR_REGION, read_module
from rekernel.records import field, record
from rekernel.run import CommandFailedError, run

# Options of the kernel's build, without which criu or the agent cannot work.
_OPTIONS = ("BLK_DEV_INITRD", "CHECKPOINT_RESTORE", "MEMFD_CREATE", "UNIX")
_OPTIONS_FOR_REGION = ("USERFAULTFD",)
_BOOT = Path("/boot")
_OPTION = re.compile(r"^CONFIG_(\w+)=[ym]$", re.MULTILINE)
_UNKNOWN = re.compile(r"Module (\S+) not found")


@record
class Needs:
    """What must be there before init is: ``aliases``, as modprobe takes them; ``texts``: module ->
    what is written in it if it knows what it will find.
    """

    aliases: tuple[str, ...]
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)


def shortcomings(kernel: Kernel, running: str, needs: Needs, *, region: bool) -> list[str]:
    """What ``kernel`` lacks, in words: drivers that the running one has, options of its build."""
    wanted = [alias for alias in needs.aliases if region or alias not in FOR_REGION]
    here = unknown(running, wanted)
    # What nobody has a module for is no device that anybody drives.
    lacking = [alias for alias in unknown(kernel.release, wanted) if alias not in here]
    names = dict.fromkeys(_module(running, alias) for alias in lacking)
    # Not every kernel tells by which aliases it has something built in.
    built_in = _built_in(kernel)
    missing = [f"no {name}" for name in names if _plain(name) not in built_in]
    unwritten = [
        f"no {text} in {name}"
        for name, texts in needs.texts.items()
        if kernel.release != running
        for text in _not_in(kernel, name, texts)
    ]
    return [*missing, *unwritten, *_options_off(kernel, region=region)]


def _not_in(kernel: Kernel, name: str, texts: Sequence[str]) -> list[str]:
    """Those that are not in the file of a module; all of them if it is built in."""
    path = Path(run(["modinfo", "-k", kernel.release, "-n", name], check=False).strip())
    data = read_module(path) if path.is_file() else b""
    return [text for text in texts if text.encode() not in data]


def unknown(release: str, aliases: Sequence[str]) -> list[str]:
    """Aliases that no module of a kernel answers to, and nothing built in."""
    try:
        run(["modprobe", "-S", release, "--show-depends", "--all", "--", *aliases])
    except CommandFailedError as error:
        words = {_plain(word) for word in _UNKNOWN.findall(error.output)}
        return [alias for alias in aliases if _plain(alias) in words]
    return []


def _module(release: str, alias: str) -> str:
    """The module that answers to an alias, or is built in: what people call it."""
    text = run(["modprobe", "-S", release, "--show-depends", "--", alias], check=False)
    words = (text.splitlines() or [alias])[-1].split()
    return Path(words[1] if len(words) > 1 else words[0]).name.partition(".")[0]


def _built_in(kernel: Kernel) -> set[str]:
    try:
        lines = (kernel.modules / "modules.builtin").read_text().splitlines()
    except OSError:
        return set()
    return {_plain(Path(line).stem) for line in lines}


def _plain(name: str) -> str:
    """Files have "-" where modules have "_"; modprobe says either."""
    return name.replace("-", "_")


def options_of(release: str) -> set[str]:
    """Options that a kernel was built with, or has as modules; empty if nobody tells."""
    try:
        text = (_BOOT / f"config-{release}").read_text()
    except OSError:
        return set()
    return set(_OPTION.findall(text))


def _options_off(kernel: Kernel, *, region: bool) -> list[str]:
    """Options that its configuration, if there is one, does not have."""
    there = options_of(kernel.release)
    wanted = (*_OPTIONS, *(_OPTIONS_FOR_REGION if region else ()))
    return [f"no CONFIG_{name}" for name in wanted if there and name not in there]
