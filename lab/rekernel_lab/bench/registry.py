"""Benchmarks by name. A benchmark is a function that registers itself here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab.errors import UsageError
from rekernel_lab.progress import Progress
from rekernel_lab.scenario.assemble import Options


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line said: how guests are made, the package, where the JSON goes."""

    progress: Progress
    options: Options
    deb: Path | None
    json: Path | None
    kernel: str = "7"
    # MiB; none: the benchmark's own.
    sizes: tuple[int, ...] = ()
    rounds: int = 2
    # Whether the benchmark itself works: its smallest load, everything once. Figures mean nothing.
    smoke: bool = False
    # A package, or a commit to build one from: the version before (verbs).
    against: str = ""


Benchmark = Callable[[Request], int]

REGISTRY: dict[str, Benchmark] = {}

# Imported when a benchmark is asked for; they register themselves.
_MODULES = ("blackout", "scale", "verbs")


def benchmark(name: str) -> Callable[[Benchmark], Benchmark]:
    """Register the decorated function as `rekernel-lab bench NAME`; it returns an exit code."""

    def register(function: Benchmark) -> Benchmark:
        REGISTRY[name] = function
        return function

    return register


def names() -> list[str]:
    """All benchmarks there are."""
    for module in _MODULES:
        importlib.import_module(f"rekernel_lab.bench.{module}")
    return sorted(REGISTRY)


def find(name: str) -> Benchmark:
    """Return the benchmark `name`; raises UsageError that lists the known ones."""
    known = ", ".join(names())
    if name not in REGISTRY:
        raise UsageError(f"no benchmark {name!r}", hint=f"known: {known}")
    return REGISTRY[name]
