"""Programs that the old side starts, and what is said when they do not do their work."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from rekernel.errors import RekernelError
from rekernel.run import (
    CommandFailedError,
    CommandNotFoundError,
    answering,
    finish,
    run,
    run_json,
    start,
)


def test_output_is_taken_as_it_is() -> None:
    # A service's status may hold any of these; invalid bytes are replaced, not an end.
    assert run(["printf", r"a\rb\v\f\342\200\250\377\n"]) == "a\rb\v\f\u2028\ufffd\n"
    assert run(["cat"], stdin="one\r\ntwo ü") == "one\r\ntwo ü"


def test_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("HOME", "/somewhere")
    lines = run(["env"]).splitlines()
    assert {line.split("=")[0] for line in lines} <= {"PATH", "LC_ALL", "PWD", "SHLVL", "_"}
    assert run(["sh", "-c", "test -t 0 || echo none"]) == "none\n"


def test_a_program_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(CommandNotFoundError, match=r"^no-such-program not found$") as error:
        run(["no-such-program", "--help"])
    assert error.value.hint == "install the package that has no-such-program"
    assert error.value.exit_code == 3
    with pytest.raises(CommandNotFoundError):
        start(["no-such-program"], output=str(tmp_path / "log"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo out; echo first >&2; echo last >&2; exit 3", r"sh failed \(3\): last"),
        ("echo out; exit 1", r"sh failed \(1\): out"),
        ("exit 1", r"sh failed \(1\): no output"),
        ("kill -9 $$", r"sh failed \(-9\): no output"),
    ],
)
def test_a_program_that_fails(script: str, message: str) -> None:
    with pytest.raises(CommandFailedError, match=f"^{message}$") as error:
        run(["sh", "-c", script])
    assert error.value.hint == f"tried: sh -c '{script}'"
    assert error.value.exit_code == 1
    assert isinstance(run(["sh", "-c", script], check=False), str)


def test_statuses_that_are_no_failure() -> None:
    assert run(["sh", "-c", "echo x; exit 1"], good=(0, 1)) == "x\n"
    with pytest.raises(CommandFailedError):
        run(["sh", "-c", "exit 2"], good=(0, 1))


def test_a_program_that_does_not_end() -> None:
    with pytest.raises(RekernelError, match=r"^sleep did not end within 0 s$"):
        run(["sleep", "60"], timeout=0.1)


def test_json() -> None:
    assert run_json(["echo", '[{"a": 1}]']) == [{"a": 1}]
    # What `ip -json` prints for an empty list.
    assert run_json(["true"]) == []


def test_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = 'echo "$REKERNEL_HOOK"; echo bad >&2; cat; exit 5'
    process = start(["sh", "-c", script], output=str(log), environment={"REKERNEL_HOOK": "/x"})
    assert process.wait() == 5
    assert log.read_text() == "/x\nbad\n"


def test_waiting_for_one_that_was_started(tmp_path: Path) -> None:
    assert finish(start(["sh", "-c", "exit 3"], output="/dev/null"), "sh", limit=30) == 3
    ended = start(["true"], output="/dev/null")
    ended.wait()
    assert finish(ended, "true", limit=30) == 0
    late = start(["sleep", "60"], output="/dev/null")
    with pytest.raises(RekernelError, match=r"^sleep did not end within 0 s$"):
        finish(late, "sleep", limit=0)
    assert late.returncode == -signal.SIGKILL


def test_nobody_waits_who_shall_not() -> None:
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise InterruptedError

    before = time.monotonic()
    with answering(check):
        with pytest.raises(InterruptedError):
            run(["sleep", "60"])
        assert run(["sh", "-c", "sleep 0.5; echo all"], whole=True) == "all\n"
        looks = 0
        late = start(["sleep", "60"], output="/dev/null")
        with pytest.raises(InterruptedError):
            finish(late, "sleep", limit=60)
    assert late.returncode == -signal.SIGKILL
    assert time.monotonic() - before < 20
    # Then everybody waits again; and nothing is lost that was said in several looks.
    many = "x\n" * 100_000
    said = run(["sh", "-c", "echo a; sleep 0.3; cat; sleep 0.3; echo b"], stdin=many)
    assert said == f"a\n{many}b\n"
