"""A terminal whose job has just ended goes back to its shell."""

from __future__ import annotations

from pathlib import Path

import pytest
from imagefiles import image, message

from rekernel.carry.terminals import foreground
from rekernel.criu.images import ImageError, entries, fields
from rekernel.transition.amend import Wanted, amend_images

SHELL, JOB, OTHER = 10603, 12701, 12800


def process(pid: int, group: int) -> bytes:
    return message(f1=pid, f2=1, f3=group, f4=SHELL, f5=pid)


def terminal(session: int, group: int) -> bytes:
    return message(
        f1=1, f2=1, f3=0, f4=0, f5=0, f6=session, f7=group, f8=136 << 8, f12=message(f1=3)
    )


def foregrounds(data: bytes) -> list[int]:
    return [
        value
        for start, end in entries(bytearray(data))
        for number, value, *_ in fields(bytearray(data), start, end)
        if number == 7
    ]


def tree(directory: Path, processes: list[bytes], terminals: list[bytes]) -> Path:
    directory.mkdir()
    (directory / "pstree.img").write_bytes(image(*processes))
    if terminals:
        (directory / "tty-info.img").write_bytes(image(*terminals))
    return directory


@pytest.mark.parametrize(
    ("groups", "group", "expected"),
    [
        ([SHELL], JOB, SHELL),
        ([SHELL], SHELL, SHELL),
        ([SHELL, JOB], JOB, JOB),
        # Nobody's, and a session that is not carried.
        ([SHELL], 0, 0),
        ([OTHER], JOB, JOB),
    ],
)
def test_foreground(groups: list[int], group: int, expected: int, tmp_path: Path) -> None:
    processes = [process(number, number) for number in groups]
    path = tree(tmp_path / "shell", processes, [terminal(SHELL, group), terminal(0, 0)])
    before = (path / "tty-info.img").read_bytes()
    amend_images([path], Wanted())
    after = (path / "tty-info.img").read_bytes()
    assert foregrounds(after) == [expected, 0]
    assert len(after) == len(before)
    assert (after == before) is (group == expected)


def test_a_job_that_is_another_tree(tmp_path: Path) -> None:
    shell = tree(tmp_path / "shell", [process(SHELL, SHELL)], [terminal(SHELL, JOB)])
    job = tree(tmp_path / "job", [process(JOB, JOB)], [])
    amend_images(iter([shell, job]), Wanted())
    assert foregrounds((shell / "tty-info.img").read_bytes()) == [JOB]


def test_numbers_that_have_wrapped_around() -> None:
    data = image(terminal(1 << 20, 300))
    assert foreground.take_back(data, {1 << 20}) == 0
    assert foregrounds(bytes(data)) == [300]


def test_what_is_no_terminal() -> None:
    with pytest.raises(ImageError, match="a terminal without a session"):
        foreground.take_back(image(message(f1=1)), set())
