"""CRIU's test suite as services: what is chosen, how it is judged, and what the table says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rekernel_lab import cli
from rekernel_lab.errors import LabError, UsageError
from rekernel_lab.images import aptsources, rootfs
from rekernel_lab.progress import Progress
from rekernel_lab.scenario import product
from rekernel_lab.scenario.assemble import Assembly, Options
from rekernel_lab.zdtm import command, result, suite, tests
from rekernel_lab.zdtm.result import Finding, Known, Result, Verdict, table

# Of criu 4.2.1: what `make --dry-run` says, and the descriptions beside the programs.
COMMANDS = """\
static/chroot\tmake -C ../lib true ./chroot --pidfile=chroot.pid --outfile=chroot.out \
--dirname=chroot.dir.test --filename=chroot.test
static/cgroup04\tmake -C ../lib true ./cgroup04 --pidfile=cgroup04.pid --outfile=cgroup04.out \
--dirname=cgroup04.test
static/inotify00\tmake -C ../lib true ./inotify00 --pidfile=inotify00.pid --outfile=inotify00.out \
--dirname=inotify00.test
static/mnt_ext_dev\tmake -C ../lib true ./mnt_ext_dev --pidfile=mnt_ext_dev.pid \
--outfile=mnt_ext_dev.out --dirname=mnt_ext_dev.test
static/pid00\tmake -C ../lib true ./pid00 --pidfile=pid00.pid --outfile=pid00.out
static/scm06\tmake -C ../lib true ./scm06 --pidfile=scm06.pid --outfile=scm06.out
static/skip-me\tnone: make: *** No rule to make target 'skip-me.pid'.  Stop.
static/socket-tcp-close0\tmake -C ../lib true ./socket-tcp-close0 --pidfile=socket-tcp-close0.pid \
--outfile=socket-tcp-close0.out
static/unlink_fstat01+\tmake -C ../lib true ./unlink_fstat01+ --pidfile=unlink_fstat01+.pid \
--outfile=unlink_fstat01+.out --filename=unlink_fstat01+.test
static/vsx\tmake -C ../lib true ./vsx --pidfile=vsx.pid --outfile=vsx.out
transition/fork\tmake -C ../lib true ./fork --pidfile=fork.pid --outfile=fork.out
transition/fork2\tmake -C ../lib true ./fork2 --pidfile=fork2.pid --outfile=fork2.out
"""
DESCRIPTIONS = {
    "static/cgroup04": """\
{   'dopts': '--manage-cgroups --cgroup-root name=zdtmtst:/prefix',
    'flags': 'suid excl',
    'flavor': 'h',
    'ropts': '--manage-cgroups --cgroup-root /newroot --cgroup-root name=zdtmtst:/prefix'}
""",
    "static/inotify00": "{'opts': '--link-remap', 'flags': 'nouser'}\n",
    "static/pid00": "{'flags': 'suid'}\n",
    "static/scm06": """\
