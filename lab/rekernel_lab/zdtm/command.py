"""`rekernel-lab zdtm`: every test of CRIU's suite that can be a service, across upgrades.

One guest, one run: criu alone dumps and restores each test on the first kernel, to know which
can be carried at all (kept in the cache). All that pass become services, the machine is upgraded
with all of them running, and then each is ended and says itself whether it is content.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekernel_lab import cache
from rekernel_lab.errors import DeadlineError, LabError, UsageError
from rekernel_lab.images import rootfs
from rekernel_lab.progress import Progress
from rekernel_lab.scenario import product, runner
from rekernel_lab.scenario.assemble import Assembly, Options, assemble
from rekernel_lab.scenario.session import Deadline, Session, opened
from rekernel_lab.scenario.upgrade import Upgrade
from rekernel_lab.zdtm import suite, tests
from rekernel_lab.zdtm.result import MEASURES_TIME, Finding, Result, Verdict, table
from rekernel_lab.zdtm.suite import Suite
from rekernel_lab.zdtm.tests import HASTY, SLICE, SLICE_FILE, Selection, Test

_GUEST_PART = cache.REPOSITORY / "lab" / "zdtm" / "guest.py"
_IN_GUEST = "/opt/zdtm"
# A second copy, for tests that run with criu alone beside their services.
_BESIDE = "/opt/zdtm-beside"
_LOGS = "/var/log/zdtm"
_HISTORY = "/var/lib/rekernel/history"

_SYN_RETRIES = "net.ipv4.tcp_syn_retries=20"

# Raise this when the way a test is run with criu alone changes.
_PLAIN_LAYOUT = 2

_REGION_MIB = 2048
# Emulated: 350 tests with criu alone take most of an hour.
_LIMIT_S = 3 * 3600.0
_PLAIN_S = 5400.0
_START_S = 900.0
_UPGRADE_S = 1800.0
_END_S = 1800.0


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line said."""

    progress: Progress
    options: Options
    deb: Path | None = None
    json: Path | None = None
    kernel_from: str = "6.12"
    upgrades: tuple[str, ...] = ("7",)
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    limit: int = 0
    memory_mib: int = 6144
    # Whether to run all tests with criu alone again, rather than believe the cache.
    again: bool = False


class Memory:
    """What is known from earlier runs about tests with criu alone: a file of the cache."""

    def __init__(self, criu: str, release: str, suite_: Suite) -> None:
        directory = cache.root() / "zdtm-plain"
        directory.mkdir(exist_ok=True)
        name = cache.key(_PLAIN_LAYOUT, criu, release, suite_.directory.parent.name)
        self._path = directory / f"{name}.json"

    def load(self) -> dict[str, Any]:
        """Return the finding of each test that was run."""
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def add(self, findings: Mapping[str, Any]) -> None:
        """Keep what was found now."""
        with cache.lock("zdtm-plain"):
            new = {**self.load(), **findings}
            scratch = self._path.with_suffix(".new")
            scratch.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")
            scratch.replace(self._path)


def zdtm(request: Request) -> int:
    """Run the suite and tell; returns 0 if all tests but the known ones came across."""
    progress = request.progress
    result = Result()
    output = runner.output_directory("zdtm")
    try:
        _run(request, result, output)
    except UsageError:
        raise
    except LabError as error:
        result.error = f"{error} ({error.hint})" if error.hint else str(error)
    finally:
        # Also what was found before something went wrong.
        if request.json and result.facts:
            request.json.write_text(json.dumps(result.to_json(), indent=2) + "\n")
        if result.facts:
            print(table(result))
    if result.error:
        progress.error(result.error)
    progress.line(f"zdtm: {'passed' if result.passed else 'FAILED'}, logs in {output}")
    return 0 if result.passed else 1


def _run(request: Request, result: Result, output: Path) -> None:
    progress, options = request.progress, request.options
    deb = runner.package(progress, request.deb)
    packages = {*suite.GUEST_PACKAGES, *product.dependencies(deb)} - {"criu"}
    assembly = assemble(progress, options, [request.kernel_from, *request.upgrades], packages)
    criu = rootfs.criu_version(assembly.image)
    built = suite.build(assembly.base, criu, progress)
    selection = tests.select(built.directory, built.commands())
    chosen = tests.only(selection.tests, request.only, request.without, request.limit)
    if not chosen:
        raise UsageError("no test of the suite fits", hint="--only takes patterns: 'socket-tcp*'")
    result.facts.update(
        {
            "criu": criu,
            "from": assembly.releases[0],
            "to": " ".join(assembly.releases[1:]),
            "accel": assembly.accelerator,
            "cpus": options.cpus,
            "memory_mib": request.memory_mib,
        }
    )
    with opened(
        f"zdtm-{os.getpid()}",
        assembly,
        progress,
        output,
        Deadline(_LIMIT_S, "the suite"),
        memory_mib=request.memory_mib,
        cpus=options.cpus,
    ) as session:
        _Run(request, result, session, built, assembly).all(deb, selection, chosen)


