"""Logins as logind leaves them in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekernel.carry.logins import observe as logins
from rekernel.systemd.units import Unit

SESSION = """\
# This is private data. Do not parse.
UID=1000
USER=ann
STATE=active
SCOPE=session-3.scope
SCOPE_JOB=/org/freedesktop/systemd1/job/99
FIFO={run}/sessions/3.ref
TTY=pts/0
REMOTE_HOST=10.0.0.1
SERVICE=sshd
LEADER=700
LEADER_FD_SAVED=1
LEADER_PIDFDID=88
"""
USER = "NAME=ann\nSERVICE_JOB=/x\nRUNTIME=/run/user/1000\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in ("sessions", "users", "transient"):
        (tmp_path / name).mkdir()
    (tmp_path / "sessions/3").write_text(SESSION.format(run=tmp_path))
    (tmp_path / "sessions/3.ref").write_text("")
    # Another one of the same user, and one that is no session yet.
    other = SESSION.format(run=tmp_path).replace("session-3", "session-4").replace("3.ref", "4.ref")
    (tmp_path / "sessions/4").write_text(other)
    (tmp_path / "sessions/5").write_text("UID=1000\n")
    (tmp_path / "users/1000").write_text(USER)
    (tmp_path / "transient/session-3.scope").write_text("[Scope]\n")
    return tmp_path


def scope(run: Path) -> Unit:
    properties = {
        "FragmentPath": str(run / "transient/session-3.scope"),
        "DropInPaths": "/usr/lib/systemd/system/session-.scope.d/x.conf",
        "Slice": "user-1000.slice",
    }
    return Unit("session-3.scope", "active", "running", "", 0, "/x", "", properties)


def test_who_is_logged_in(run: Path) -> None:
    found = logins.observe(run)
    assert sorted(found) == ["session-3.scope", "session-4.scope"]
    ann = found["session-3.scope"]
    assert (ann.uid, ann.user, ann.service) == (1000, "ann", "sshd")
    assert ann.words == "ann on pts/0 from 10.0.0.1"
    assert logins.observe(run / "none") == {}


def test_what_is_left_for_the_next_systemd(run: Path) -> None:
    left = logins.leave([scope(run)], run)
    assert sorted(left.files) == [str(run / name) for name in ("sessions/3", "users/1000")]
    session = left.files[str(run / "sessions/3")]
    assert "LEADER=700\n" in session
    assert "LEADER_" not in session
    assert "JOB" not in session
    assert left.files[str(run / "users/1000")] == "NAME=ann\nRUNTIME=/run/user/1000\n"
    assert left.fifos == (str(run / "sessions/3.ref"),)
    assert left.directories == {"/run/user/1000": ("systemd",)}
    assert logins.taken_along([scope(run), scope(run)]) == ["user-1000.slice"]


def test_nobody_is_logged_in(run: Path) -> None:
    left = logins.leave([], run)
    assert (left.files, left.fifos, left.directories) == ({}, (), {})
    assert logins.taken_along([]) == []


def manager(uid: int = 1000) -> Unit:
    properties = {
        "FragmentPath": "/usr/lib/systemd/system/user@.service",
        "Slice": "user-1000.slice",
    }
    return Unit(f"user@{uid}.service", "active", "running", "", 20, "/y", "", properties)


def test_a_manager_is_left_with_its_session(run: Path) -> None:
    session = "UID=1000\nCLASS=manager\nFIFO={run}/sessions/7.ref\nLEADER_FD_SAVED=1\n"
    (run / "sessions/7").write_text(session.format(run=run))
    assert len(logins.observe(run)) == 2
    left = logins.leave([manager()], run)
    assert sorted(left.files) == [str(run / "sessions/7"), str(run / "users/1000")]
    assert "SAVED" not in left.files[str(run / "sessions/7")]
    assert left.fifos == (str(run / "sessions/7.ref"),)
    # It goes on with what it has there.
    assert left.directories == {"/run/user/1000": ()}
    assert logins.taken_along([manager()]) == ["user-1000.slice", "user-runtime-dir@1000.service"]
    both = logins.leave([scope(run), manager()], run)
    assert both.directories == {"/run/user/1000": ()}
    assert len(both.fifos) == 2


def test_a_manager_without_a_session(run: Path) -> None:
    """As systemd 252 has it: of whoever lingers."""
    left = logins.leave([manager()], run)
    assert sorted(left.files) == [str(run / "users/1000")]
    assert left.directories == {"/run/user/1000": ()}


def test_whose_manager() -> None:
    assert logins.user_of("user@0.service") == "root"
    assert logins.user_of("user@4000000.service") == "4000000"
