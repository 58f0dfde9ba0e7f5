"""The command line as a whole: parsing, errors, exit codes, and that its documents keep up."""

from __future__ import annotations

import argparse
import errno
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rekernel import cli, errors
from rekernel.cli import common
from rekernel.cli.upgrade import AttemptError
from rekernel.systemd import bus

REPOSITORY = Path(__file__).parents[3]
PARSER = cli.build_parser()
# The tests of verbs go without.
ASSERT_THERE = bus.assert_there


def verbs() -> dict[str, argparse.ArgumentParser]:
    actions = [item for item in PARSER._actions if isinstance(item, argparse._SubParsersAction)]
    return {name: item for name, item in actions[0].choices.items() if name in cli.VERBS}


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.help is not argparse.SUPPRESS:
            yield from (name for name in action.option_strings if name.startswith("--"))


def every_option() -> list[tuple[str, str]]:
    return [(verb, option) for verb, parser in verbs().items() for option in options(parser)]


def test_every_verb_has_json_and_a_description() -> None:
    assert list(verbs()) == list(cli.VERBS)
    for parser in verbs().values():
        assert "--json" in options(parser)
        assert parser.description


def test_hidden_verbs_and_options_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["upgrade", "--help"], ["abort", "--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        for word in ("region-up", "finish", "--in-unit", "--after-death", "SUPPRESS"):
            assert word not in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["bogus"], "unknown verb bogus"),
        (["status", "--bogus"], "unrecognized arguments: --bogus"),
        (["plan", "--memory", "disk"], "argument --memory: invalid choice: 'disk'"),
        (["upgrade", "--max-blackout", "soon"], "invalid number of seconds value: 'soon'"),
        (["upgrade", "--max-blackout", "-1"], "argument --max-blackout"),
        (["report", "--json", "--html"], "--json and --html exclude each other"),
    ],
)
def test_usage_errors(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    if "--json" in argv:
        assert json.loads(captured.err)["error"] == message
    else:
        assert captured.err.startswith("rekernel: ")
        assert message in captured.err
        assert "\nhint: " in captured.err


def test_errors_are_one_message_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    common.print_error(errors.BlockedError("swap is in use", "swapoff -a"), in_json=False)
    assert capsys.readouterr().err == "rekernel: swap is in use\nhint: swapoff -a\n"
    common.print_error(errors.RekernelError("no hint"), in_json=False)
    assert capsys.readouterr().err == "rekernel: no hint\n"


def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    common.print_error(errors.BusyError("under way", "wait"), in_json=True)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "schema": 1, "error": "under way", "hint": "wait", "exit_code": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RekernelError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.BlockedError("x"), 3),
        (AttemptError("x", "", 4), 4),
        (errors.RolledBackError("x"), 5),
        (errors.NothingToDoError("x"), 6),
        (errors.BusyError("x"), 7),
        (errors.NotPermittedError("x"), 8),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("rekernel.cli.status.run", fail)
    assert cli.main(["status"]) == code


@pytest.mark.parametrize("verb", cli.VERBS)
@pytest.mark.parametrize(
    ("booted", "message"),
    [
        (False, "this host was not booted with systemd"),
        (True, "systemd does not answer on gone: No such file or directory"),
    ],
)
def test_a_host_without_systemd(
    verb: str,
    booted: bool,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bus, "assert_there", ASSERT_THERE)
    monkeypatch.setattr(bus, "BOOTED", str(tmp_path if booted else tmp_path / "none"))
    monkeypatch.setattr(bus, "PRIVATE", "gone")
    monkeypatch.setattr(bus, "SYSTEM", "gone")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert cli.main([verb]) == 3
    captured = capsys.readouterr()
    assert captured.err == (
        f"rekernel: {message}\n"
        "hint: rekernel carries what systemd runs: start it on the host itself, not in a container "
        "or a chroot\n"
    )
    assert not captured.out


def test_defects_have_a_traceback_only_if_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise ZeroDivisionError("x")

    monkeypatch.setattr("rekernel.cli.status.run", fail)
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err.startswith("rekernel: internal error: ZeroDivisionError: x\n")
    with pytest.raises(ZeroDivisionError):
        cli.main(["--verbose", "status"])