class _Run:
    """The guest in which it happens."""

    def __init__(
        self, request: Request, result: Result, session: Session, built: Suite, assembly: Assembly
    ) -> None:
        self._request = request
        self._result = result
        self._session = session
        self._suite = built
        self._releases = assembly.releases
        self._guest = session.machine.guest
        self._progress = session.progress
        self._memory = Memory(result.facts["criu"], assembly.releases[0], built)

    def all(self, deb: Path, selection: Selection, chosen: Sequence[Test]) -> None:
        """Everything in its order."""
        findings: dict[str, Finding] = {}
        if not (self._request.only or self._request.without or self._request.limit):
            findings.update(
                (name, Finding(name, Verdict.LEFT_OUT, why))
                for name, why in selection.left_out.items()
            )
        self._session.install(deb)
        try:
            plain = self._plain(chosen)
            findings.update(
                (name, _plain_finding(name, raw))
                for name, raw in plain.items()
                if raw["outcome"] != "passed"
            )
            carried = [test for test in chosen if plain[test.name]["outcome"] == "passed"]
            if not carried:
                raise LabError("no test passes with criu alone: nothing can be carried")
            # Also ends whatever the tests left behind.
            self._session.set_up(_REGION_MIB)
            findings.update(self._across(carried))
        finally:
            self._result.findings = [findings[name] for name in sorted(findings)]

    def _plain(self, chosen: Sequence[Test]) -> dict[str, Any]:
        known = {} if self._request.again else self._memory.load()
        missing = [test for test in chosen if test.name not in known]
        if missing:
            self._push(_IN_GUEST)
            with self._progress.step(f"{len(missing)} tests with criu alone"):
                found = self._part("plain", _IN_GUEST, missing, _PLAIN_S)
            self._memory.add(found)
            known = {**known, **found}
        return {test.name: known[test.name] for test in chosen}

    def _across(self, carried: Sequence[Test]) -> dict[str, Finding]:
        """The tests as services, the upgrades, and what became of each."""
        self._push(_IN_GUEST)
        patient = [test for test in carried if test.name not in HASTY]
        hasty = [test for test in carried if test.name in HASTY]
        with self._progress.step("What the tests need of the machine"):
            self._part("ready", _IN_GUEST, carried, _START_S)
        # For who waits for an answer that is filtered, and comes only at the end.
        self._guest.run(f"sysctl --quiet --write {_SYN_RETRIES}", timeout=self._left(60))
        units = self._start(patient)
        # Two that began at once may have taken the same port.
        for test in patient:
            if units[test.unit]["ActiveState"] != "active":
                self._part("ready", _IN_GUEST, [test], _START_S)
                units |= self._start([test])
        under_load = self._under_load(carried)
        beforehand = self._beforehand()
        units |= self._start(hasty)
        running = [test for test in carried if units[test.unit]["ActiveState"] == "active"]
        found = {
            test.name: Finding(test.name, Verdict.NOT_STARTED, self._last_words(test))
            for test in carried
            if test not in running
        }
        if not running:
            self._result.error = "no test runs as a service"
            return found
        for target in self._releases[1:]:
            self._upgrade(target)
        with self._progress.step(f"Ending {len(running)} tests"):
            # In this order, several at a time.
            in_turn = sorted(running, key=lambda test: test.name not in HASTY)
            ended = self._part("end", _IN_GUEST, in_turn, _END_S)
        return found | self._judge(running, units, ended, beforehand, under_load)

    def _judge(
        self,
        running: Iterable[Test],
        units: Mapping[str, Mapping[str, str]],
        ended: Mapping[str, Any],
        beforehand: Mapping[str, str],
        under_load: Mapping[str, bool],
    ) -> dict[str, Finding]:
        kept = self._kept()
        found = {}
        for test in running:
            one = judge(test, kept.get(test.unit), ended[test.name], units[test.unit]["MainPID"])
            found[test.name] = dataclasses.replace(
                one,
                beforehand=beforehand.get(test.unit, ""),
                fails_under_load=under_load.get(test.name),
            )
        lost = {name for name, one in found.items() if one.verdict is not Verdict.PASSED}
        if lost:
            self._keep_logs()
        named = {test.name: test for test in running}
        return {
            name: dataclasses.replace(one, logs=self._logs_of(named[name])) if name in lost else one
            for name, one in found.items()
        }

    def _start(self, carried: Sequence[Test]) -> dict[str, dict[str, str]]:
        """Start the services; return what systemd says of each."""
        if not carried:
            return {}
        with (
            self._progress.step(f"Starting {len(carried)} services"),
            tempfile.TemporaryDirectory() as scratch,
        ):
            directory = Path(scratch)
            directory.chmod(0o755)
            for test in carried:
                (directory / test.unit).write_text(test.unit_file(f"{_IN_GUEST}/zdtm"))
            (directory / SLICE).write_text(SLICE_FILE)
            self._guest.push(directory, "/etc/systemd/system")
            self._guest.run("systemctl daemon-reload", timeout=self._left(120))
            names = [test.unit for test in carried]
            self._guest.run(
                ["systemctl", "start", "--no-block", *names], timeout=self._left(_START_S)
            )
            deadline = Deadline(self._left(_START_S), "the start of the services")
            while "zdtm-" in self._guest.text("systemctl list-jobs --no-legend", timeout=120):
                deadline.left()
                time.sleep(2)
            shown = self._guest.text(
                ["systemctl", "show", "--property=Id,ActiveState,MainPID,Result", *names],
                timeout=self._left(300),
            )
        return parse_units(shown)

    def _under_load(self, carried: Sequence[Test]) -> dict[str, bool]:
        """Which of the tests that measure time fail with criu alone while all others run."""
        timed = [test for test in carried if test.name in MEASURES_TIME]
        if not timed:
            return {}
        self._push(_BESIDE)
        with self._progress.step(f"{len(timed)} tests with criu alone, beside the others"):
            found = self._part("plain", _BESIDE, timed, 1200)
        return {name: raw["outcome"] == "failed" for name, raw in found.items()}

    def _beforehand(self) -> dict[str, str]:
        """What the plan says of each unit that it will not carry."""
        words = f"rekernel plan --json {self._releases[1]}"
        plan = self._session.json(words)
        (self._session.output / "plan.json").write_text(json.dumps(plan, indent=1))
        return {
            unit["unit"]: f"{unit['verdict']}: {unit['reason']}"
            for unit in plan["units"]
            if unit["verdict"] != "carried"
        }

    def _upgrade(self, target: str) -> None:
        session = self._session
        with self._progress.step(f"Upgrade to {target}"):
            outcome = Upgrade(session.machine, self._progress).run(
                target, None, self._left(_UPGRADE_S)
            )
        number = len(self._result.upgrades) + 1
        report = outcome.report if isinstance(outcome.report, dict) else {}
        (session.output / f"report-{number}.json").write_text(json.dumps(report, indent=1))
        kept = {unit["unit"] for unit in report.get("units", ()) if unit["kept"]}
        self._result.upgrades.append(
            {
                "target": target,
                "release": outcome.release,
                "exit_code": outcome.exit_code,
                "error": outcome.error or None,
                "blackout_s": report.get("blackout_s"),
                "trees_kept": len(kept),
                "report": report,
            }
        )
        if outcome.release != target:
            self._keep_logs()
            reason = report.get("error") or outcome.error or "see its logs"
            raise LabError(f"upgrade to {target}: the guest runs {outcome.release}: {reason}")

    def _kept(self) -> dict[str, Mapping[str, Any]]:
        """What the last reports say of each unit: the first that was not kept, else the last."""
        found: dict[str, Mapping[str, Any]] = {}
        for upgrade in self._result.upgrades:
            for unit in upgrade["report"].get("units", ()):
                if unit["unit"] not in found or found[unit["unit"]]["kept"]:
                    found[unit["unit"]] = unit
        return found

    def _last_words(self, test: Test) -> str:
        """Why a service does not run: what the test wrote, else the journal."""
        words = f"cat {_IN_GUEST}/zdtm/{test.name}.out* || journalctl -b -o cat -u {test.unit}"
        done = self._guest.run(f"({words}) 2>/dev/null | tail -n 4", check=False, timeout=60)
        return done.stdout.decode(errors="replace").strip()

    def _keep_logs(self) -> None:
        for path in (_LOGS, _HISTORY, "/run/rekernel"):
            try:
                self._guest.pull(path, self._session.output)
            except LabError as error:
                self._progress.line(f"{path} was not kept: {error}")

    def _logs_of(self, test: Test) -> tuple[str, ...]:
        """The logs that were kept and bear the unit's name, and the test's own."""
        stem = test.unit.removesuffix(".service")
        output = self._session.output
        found = [
            path
            for path in output.glob("history/*/logs/*")
            if stem in path.name.replace(".service", "")
        ]
        own = output / "zdtm" / test.name.replace("/", "-")
        return tuple(str(path) for path in sorted([*found, *own.glob("*.log")]))

    def _push(self, directory: str) -> None:
        """Put a clean copy of the suite and of our part there."""
        self._guest.run(["rm", "-rf", "--one-file-system", directory], timeout=self._left(120))
        self._guest.push(self._suite.directory, f"{directory}/zdtm")
        # As zdtm.py does: most tests are not root, and write beside their programs.
        kinds = " ".join(f"{directory}/zdtm/{kind}" for kind in suite.KINDS)
        self._guest.run(f"chmod 777 {kinds}", timeout=self._left(60))
        self._guest.push(_GUEST_PART, f"{directory}/guest.py")

    def _part(
        self, verb: str, directory: str, wanted: Sequence[Test], limit_s: float
    ) -> dict[str, Any]:
        """Run our part in the guest, show its lines, and return its findings."""
        spec = json.dumps([test.to_json() for test in wanted])
        names = f"{directory}/{verb}.spec", f"{directory}/{verb}.json"
        self._guest.run(["tee", names[0]], stdin=spec.encode(), timeout=self._left(60))
        words = f"cd {directory} && exec python3 guest.py {verb} {names[0]} {names[1]}"
        process = self._guest.popen(words)
        code = _follow(process, self._left(limit_s), self._progress.guest, f"guest.py {verb}")
        if code:
            raise LabError(f"guest.py {verb} exited with {code}", hint="its output is above")
        found = json.loads(self._guest.text(["cat", names[1]], timeout=self._left(60)))
        if not isinstance(found, dict):
            raise LabError(f"guest.py {verb} found nothing")
        return found

    def _left(self, at_most: float) -> float:
        return self._session.deadline.left(at_most)


