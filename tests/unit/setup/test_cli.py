from __future__ import annotations

import argparse
import fcntl
import io
import json
import sys
from typing import Any

import pytest

from rekernel.cli import setup as verb
from rekernel.cli.common import Parser
from rekernel.errors import BlockedError, BusyError, NotPermittedError, UsageError
from rekernel.systemd.units import Unit

from .conftest import Machine
from .test_operation import UNITS


@pytest.fixture(autouse=True)
def _machine_has_units(monkeypatch: pytest.MonkeyPatch) -> None:
    def running() -> list[Unit]:
        return UNITS

    monkeypatch.setattr(verb, "running_services", running)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(sys, "stdin", io.StringIO())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def parse(*words: str) -> argparse.Namespace:
    parser = Parser()
    verb.add_parser(parser.add_subparsers(parser_class=Parser))
    return parser.parse_args(["setup", *words])


def run(machine: Machine, *words: str) -> int:
    return verb.run(parse(*words), machine.host)


def run_json(machine: Machine, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    code = run(machine, "--json", *words)
    return code, json.loads(capsys.readouterr().out)


def test_from_nothing_and_back(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    before = machine.tree()
    assert run(machine, "--undo", "--yes") == 6
    assert run(machine, "--yes", "--region", "1G") == 0
    out = capsys.readouterr().out
    assert "1024 MiB at 0x100000000" in out
    assert "redis-server.service" in out
    assert "Reboot once" in out
    assert run(machine, "--yes", "--region", "1024M") == 6
    assert "Nothing to do" in capsys.readouterr().out
    assert run(machine, "--undo", "--yes") == 0
    assert machine.tree() == before
    assert run(machine, "--undo", "--yes") == 6


def test_json(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    code, planned = run_json(machine, capsys, "--dry-run")
    assert (code, planned["schema"], planned["state"]) == (0, 1, "planned")
    code, done = run_json(machine, capsys, "--yes")
    assert (code, done["state"]) == (0, "changed")
    assert {**done, "state": "planned"} == planned
    assert done["region"] == {"start": 4 << 30, "end": 5 << 30, "size": 1 << 30}
    assert done["restart_units"] == ["redis-server.service"]
    assert done["reboot_required"]
    code, again = run_json(machine, capsys, "--yes")
    assert (code, again["state"], again["changes"]) == (6, "unchanged", [])
    code, planned = run_json(machine, capsys, "--undo", "--dry-run")
    assert (code, planned["action"], planned["state"]) == (0, "undo", "planned")
    code, undone = run_json(machine, capsys, "--undo", "--yes")
    assert (code, undone["state"]) == (0, "changed")
    code, undone = run_json(machine, capsys, "--undo", "--yes")
    assert (code, undone["state"]) == (6, "unchanged")


@pytest.mark.parametrize("words", [["--dry-run"], ["--undo", "--dry-run"]])
def test_dry_run_changes_nothing(machine: Machine, words: list[str]) -> None:
    if "--undo" in words:
        run(machine, "--yes")
    before = machine.tree()
    assert run(machine, *words) == 0
    assert machine.tree() == before


def test_nobody_to_ask(machine: Machine) -> None:
    before = machine.tree()
    with pytest.raises(UsageError, match="no terminal"):
        run(machine)
    assert machine.tree() == before


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("\n", 1), ("", 1)])
def test_asking(machine: Machine, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    before = machine.tree()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert run(machine) == code
    assert (machine.tree() == before) == bool(code)


def test_not_root(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NotPermittedError):
        run(machine, "--dry-run")


@pytest.mark.parametrize("size", ["", "many", "0", "-1G", "1.5G"])
def test_bad_size(machine: Machine, size: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse(f"--region={size}")


def test_undo_of_a_size(machine: Machine) -> None:
    for option in ("--region", "--store"):
        with pytest.raises(UsageError, match="--undo takes no --region and no --store"):
            run(machine, "--undo", option, "1G")


def test_region_too_small(machine: Machine) -> None:
    with pytest.raises(BlockedError, match="too small"):
        run(machine, "--yes", "--region", "256M")


def test_busy(machine: Machine) -> None:
    lock = machine.write("/run/rekernel/lock", "")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            run(machine, "--yes")


def test_boot_loader_by_hand(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    (machine.root / "usr/sbin/update-grub").unlink()
    assert run(machine, "--yes") == 0
    out = capsys.readouterr().out
    assert "memmap=1024M!0x100000000 memmap=1024M%0x100000000-12+0xefffffff" in out
