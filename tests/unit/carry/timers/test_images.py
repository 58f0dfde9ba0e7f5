"""Expired periodic timers in criu's images."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagefiles import image, message

from rekernel.criu.images import ImageError
from rekernel.transition.amend import Wanted, amend, amend_images


def rearm(data: bytearray) -> int:
    return amend(data, Wanted(), {})[0]


def timer(ticks: int, value: tuple[int, int], interval: tuple[int, int]) -> bytes:
    """A file_entry with a timerfd_entry."""
    owner = message(f1=0, f2=0, f3=0, f4=0, f5=0)
    inner = message(
        f1=3, f2=0o2000002, f3=owner, f4=1, f5=ticks, f6=0,
        f7=value[0], f8=value[1], f9=interval[0], f10=interval[1],
    )  # fmt: skip
    return message(f1=17, f2=3, f12=inner)


OTHER = message(f1=1, f2=9, f3=message(f1=9, f2=0o100000, f3=0, f6=b"/var/log/x"))
PERIOD = (0, 100_000_000)


def test_only_an_expired_periodic_timer_is_set_again() -> None:
    entries = (
        OTHER,
        timer(1, (0, 0), PERIOD),
        timer(0, (0, 50), PERIOD),
        # Switched off with an interval left over, and one that goes off once.
        timer(0, (0, 0), PERIOD),
        timer(1, (0, 0), (0, 0)),
        timer(300, (0, 0), (7, 0)),
    )
    data = image(*entries)
    assert rearm(data) == 2
    wanted = (
        OTHER, timer(1, (0, 1), PERIOD), *entries[2:5], timer(300, (0, 1), (7, 0)),
    )  # fmt: skip
    assert data == image(*wanted)
    # And once is enough.
    assert rearm(data) == 0


def test_all_trees(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "files.img").write_bytes(image(timer(1, (0, 0), PERIOD)))
    amend_images(tmp_path.iterdir(), Wanted())
    assert (tmp_path / "one/files.img").read_bytes() == image(timer(1, (0, 1), PERIOD))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no criu image"),
        (b"12345678", "no criu image"),
        (bytes(image(OTHER))[:-1], "cut off"),
        (bytes(image(OTHER)) + b"\1", "cut off"),
        (bytes(image(b"\x62\x05\x28")), "cut off"),
        (bytes(image(b"\x62\x01\x80")), "cut off"),
        (bytes(image(message(f12=message(f5=1)))), "no field"),
    ],
)
def test_damage_is_noticed(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        rearm(bytearray(data))


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_result_or_an_image_error(tail: bytes) -> None:
    data = image() + bytearray(tail)
    with contextlib.suppress(ImageError):
        rearm(data)