def _follow(
    process: subprocess.Popen[bytes], limit_s: float, tell: Callable[[str], None], what: str
) -> int:
    """Show the lines of a process until it ends; return its exit code."""
    assert process.stdout is not None
    stream = process.stdout

    def show() -> None:
        for line in stream:
            tell(line.decode(errors="replace").rstrip())

    reader = threading.Thread(target=show, daemon=True)
    reader.start()
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired as error:
        raise DeadlineError(f"{what} did not finish in {limit_s:.0f} s") from error
    finally:
        process.kill()
        process.wait()
        reader.join(timeout=2)


def parse_units(shown: str) -> dict[str, dict[str, str]]:
    """Return the properties of each unit from what `systemctl show --property=Id,…` prints."""
    found = {}
    for paragraph in shown.split("\n\n"):
        fields = dict(line.split("=", 1) for line in paragraph.splitlines() if "=" in line)
        if "Id" in fields:
            found[fields["Id"]] = fields
    return found


def _plain_finding(name: str, raw: Mapping[str, Any]) -> Finding:
    verdict = Verdict.SKIPPED if raw["outcome"] == "skipped" else Verdict.FAILS_PLAIN
    return Finding(name, verdict, raw["why"])


def judge(
    test: Test, reported: Mapping[str, Any] | None, ended: Mapping[str, Any], main_pid: str
) -> Finding:
    """Return what became of a test that ran as a service.

    `reported` is its unit in the product's report, `ended` what the guest's part found at its end,
    `main_pid` its main process before the upgrade. A test that was started afresh has not passed.
    """
    if reported is None:
        return Finding(test.name, Verdict.LOST, "the report does not name its unit")
    if not reported["kept"]:
        why = reported["failure"] or reported["reason"] or f"not kept ({reported['verdict']})"
        return Finding(test.name, Verdict.LOST, why)
    if ended["outcome"] != "passed":
        return Finding(test.name, Verdict.FAILED, ended["why"])
    if str(ended["pid"]) != main_pid:
        why = f"process {ended['pid']} is not the one from before, {main_pid}"
        return Finding(test.name, Verdict.LOST, why)
    return Finding(test.name, Verdict.PASSED)
