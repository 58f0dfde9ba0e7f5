from __future__ import annotations

import os

from rekernel.carry.terminals.restore import Numbers, number_of


def new_number() -> int:
    fd = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    number = number_of(fd)
    os.close(fd)
    return number


def test_only_what_is_released_is_free() -> None:
    free = new_number()
    numbers = Numbers([free + 3, free + 40])
    numbers.take()
    try:
        assert new_number() == free + 41
        numbers.release([free + 40])
        assert new_number() == free + 40
        numbers.release([free + 3])
        assert new_number() == free + 3
        numbers.take()
        assert new_number() == free + 41
    finally:
        numbers.close()
    assert new_number() == free


def test_nothing_wanted() -> None:
    free = new_number()
    numbers = Numbers([])
    numbers.take()
    assert new_number() == free
    numbers.close()
