from __future__ import annotations

from rekernel_lab.vm.vlan import tagged, with_header


def test_the_tag_follows_the_addresses() -> None:
    frame = bytes(range(1, 13)) + b"\x08\x00payload"
    assert tagged(frame, 5) == bytes(range(1, 13)) + b"\x81\x00\x00\x05\x08\x00payload"


def test_a_checksum_that_is_to_be_made() -> None:
    ethernet = bytes(12) + b"\x08\x00"
    tcp = ethernet + b"\x45" + bytes(8) + b"\x06" + bytes(30)
    header = with_header(tcp)[:10]
    # Behind both headers; in that of TCP the 16th byte.
    assert header == bytes((1, 0, 0, 0, 0, 0, 34, 0, 16, 0))
    for other in (bytes(12) + b"\x08\x06" + bytes(28), ethernet + b"\x45" + bytes(8) + b"\x01"):
        assert with_header(other) == bytes(10) + other
