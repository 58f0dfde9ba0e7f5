"""The cause that criu's logs name."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import Recorded, on_each_kernel

from rekernel.criu.log import first_error


@on_each_kernel
@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("io-uring", "send_fds failed (-22)"),
        ("device", "Can't dump file 4 of that type [20600] (chr 250:0)"),
        ("sandboxed", "Can't setns 7/uts: Operation not permitted"),
        ("no-such-pid", "Unable to detach from 999999: No such process"),
        ("shell", "The criu itself is within dumped tree."),
        # Warnings only.
        ("good-dump", ""),
    ],
)
def test_the_cause_comes_before_what_follows_from_it(
    recorded: Recorded, log: str, cause: str
) -> None:
    assert first_error(recorded.directory / "criu" / f"{log}.log") == cause


@on_each_kernel
def test_a_restore(recorded: Recorded) -> None:
    found = first_error(recorded.directory / "criu" / "pid-taken.log")
    assert found.startswith("Can't fork for ")
    assert found.endswith(": File exists")


def test_no_log(tmp_path: Path) -> None:
    assert first_error(tmp_path / "dump.log") == ""
    (tmp_path / "dump.log").write_bytes(b"\xff\xfe garbage\n")
    assert first_error(tmp_path / "dump.log") == ""