# This test isn't executed in the host flavor (in the same network namespace,
# because the kernel releases a test socket asynchronously, so the restore
# can fail if it is executed before the kernel actually destroys the socket.
{'flags': 'suid', 'flavor': 'ns uns'}
""",
    "static/vsx": "{'arch': 'ppc64le'}\n",
    "static/skip-me": "",
}


@pytest.fixture
def selection(tmp_path: Path) -> tests.Selection:
    commands = suite.parse_commands(COMMANDS)
    for name in commands:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name, content in DESCRIPTIONS.items():
        (tmp_path / f"{name}.desc").write_text(content)
    (tmp_path / "static/chroot").unlink()
    # Of cgroup04, and of macvlan in the place of another.
    (tmp_path / "static/cgroup04.hook").write_text('[ "$1" == "--pre-restore" ] || exit 0\n')
    (tmp_path / "transition/fork2.hook").write_text('if [ "$1" == "--post-start" ]; then\n')
    return tests.select(tmp_path, commands)


def by_name(selection: tests.Selection, name: str) -> tests.Test:
    return next(test for test in selection.tests if test.name == name)


def test_start_commands() -> None:
    commands = suite.parse_commands(COMMANDS)
    assert commands["static/pid00"] == "./pid00 --pidfile=pid00.pid --outfile=pid00.out"
    assert commands["static/skip-me"] == ""
    assert commands["static/unlink_fstat01+"].endswith(" --filename=unlink_fstat01+.test")


def test_every_test_is_run_or_left_out_for_a_reason(selection: tests.Selection) -> None:
    assert [test.name for test in selection.tests] == [
        "static/cgroup04",
        "static/inotify00",
        "static/pid00",
        "static/unlink_fstat01+",
        "transition/fork",
    ]
    assert selection.left_out == {
        "static/chroot": "its makefile does not build it here",
        "static/mnt_ext_dev": tests.LEFT_OUT["static/mnt_ext_dev"],
        "static/scm06": "for namespaces of its own only, which a service has not",
        "static/skip-me": "its makefile knows no way to start it and leave it running",
        "static/socket-tcp-close0": "criu is told to close its connections at the restore",
        "static/vsx": "for ppc64le",
        "transition/fork2": "its hook does something beside its start, which nobody does for a "
        "service",
    }


def test_what_a_description_says(selection: tests.Selection) -> None:
    cgroup04, inotify00 = (
        by_name(selection, "static/cgroup04"),
        by_name(selection, "static/inotify00"),
    )
    assert cgroup04.dump_options == ("--manage-cgroups", "--cgroup-root", "name=zdtmtst:/prefix")
    assert cgroup04.restore_options[1:3] == ("--cgroup-root", "/newroot")
    assert cgroup04.alone and cgroup04.env == {}
    assert inotify00.alone and inotify00.dump_options == ("--link-remap",)
    assert inotify00.env["ZDTM_UID"] == "18943"
    assert not by_name(selection, "transition/fork").alone


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("os.getenv('ZDTM_MNT_EXT_DEV') or {}", "a description that is not a literal"),
        ("['h']", "a description that is not a table"),
    ],
)
def test_a_description_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "static").mkdir()
    (tmp_path / "static/odd").touch()
    (tmp_path / "static/odd.desc").write_text(content)
    left_out = tests.select(tmp_path, {"static/odd": "./odd --pidfile=p --outfile=o"}).left_out
    assert left_out["static/odd"].startswith(message)


def test_the_service_of_a_test(selection: tests.Selection) -> None:
    test = by_name(selection, "static/unlink_fstat01+")
    assert test.unit == "zdtm-static-unlink_fstat01_2b.service"
    lines = test.unit_file("/opt/zdtm/zdtm").splitlines()
    assert "PIDFile=/opt/zdtm/zdtm/static/unlink_fstat01+.pid" in lines
    assert "WorkingDirectory=/opt/zdtm/zdtm/static" in lines
    assert 'Environment="ZDTM_GROUPS=27495 48244"' in lines
    assert (
        "ExecStart=/opt/zdtm/zdtm/static/unlink_fstat01+ --pidfile=unlink_fstat01+.pid "
        "--outfile=unlink_fstat01+.out --filename=unlink_fstat01+.test"
    ) in lines


def test_only_some(selection: tests.Selection) -> None:
    def names(*patterns: str, without: str = "", limit: int = 0) -> list[str]:
        return [test.name for test in tests.only(selection.tests, patterns, [without], limit)]

    assert names("pid0*") == ["static/pid00"]
    assert names("transition/*") == ["transition/fork"]
    assert len(names()) == 5
    assert names("static/*", without="*0*") == []
    assert names(without="static/*") == ["transition/fork"]
    assert names(limit=2) == ["static/cgroup04", "static/inotify00"]


def test_sources_of_the_same_archives() -> None:
    lines = "deb http://mirror.test/debian trixie main\n\ndeb [signed-by=/k.gpg] http://m f main\n"
    assert suite.deb_src(aptsources.parse_one_line(lines)) == (
        "deb-src http://mirror.test/debian trixie main\ndeb-src http://m f main\n"
    )


def test_a_suite_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise LabError("sh … exited with 100\nE: Can not find version '4.2.1-1' of package 'criu'")

    monkeypatch.setenv("REKERNEL_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(rootfs, "unpack", lambda base, tree: (tree / "root").mkdir(parents=True))
    monkeypatch.setattr(rootfs, "install", lambda tree, packages: _sources_list(tree))
    monkeypatch.setattr(rootfs, "in_tree", refuse)
    with pytest.raises(LabError, match=r"the tests of criu 4\.2\.1-1 could not be built") as caught:
        suite.build(tmp_path, "4.2.1-1", Progress(terminal=False))
    assert "remove base/ from the cache" in caught.value.hint
    assert not list((tmp_path / "zdtm").glob("*/"))


def _sources_list(tree: Path) -> None:
    (tree / "etc/apt/sources.list.d").mkdir(parents=True)
    (tree / "etc/apt/sources.list").write_text("deb http://m forky main\n")


def test_units_as_systemctl_shows_them() -> None:
    shown = (
        "MainPID=1432\nResult=success\nId=zdtm-static-pid00.service\nActiveState=active\n\n"
        "MainPID=0\nResult=exit-code\nId=zdtm-static-vt.service\nActiveState=failed\n"
    )
    units = command.parse_units(shown)
    assert units["zdtm-static-pid00.service"]["MainPID"] == "1432"
    assert units["zdtm-static-vt.service"]["ActiveState"] == "failed"


ENDED = {"outcome": "passed", "why": "", "pid": 7}
KEPT = {"kept": True, "failure": "", "reason": "", "verdict": "carried"}


@pytest.mark.parametrize(
    ("reported", "ended", "verdict", "why"),
    [
        (KEPT, ENDED, Verdict.PASSED, ""),
        (
            KEPT,
            {**ENDED, "outcome": "failed", "why": "verdict: FAIL: x"},
            Verdict.FAILED,
            "FAIL: x",
        ),
        (KEPT, {**ENDED, "pid": 8}, Verdict.LOST, "process 8 is not the one from before, 7"),
        (None, ENDED, Verdict.LOST, "the report does not name its unit"),
        # It may have been started afresh, and be content.
        ({**KEPT, "kept": False, "failure": "criu: no"}, ENDED, Verdict.LOST, "criu: no"),
        (
            {**KEPT, "kept": False, "reason": "UDP-Lite", "verdict": "restarted"},
            ENDED,
            Verdict.LOST,
            "UDP-Lite",
        ),
        ({**KEPT, "kept": False}, ENDED, Verdict.LOST, "not kept (carried)"),
    ],
)
def test_judge(
    selection: tests.Selection,
    reported: dict[str, Any] | None,
    ended: dict[str, Any],
    verdict: Verdict,
    why: str,
) -> None:
    found = command.judge(by_name(selection, "static/pid00"), reported, ended, "7")
    assert found.verdict is verdict
    assert why in found.why


def test_what_excuses_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"static/a": Known("one"), "static/b": Known("two", beforehand=True)}
    monkeypatch.setattr(result, "KNOWN", known)
    monkeypatch.setattr(result, "MEASURES_TIME", ("static/t",))
    lost = Finding("static/a", Verdict.LOST)
    assert (lost.excuse, lost.bad) == ("one", False)
    unnamed = Finding("static/b", Verdict.LOST)
    assert (unnamed.excuse, unnamed.bad) == ("", True)
    assert not dataclasses.replace(unnamed, beforehand="restarted: two").bad
    timed = Finding("static/t", Verdict.FAILED)
    assert timed.bad and dataclasses.replace(timed, fails_under_load=False).bad
    assert not dataclasses.replace(timed, fails_under_load=True).bad
    assert Finding("static/c", Verdict.NOT_STARTED).bad
    assert not Finding("static/c", Verdict.FAILS_PLAIN).bad
    # Nothing to excuse.
    assert Finding("static/a", Verdict.PASSED).excuse == ""


def test_passed_and_the_table() -> None:
    found = Result({"criu": "4.2.1-1"})
    assert not found.passed
    found.findings = [
        Finding("static/cow00", Verdict.FAILED, "verdict: FAIL\nmore"),
        Finding("static/pid00", Verdict.PASSED),
        Finding("static/vsx", Verdict.LEFT_OUT, "for ppc64le"),
        Finding("static/zombie00", Verdict.FAILS_PLAIN, "dump: exit code 1"),
    ]
    assert found.passed
    assert found.counts() == {"passed": 1, "failed": 1, "fails plain": 1, "left out": 1}
    lines = table(found).splitlines()
    assert "left out, for ppc64le: static/vsx" in lines
    assert any(
        line.startswith("  static/cow00") and "FAIL / more | pages" in line for line in lines
    )
    assert lines[-1].endswith("1 excused, 0 to be mended")
    found.findings.append(Finding("static/epoll", Verdict.LOST, "no", logs=("/l/dump.log",)))
    assert not found.passed
    assert "    /l/dump.log" in table(found).splitlines()
    assert json.loads(json.dumps(found.to_json()))["tests"][-1]["logs"] == ["/l/dump.log"]
    found.findings.pop()
    found.error = "the guest is lost"
    assert not found.passed


def test_a_pattern_that_fits_nothing(
    selection: tests.Selection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = Assembly(tmp_path, rootfs.Image(tmp_path), ("6.12", "7.3"), "tcg")
    (tmp_path / "commands").write_text(COMMANDS)
    monkeypatch.setenv("REKERNEL_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "assemble", lambda *_: made)
    monkeypatch.setattr(product, "dependencies", lambda deb: [])
    monkeypatch.setattr(rootfs, "criu_version", lambda image: "4.2.1-1")
    monkeypatch.setattr(suite, "build", lambda *_: suite.Suite(tmp_path, "4.2.1-1"))
    request = command.Request(
        Progress(terminal=False), Options(), tmp_path / "d.deb", tmp_path / "r.json", only=("nix*",)
    )
    with pytest.raises(UsageError, match="no test of the suite fits") as caught:
        command.zdtm(request)
    assert "--only takes patterns" in caught.value.hint
    assert not (tmp_path / "r.json").exists()


def test_what_was_found_with_criu_alone_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REKERNEL_LAB_CACHE", str(tmp_path))
    built = suite.Suite(tmp_path / "4.2.1-1-abc" / "zdtm", "4.2.1-1")
    memory = command.Memory("4.2.1-1", "6.12", built)
    assert memory.load() == {}
    memory.add({"static/pid00": {"outcome": "passed"}})
    memory.add({"static/vt": {"outcome": "failed"}})
    assert set(command.Memory("4.2.1-1", "6.12", built).load()) == {"static/pid00", "static/vt"}
    assert command.Memory("4.2.1-1", "7.3", built).load() == {}


def test_the_command_line() -> None:
    arguments = cli.parser().parse_args(["zdtm", "--only", "a,b*", "--limit", "3", "--from", "7"])
    assert (arguments.only, arguments.limit, arguments.kernel_from) == ("a,b*", 3, "7")


def test_what_the_reports_say_of_a_unit() -> None:
    """Of several upgrades the first that lost it, also if that was the very first."""
    run = object.__new__(command._Run)
    run._result = result.Result()

    def report(*units: tuple[str, bool, str]) -> None:
        named = [{"unit": name, "kept": kept, "failure": why} for name, kept, why in units]
        run._result.upgrades.append({"report": {"units": named}})

    report(("a", False, "first"), ("b", True, ""), ("c", True, ""))
    report(("a", True, ""), ("b", False, "second"), ("c", True, "last"))
    assert {name: unit["failure"] for name, unit in run._kept().items()} == {
        "a": "first", "b": "second", "c": "last",
    }  # fmt: skip
