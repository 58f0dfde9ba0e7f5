"""`rekernel-lab bench verbs`: how long an administrator waits, before and after a change.

One VM with both versions in it, which take turns: `check`, `plan`, and from `upgrade --yes` to the
freeze. `--against` names the one before: a package, or a commit to build it from.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rekernel_lab import cache
from rekernel_lab.bench.registry import Request, benchmark
from rekernel_lab.bench.result import Ratio, grid, phase_lines, ratio_lines
from rekernel_lab.errors import LabError
from rekernel_lab.images import rootfs
from rekernel_lab.run import run
from rekernel_lab.scenario import product, runner, scenario
from rekernel_lab.scenario.session import Deadline, Session, opened

SCHEMA = 1
BEFORE, AFTER = "before", "after"

_REGION_MIB = 1024
_MEMORY_MIB = 5120
_LIMIT_S = 3600.0
# Of one version, once: a check, a plan and two attempts that are undone.
_ONCE_S = 420.0
_SCENARIO = cache.REPOSITORY / "lab" / "scenarios" / "demo"
_FAULTS = cache.REPOSITORY / "tests" / "vm" / "faults" / "rekernel_faults.py"
_SITE = "/usr/lib/python3/dist-packages"
_TREES = "/root/verbs"
_HALF = 0.5


@dataclass(frozen=True, slots=True)
class Measurement:
    """One version, once; seconds. ``first`` and ``again``: until the freeze, by an attempt that
    finds nothing made before, and by the next. ``phases``: those of ``again``, in their order.
    """

    version: str
    check: float
    plan: float
    first: float
    again: float
    phases: dict[str, float]

    @staticmethod
    def parse(version: str, text: str) -> Measurement:
        """From what guest/verbs.py prints. Raises LabError."""
        try:
            raw = json.loads(text)
            phases = {name: float(value) for name, value in raw["again"].items()}
            first = float(raw["first"]["all"])
            again = phases.pop("all")
            return Measurement(version, raw["check"], raw["plan"], first, again, phases)
        except (ValueError, LookupError, TypeError) as error:
            raise LabError(f"verbs.py said {text[:200]!r}: {error!r}") from None


@dataclass(slots=True)
class Found:
    """Filled while the benchmark goes on."""

    facts: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)

    def of(self, version: str) -> list[Measurement]:
        """All rounds of one version."""
        return [one for one in self.measurements if one.version == version]

    def ratios(self) -> list[Ratio]:
        """After to before: the median of what adjacent rounds say."""
        pairs = list(zip(self.of(BEFORE), self.of(AFTER), strict=False))
        if not pairs:
            return []
        return [
            Ratio(
                f"{name}, after / before",
                statistics.median(getattr(new, verb) / getattr(old, verb) for old, new in pairs),
                _HALF,
            )
            for verb, name in _VERBS.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, in its stable form."""
        return {
            "schema": SCHEMA,
            **self.facts,
            "measurements": [asdict(one) for one in self.measurements],
            "ratios": [asdict(one) | {"reached": one.reached} for one in self.ratios()],
        }


_VERBS = {
    "check": "check",
    "plan": "plan",
    "first": "upgrade to the freeze, first",
    "again": "upgrade to the freeze, again",
}


def _median(found: Sequence[Measurement], verb: str) -> str:
    each = [getattr(one, verb) for one in found]
    return f"{statistics.median(each):.2f}" if each else "-"


def table(found: Found) -> str:
    """The result for people."""
    rows: list[tuple[str, ...]] = [("s", BEFORE, AFTER, "every round")]
    for verb, name in _VERBS.items():
        each = ", ".join(
            f"{getattr(old, verb):.2f}/{getattr(new, verb):.2f}"
            for old, new in zip(found.of(BEFORE), found.of(AFTER), strict=False)
        )
        old, new = (_median(found.of(version), verb) for version in (BEFORE, AFTER))
        rows.append((name, old, new, each))
    columns = {
        version: {
            name: statistics.median(one.phases.get(name, 0.0) for one in rounds)
            for name in dict.fromkeys(name for one in rounds for name in one.phases)
        }
        for version in (BEFORE, AFTER)
        if (rounds := found.of(version))
    }
    return "\n".join(
        [
            ", ".join(f"{name} {value}" for name, value in found.facts.items()),
            "",
            *grid(rows),
            "",
            "upgrade to the freeze, again, by phase, s (medians)",
            *phase_lines(columns),
            "",
            *ratio_lines(found.ratios()),
        ]
    )


