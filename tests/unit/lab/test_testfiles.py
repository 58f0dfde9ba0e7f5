"""In which order the VM test files run, how many at once, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekernel_lab import testfiles

OUTPUT = """\
.s                                                                       [100%]
============================= slowest durations ==============================
78.25s setup    tests/vm/test_pages.py::test_chain_in_one_boot
301.10s call     tests/vm/test_pages.py::test_chain_in_one_boot
9.00s teardown tests/vm/test_pages.py::test_the_client_saw_nothing
1 passed, 1 skipped in 388.35s
"""


def test_the_longest_are_not_left_for_the_end() -> None:
    paths = [Path(f"tests/vm/test_{name}.py") for name in ("demo", "pages", "failures", "uefi")]
    names = [path.stem for path in testfiles.in_order(paths)]
    assert names == ["test_uefi", "test_failures", "test_pages", "test_demo"]


def test_every_name_of_the_order_is_that_of_a_file() -> None:
    names = {path.stem.removeprefix("test_") for path in testfiles.TESTS.glob("test_*.py")}
    assert set(testfiles.LONGEST_FIRST) <= names


def test_slowest() -> None:
    lines = testfiles.slowest(OUTPUT)
    assert [line.split("s ")[0] for line in lines] == ["301.10", "78.25", "9.00"]


@pytest.mark.parametrize(
    ("cpus", "available_mib", "expected"),
    [(2, 22_000, 2), (2, 12_000, 1), (1, 64_000, 1), (64, 256_000, 4), (2, 4_000, 1)],
)
def test_at_once(cpus: int, available_mib: int, expected: int) -> None:
    assert testfiles.at_once(cpus, available_mib) == expected


def test_one_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(testfiles, "REPOSITORY", tmp_path)
    monkeypatch.setattr(testfiles, "_TELL_S", 0.0)
    good, bad, none = (tmp_path / f"test_{name}.py" for name in ("good", "bad", "none"))
    good.write_text("def test_it() -> None:\n    pass\n")
    bad.write_text("def test_it() -> None:\n    raise RuntimeError('said why')\n")
    none.write_text("")
    broken = tmp_path / "test_broken.py"
    broken.write_text("import nothing_of_the_kind\n")
    assert testfiles.run([good, bad, none, broken], [], jobs=2) == 1
    output = capfd.readouterr().out
    assert "RuntimeError: said why" in output
    assert "-- under way: test_bad (0 s), test_broken (0 s)" in output
    files = [line.split()[:2] for line in output.partition("-- files\n")[2].splitlines()]
    assert sorted(files) == [
        ["test_bad", "FAILED"], ["test_broken", "FAILED"], ["test_good", "passed"],
    ]  # fmt: skip
    assert testfiles.run([good, none], [], jobs=1) == 0
