"""What the next kernel is told, and what is no one's but ours."""

from __future__ import annotations

import pytest
from recorded import Recorded, on_each_kernel

from rekernel.kernel import cmdline


@on_each_kernel
def test_the_next_one(recorded: Recorded) -> None:
    kept = recorded.text("cmdline").strip()
    assert cmdline.for_next(kept + "\n") == f"panic=0x1e {kept}"
    before = f"BOOT_IMAGE=/boot/vmlinuz-6.12 initrd=\\old.img {kept} rdinit=/init"
    assert cmdline.for_next(before) == f"panic=0x1e {kept}"
    assert cmdline.for_next(cmdline.for_next(before)) == f"panic=0x1e {kept}"


@pytest.mark.parametrize(
    ("current", "following"),
    [
        ("ro panic=5 quiet", "ro panic=5 quiet"),
        ("ro panic=-1", "ro panic=-1"),
        ("ro panic_on_warn=1", "panic=0x1e ro panic_on_warn=1"),
        # Those of init.
        ("ro -- panic=5", "panic=0x1e ro -- panic=5"),
    ],
)
def test_panic(current: str, following: str) -> None:
    assert cmdline.for_next(current) == following


def test_what_lasts() -> None:
    assert cmdline.lasting("panic=0x1e initrd=\\a ro panic=30\n") == ["ro", "panic=30"]
