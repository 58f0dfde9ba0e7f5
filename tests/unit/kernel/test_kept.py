"""What was made before is taken again only if it would be the same."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from rekernel.kernel import kept


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A directory with a file that is old enough."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a").write_text("a")
    time.sleep(0.15)
    return tmp_path / "from"


def keep(made: Path, name: str = "x", since_ns: int = 0, **more: list[str]) -> Path | None:
    made_of = more.get("made_of", [str(made), str(made / "a"), str(made / "none")])
    return kept.keep(name, b"content", made_of, since_ns or time.time_ns(), made.parent / "kept")


def get(made: Path, name: str = "x") -> Path | None:
    return kept.get(name, made.parent / "kept")


def test_the_same_is_taken_again(made: Path) -> None:
    assert get(made) is None
    path = keep(made)
    assert path is not None
    assert path.read_bytes() == b"content"
    assert get(made) == path
    assert get(made, "y") is None
    # Secrets may be in it.
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_whatever_changes_makes_it_anew(made: Path) -> None:
    file = made / "a"
    was = file.stat()

    def rewrite() -> None:
        # As dpkg does it: another file of the same size and date.
        (made / "b").write_text("b")
        os.utime(made / "b", ns=(was.st_atime_ns, was.st_mtime_ns))
        (made / "b").replace(file)

    def rewrite_in_place() -> None:
        file.write_text("c")
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))

    changes = [rewrite, rewrite_in_place, file.unlink, (made / "none").touch, (made / "new").touch]
    for change in changes:
        if not file.exists():
            file.write_text("a")
        time.sleep(0.15)
        assert keep(made) is not None
        assert get(made) is not None
        change()
        assert get(made) is None, change


def test_what_changes_while_it_is_made_is_not_kept(made: Path) -> None:
    since = time.time_ns()
    (made / "a").write_text("b")
    assert keep(made, since_ns=since) is None
    assert get(made) is None


def test_a_clock_that_was_set_back(made: Path) -> None:
    assert keep(made, since_ns=time.time_ns() + 10**9) is None


def test_damage_is_seen(made: Path) -> None:
    path = keep(made)
    assert path is not None
    for damage in (b"Content", b"conten", b""):
        path.write_bytes(damage)
        assert get(made) is None
    keep(made)
    for entry in ("", "[]", "{}", "{"):
        path.with_suffix(".json").write_text(entry)
        assert get(made) is None


def test_no_more_than_a_few_are_kept(made: Path) -> None:
    for number in range(7):
        assert keep(made, f"x{number}") is not None
        time.sleep(0.01)
    assert [number for number in range(7) if get(made, f"x{number}")] == [3, 4, 5, 6]
    assert len(list((made.parent / "kept").iterdir())) == 8


def test_no_room(made: Path) -> None:
    (made.parent / "kept").write_text("in the way")
    assert keep(made) is None
