"""Units that only /run knows of, and those that only somebody's hand has started."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rekernel.carry.runtime_units import observe as runtime_units
from rekernel.errors import RekernelError
from rekernel.records import replace
from rekernel.systemd.units import Unit


def unit(name: str, *paths: Path, active: str = "active", **properties: str) -> Unit:
    fragment, *dropins = [str(path) for path in paths] or [""]
    known = {"FragmentPath": fragment, "DropInPaths": " ".join(dropins), **properties}
    return Unit(name, active, "running", "simple", 10, "/x", "", known)


@pytest.fixture
def systemd(tmp_path: Path) -> Path:
    for name in ("transient/job.service", "transient/job.service.d/cpu.conf", "generator/x.service",
                 "transient/later.timer", "transient/later.service"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[Unit]\nDescription={name}\n")
    return tmp_path


def test_files_that_no_disk_has(systemd: Path) -> None:
    job = systemd / "transient/job.service"
    dropin = systemd / "transient/job.service.d/cpu.conf"
    etc = Path("/etc/systemd/system/job.service.d/x.conf")
    units = [
        unit("job.service", job, dropin, etc),
        unit("x.service", systemd / "generator/x.service"),
        unit("y.service", Path("/usr/lib/systemd/system/y.service")),
        unit("none.service"),
    ]
    assert sorted(runtime_units.files(units, systemd)) == sorted([str(job), str(dropin)])
    assert runtime_units.has_transient_file("job.service", systemd)
    job.unlink()
    assert list(runtime_units.files(units, systemd)) == [str(dropin)]
    assert not runtime_units.has_transient_file("job.service", systemd)


def test_drop_ins_come_and_go(systemd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(runtime_units, "run", commands.append)
    runtime_units.forget(systemd)
    assert commands == []
    made = runtime_units.keeping([unit("a@1.service"), unit("session-3.scope")], systemd)
    (path,) = map(Path, made)
    assert path.parent.name == "a@1.service.d"
    path.parent.mkdir(parents=True)
    path.write_text(made[str(path)])
    # Nor do they travel a second time.
    assert runtime_units.files([unit("a@1.service", path)], systemd) == {}
    runtime_units.forget(systemd)
    assert not path.parent.exists()
    assert commands == [["systemctl", "daemon-reload"]]


def test_a_timer_counts_on(systemd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer, service = systemd / "transient/later.timer", systemd / "transient/later.service"
    timer.write_text("[Timer]\nOnActiveSec=8h\nOnUnitActiveSec=1h\n")
    listed: list[dict[str, Any]] = [
        {"unit": "later.timer", "next": int((time.time() + 60) * 1_000_000)},
        {"unit": "other.timer", "next": None},
    ]
    monkeypatch.setattr(runtime_units, "run_json", lambda argv: listed)
    monkeypatch.setattr(
        runtime_units, "show", lambda names: [unit(name, service) for name in names]
    )
    monkeypatch.setattr(
        runtime_units, "run", lambda argv: "later.service\n" if timer.exists() else ""
    )
    units = [
        unit("later.timer", timer),
        unit("other.timer", Path("/usr/lib/systemd/system/other.timer")),
    ]
    found = runtime_units.triggered_files(units, systemd)
    assert sorted(found) == sorted([str(service), str(timer)])
    first, second = found[str(timer)].splitlines()[1:]
    assert first in ("OnActiveSec=60s", "OnActiveSec=59s")
    assert second == "OnUnitActiveSec=1h"
    assert runtime_units.triggered_files(units[1:], systemd) == {}


def test_what_has_elapsed_does_not_do_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    elapsed = replace(unit("once.timer"), sub="elapsed")
    monkeypatch.setattr(runtime_units, "active", lambda *types: [])
    monkeypatch.setattr(runtime_units, "show", lambda names: [elapsed, unit("a.socket")])
    assert [item.name for item in runtime_units.triggers()] == ["a.socket"]


def test_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(names: object) -> list[Unit]:
        raise RekernelError("systemctl did not end within 120 s")

    monkeypatch.setattr(runtime_units, "show", fail)
    assert runtime_units.start_again(["a.timer"]) == [
        "not started again: systemctl did not end within 120 s"
    ]


def test_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    shown = [unit("a.timer"), unit("b.timer", active="inactive")]
    monkeypatch.setattr(runtime_units, "show", lambda names: shown)
    monkeypatch.setattr(runtime_units, "run", commands.append)
    assert runtime_units.start_again(["a.timer", "b.timer"]) == []
    assert commands == [["systemctl", "start", "--no-block", "--", "b.timer"]]


def test_rules_that_networkd_did_not_make(tmp_path: Path) -> None:
    assert runtime_units.keeping_rules(["", ""], tmp_path) == {}
    ((path, text),) = runtime_units.keeping_rules(["", "rule add …\n"], tmp_path).items()
    assert "\nManageForeignRoutingPolicyRules=no\n" in text
    Path(path).parent.mkdir()
    Path(path).write_text(text)
    runtime_units.forget(tmp_path)
    assert not Path(path).exists()
