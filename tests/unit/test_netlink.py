"""Netlink messages: taken apart as they were put together."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekernel import netlink

bodies = st.lists(st.tuples(st.integers(16, 0xFFFF), st.binary(max_size=50)), max_size=8)


@given(bodies)
def test_messages(items: list[tuple[int, bytes]]) -> None:
    data = b""
    for kind, body in items:
        data += netlink.message(kind, 0, body.ljust(netlink.align(len(body)), b"\0"))
    found = [
        (kind, data[start + netlink.HEADER.size : end])
        for kind, start, end in netlink.messages(data)
    ]
    assert found == [(kind, body.ljust(netlink.align(len(body)), b"\0")) for kind, body in items]
    # One that is cut off is left out.
    assert len(list(netlink.messages(data[:-1]))) == max(0, len(items) - 1)


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=50), max_size=8))
def test_attributes(items: dict[int, bytes]) -> None:
    data = b"".join(netlink.attribute(kind | 0x8000, content) for kind, content in items.items())
    assert netlink.attributes(b"head" + data, 4) == items


@given(st.binary(max_size=100))
def test_attributes_of_anything(data: bytes) -> None:
    assert sum(map(len, netlink.attributes(data).values())) <= len(data)


def test_a_dump_ends() -> None:
    one = netlink.message(20, 0, b"1234")
    end = netlink.message(3, 0, bytes(4))
    assert [*netlink.replies(one + one + end + one, "x")] == [one, one, None]
    assert [*netlink.replies(one, "x")] == [one]


@pytest.mark.parametrize("kind", [2, 3])
def test_an_error_of_the_kernel(kind: int) -> None:
    refused = netlink.message(kind, 0, struct.pack("=i", -1) + bytes(16))
    with pytest.raises(PermissionError, match="x"):
        list(netlink.replies(refused, "x"))