@contextmanager
def package_of(against: str) -> Iterator[Path]:
    """A package that is there already, or that of a commit, built as it says itself."""
    if against.endswith(".deb"):
        yield Path(against)
        return
    with tempfile.TemporaryDirectory(prefix="rekernel-before-") as name:
        packed = Path(name) / "tree.tar"
        run(["git", "-C", cache.REPOSITORY, "archive", f"--output={packed}", against])
        tree = Path(name) / "tree"
        tree.mkdir()
        run(["tar", "-C", tree, "-xf", packed])
        run(["make", "-C", tree, "deb"], timeout=900)
        yield product.newest(tree / ".cache" / "dist")


class _Bench:
    """The guest with both versions in it."""

    def __init__(self, session: Session, release: str, found: Found) -> None:
        self._session = session
        self._guest = session.machine.guest
        self._release = release
        self._found = found

    def prepare(self, packages: dict[str, Path]) -> None:
        """Region and services, and each version below /root/verbs."""
        self._session.install(packages[AFTER])
        self._session.push(_SCENARIO)
        self._session.set_up(_REGION_MIB)
        if self._session.script("guest-prepare").exit_code:
            raise LabError("the scenario's guest-prepare failed")
        self._guest.push(_FAULTS, f"{_SITE}/rekernel_faults.py")
        self._guest.run(["tee", f"{_SITE}/rekernel_faults.pth"], stdin=b"import rekernel_faults\n")
        for version, deb in packages.items():
            self._guest.push(deb, f"{_TREES}/{version}.deb")
            tree = f"{_TREES}/{version}"
            self._guest.run(["dpkg-deb", "-x", f"{tree}.deb", tree])
            # By the names that the modules will have, which tracebacks show.
            compiled = f"{tree}/{_SITE.removeprefix('/')}/rekernel"
            self._guest.run(
                ["python3", "-m", "compileall", "-q", "-s", tree, "-p", "/", compiled], timeout=300
            )
        self._guest.push(
            cache.REPOSITORY / "lab/rekernel_lab/bench/guest/verbs.py", f"{_TREES}/verbs.py"
        )

    def measure(self, version: str) -> None:
        """One version once."""
        with self._session.progress.step(version):
            words = ["python3", f"{_TREES}/verbs.py", version, self._release]
            text = self._guest.text(words, timeout=self._session.deadline.left(_ONCE_S))
        self._found.measurements.append(Measurement.parse(version, text))


@benchmark("verbs")
def verbs(request: Request) -> int:
    """Measure and tell; returns 0 if everything could be measured, whatever came out."""
    progress, options = request.progress, request.options
    after = runner.package(progress, request.deb)
    assembly = runner.assemble_for(scenario.load(_SCENARIO), progress, options, after)
    found = Found(
        {
            "against": request.against,
            "kernels": " to ".join(assembly.releases),
            "criu": rootfs.criu_version(assembly.image),
            "accel": assembly.accelerator,
            "cpus": options.cpus,
        }
    )
    output = runner.output_directory("bench-verbs")
    rounds = 1 if request.smoke else request.rounds
    try:
        # To see that it works the same package twice will do.
        with package_of(str(after) if request.smoke else request.against) as built:
            before = Path(shutil.copy(built, output / "before.deb"))
        with opened(
            f"bench-{os.getpid()}",
            assembly,
            progress,
            output,
            Deadline(_LIMIT_S, "the benchmark"),
            memory_mib=_MEMORY_MIB,
            cpus=options.cpus,
        ) as session:
            bench = _Bench(session, assembly.releases[1], found)
            bench.prepare({BEFORE: before, AFTER: after})
            for _ in range(rounds):
                for version in (BEFORE, AFTER):
                    bench.measure(version)
    finally:
        # Also what was measured before something went wrong.
        if request.json:
            request.json.write_text(json.dumps(found.to_json(), indent=2) + "\n")
        print(table(found))
        progress.line(f"logs in {output}")
    return 0
