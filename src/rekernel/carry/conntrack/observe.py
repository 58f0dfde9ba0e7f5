"""What the packet filter remembers of connections: which go on, which way they are translated.

Read from this kernel and turned into what sets it again in the next one, over ctnetlink
(include/uapi/linux/netfilter/nfnetlink_conntrack.h).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from rekernel.errors import RekernelError
from rekernel.netlink import HEADER, attribute, attributes, dump, message

_LOADED = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_MAXIMUM = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_NETLINK_NETFILTER = 12
# nfgenmsg: family, version, resource.
_GENERIC = struct.Struct("=BBH")
_NEW, _GET = 0x100, 0x101
_REQUEST, _CREATE = 0x001, 0x400
_NESTED = 0x8000

# enum ctattr_type
_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO = 1, 2, 3, 4
_NAT_SOURCE, _TIMEOUT, _NAT_TARGET = 6, 7, 13
# Of the rest what can be set: mark, adjustments of sequence numbers, zone, labels.
_AS_IT_IS = (8, 15, 16, 18, 22)
# IPS_SEEN_REPLY, IPS_ASSURED may be set; IPS_CONFIRMED always is.
_SETTABLE, _CONFIRMED = 0x2 | 0x4, 0x8
# IP_CT_TCP_FLAG_BE_LIBERAL: the windows are not in a dump; the first packets show them.
_BE_LIBERAL = 0x08
# TCP, UDP, SCTP, UDP-Lite: those with ports.
_WITH_PORTS = (6, 17, 132, 136)


def observe() -> list[bytes]:
    """Connections that the packet filter remembers, as the kernel tells them; [] for none.

    The first time loads what tells it. Raises RekernelError.
    """
    if not _LOADED.exists() or _LOADED.read_text().strip() == "0":
        return []
    body = _GENERIC.pack(socket.AF_UNSPEC, 0, 0)
    try:
        return list(dump(_NETLINK_NETFILTER, _GET, body, "ctnetlink"))
    except OSError as error:
        raise RekernelError(
            f"the packet filter does not tell which connections it remembers: {error.strerror}",
            "see whether `modprobe nf_conntrack_netlink` works",
        ) from None


def maximum() -> int:
    """How many it may remember; 0 if it does not remember anything."""
    return int(_MAXIMUM.read_text()) if _MAXIMUM.exists() else 0


def requests(observed: Iterable[bytes]) -> bytes:
    """What sets it all again, each a message of its own; those that cannot be are left out."""
    made = bytearray()
    for reply in observed:
        body = _again(attributes(reply, HEADER.size + _GENERIC.size))
        if body is not None:
            family = _GENERIC.pack(reply[HEADER.size], 0, 0)
            made += message(_NEW, _REQUEST | _CREATE, family + body)
    return bytes(made)


def _again(known: dict[int, bytes]) -> bytes | None:
    """The attributes that make an entry like this one."""
    if not {_ORIGINAL, _REPLY, _TIMEOUT} <= known.keys():
        return None
    original, reply = _Tuple(known[_ORIGINAL]), _Tuple(known[_REPLY])
    parts = [attribute(_ORIGINAL | _NESTED, known[_ORIGINAL])]
    if original.is_answered_by(reply):
        parts.append(attribute(_REPLY | _NESTED, known[_REPLY]))
    elif original.protocol in _WITH_PORTS:
        # The kernel works out the reply: it marks as translated only what it translates itself.
        parts.append(attribute(_REPLY | _NESTED, original.inverse()))
        if reply.source != original.target:
            parts.append(attribute(_NAT_TARGET | _NESTED, _range(reply.source)))
        if reply.target != original.source:
            parts.append(attribute(_NAT_SOURCE | _NESTED, _range(reply.target)))
    else:
        return None
    status = int.from_bytes(known.get(_STATUS, bytes(4)), "big")
    parts.append(attribute(_STATUS, (status & _SETTABLE | _CONFIRMED).to_bytes(4, "big")))
    parts.append(attribute(_TIMEOUT, known[_TIMEOUT]))
    if _PROTOCOL_INFO in known:
        parts.append(attribute(_PROTOCOL_INFO | _NESTED, _protocol_info(known[_PROTOCOL_INFO])))
    parts += [attribute(kind, known[kind]) for kind in _AS_IT_IS if kind in known]
    return b"".join(parts)


class _Tuple:
    """One direction of a connection. ``source``, ``target``: address and port, as in packets."""

    def __init__(self, raw: bytes) -> None:
        inner = attributes(raw)
        # CTA_TUPLE_IP, CTA_TUPLE_PROTO
        address = attributes(inner.get(1, b""))
        self._rest = attributes(inner.get(2, b""))
        self._zone = inner.get(3)
        # CTA_IP_V4_SRC and _DST, CTA_IP_V6_SRC and _DST; CTA_PROTO_NUM, _SRC_PORT, _DST_PORT
        self._first = 1 if 1 in address else 3
        self.protocol = self._rest.get(1, b"\0")[0]
        self.source = address.get(self._first, b""), self._rest.get(2, b"")
        self.target = address.get(self._first + 1, b""), self._rest.get(3, b"")

    def is_answered_by(self, other: _Tuple) -> bool:
        """Whether the other direction is just this one turned round."""
        return (self.source, self.target) == (other.target, other.source)

    def inverse(self) -> bytes:
        """This one turned round, as attributes. Only for protocols with ports."""
        (source, source_port), (target, target_port) = self.source, self.target
        parts = [
            attribute(
                1 | _NESTED,
                attribute(self._first, target) + attribute(self._first + 1, source),
            ),
            attribute(
                2 | _NESTED,
                attribute(1, self._rest[1]) + attribute(2, target_port) + attribute(3, source_port),
            ),
        ]
        if self._zone is not None:
            parts.append(attribute(3, self._zone))
        return b"".join(parts)


def _range(end: tuple[bytes, bytes]) -> bytes:
    """Exactly this address and port, as enum ctattr_nat and ctattr_protonat have it."""
    address, port = end
    first = 1 if len(address) == 4 else 4
    ports = attribute(1, port) + attribute(2, port)
    return b"".join(
        [attribute(first, address), attribute(first + 1, address), attribute(3 | _NESTED, ports)]
    )


def _protocol_info(raw: bytes) -> bytes:
    """With the flags of TCP made to count: the kernel tells them without their mask."""
    parts = []
    for kind, inner in attributes(raw).items():
        # CTA_PROTOINFO_TCP; in it CTA_PROTOINFO_TCP_FLAGS_ORIGINAL and _REPLY
        content = _tcp(attributes(inner)) if kind == 1 else inner
        parts.append(attribute(kind | _NESTED, content))
    return b"".join(parts)


def _tcp(known: dict[int, bytes]) -> bytes:
    return b"".join(
        attribute(kind, bytes([content[0] | _BE_LIBERAL] * 2) if kind in (4, 5) else content)
        for kind, content in known.items()
    )