@pytest.mark.parametrize(("user", "code"), [(1000, 8), (0, 1)])
def test_what_only_root_may_read(
    user: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/sys/bus/dax/start")

    monkeypatch.setattr("rekernel.cli.status.run", fail)
    monkeypatch.setattr("os.geteuid", lambda: user)
    assert cli.main(["status"]) == code
    words = "rekernel: /sys/bus/dax/start: this needs root\nhint: try again with sudo\n"
    assert (capsys.readouterr().err == words) is (user != 0)


@pytest.mark.parametrize("verb", ["check", "plan", "upgrade", "abort", "region-up", "finish"])
def test_root_is_needed(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.main([verb]) == 8
    assert capsys.readouterr().err == "rekernel: this needs root\nhint: try again with sudo\n"


def test_python_dash_m() -> None:
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "rekernel", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("rekernel ")


def manual() -> str:
    text = (REPOSITORY / "man" / "rekernel.8").read_text()
    return text.replace("\\-", "-").replace("\\ ", " ")


def section(text: str, verb: str) -> str:
    match = re.search(rf'^\.SS "?{verb}\b.*?(?=^\.S[SH] )', text, re.M | re.S)
    assert match, f"rekernel(8) has no section {verb}"
    return match[0]


@pytest.mark.parametrize(("verb", "option"), every_option())
def test_manual_has_every_option(verb: str, option: str) -> None:
    text = manual()
    body = section(text, verb)
    if option in ("--json", "--help"):
        assert option in text
    else:
        assert option in body


def test_manual_has_every_exit_code() -> None:
    """In its order, and each begins with what the help says of it."""
    body = manual().partition('.SH "EXIT STATUS"')[2].partition(".SH ")[0]
    found = re.findall(r"^\.B (\d+)\n(.+)", body, re.MULTILINE)
    assert [int(code) for code, _ in found] == list(errors.EXIT_CODES)
    for code, text in found:
        assert text.lower().startswith(errors.EXIT_CODES[int(code)])
    classes: list[type[errors.RekernelError]] = [
        errors.RekernelError,
        *errors.RekernelError.__subclasses__(),
    ]
    assert {item.exit_code for item in classes} <= set(errors.EXIT_CODES)


def test_help_has_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Exit codes: 0 done, 1 failed, 2 usage, 3 blocked or not set up, 4 degraded" in text
    assert f"8 {errors.EXIT_CODES[8]}. See rekernel(8)." in text


def test_manual_of_the_configuration_has_every_key_and_wish() -> None:
    from rekernel import policy

    text = (REPOSITORY / "man" / "rekernel.toml.5").read_text()
    for word in ("max_blackout", "[units]", *policy.WISHES):
        assert word in text


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", ["rekernel.8", "rekernel.toml.5"])
def test_manuals_are_well_formed(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", str(REPOSITORY / "man" / name)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def complete(*words: str) -> list[str]:
    script = (
        'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _rekernel; '
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    path = REPOSITORY / "packaging" / "completion" / "rekernel.bash"
    done = subprocess.run(
        ["bash", "-c", script, str(path), "rekernel", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_verbs() -> None:
    assert [word for word in complete("") if not word.startswith("-")] == list(cli.VERBS)
    assert complete("he") == []
    assert complete("rep") == ["report"]
    assert set(options(PARSER)) == set(complete("--"))


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_bash_completes_exactly_the_options_of_a_verb(verb: str) -> None:
    assert set(complete(verb, "--")) == set(options(verbs()[verb]))


def test_bash_completes_values() -> None:
    assert complete("upgrade", "--memory", "") == ["auto", "region", "image"]
    assert complete("--verbose", "upgrade", "--ye") == ["--yes"]


@pytest.mark.parametrize(("verb", "option"), every_option())
def test_zsh_completion_has_every_option(verb: str, option: str) -> None:
    text = (REPOSITORY / "packaging" / "completion" / "_rekernel").read_text()
    assert f"'{verb}:" in text
    case = re.search(rf"^ +(?:[\w |]*\b)?{verb}\b[\w |]*\)(.*?);;", text, re.M | re.S)
    assert case, f"no case for {verb}"
    body = case[1]
    for name in re.findall(r"\$(\w+)", body):
        declared = re.search(rf"local -a {name}=\((.*?)\n?    ?\)?$", text, re.M | re.S)
        assert declared
        body += text[declared.start() : declared.start() + 400]
    assert f"{option}[" in body
