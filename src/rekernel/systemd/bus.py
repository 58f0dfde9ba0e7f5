"""systemd's own bus: what ``systemctl`` asks there, asked without it.

``systemctl show`` makes systemd write out all of some 400 properties of each unit, control groups
and all, and prints those that were wished for: 1.5 s for 29 units when emulated, where the few that
count take 0.2 s. Messages are those of the D-Bus specification; of systemd's interface see
org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from rekernel.errors import RekernelError

# sd_booted(3).
BOOTED = "/run/systemd/system"
# systemd's own socket is root's only; the other one is the bus of the machine.
PRIVATE = "/run/systemd/private"
SYSTEM = "/run/dbus/system_bus_socket"
_TIMEOUT_S = 60.0

_DBUS = "org.freedesktop.DBus"
_NAME = "org.freedesktop.systemd1"
_ROOT = "/org/freedesktop/systemd1"
_PROPERTIES = f"{_DBUS}.Properties"
MANAGER = f"{_NAME}.Manager"
UNIT = f"{_NAME}.Unit"

# Types of messages, and codes of the fields in their headers.
_CALL, _RETURN, _ERROR = 1, 2, 3
_PATH, _INTERFACE, _MEMBER, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 5, 6, 8
_HEADER = struct.Struct("<4BIII")
# So many calls may wait for their answers: neither side's buffers run full.
_UNDER_WAY = 128
_NUMBERS = {
    "y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "b": "I",
    "h": "I",
}  # fmt: skip


class NoSystemdError(RekernelError):
    """systemd is not the init system here, or does not answer."""

    exit_code = 3

    def __init__(self, what: str) -> None:
        super().__init__(
            what,
            "rekernel carries what systemd runs: start it on the host itself, not in a container "
            "or a chroot",
        )


class BusError(RekernelError):
    """systemd has answered with an error."""


def escape(name: str) -> str:
    """The last part of a unit's path on the bus (sd_bus_path_encode(3))."""
    return re.sub(r"^[0-9]|[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):02x}", name) or "_"


def interface_of(unit: str) -> str:
    """What a unit of this kind has beyond what all units have: "a.service" -> "….Service"."""
    return f"{_NAME}.{unit.rpartition('.')[2].capitalize()}"


def _aligned(data: bytes | bytearray, boundary: int) -> bytes:
    return bytes(data) + b"\0" * (-len(data) % boundary)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw + b"\0"


def _strings(texts: Iterable[str]) -> bytes:
    """An array of them, at an offset that is a multiple of 4."""
    inner = b""
    for text in texts:
        inner = _aligned(inner, 4) + _string(text)
    return struct.pack("<I", len(inner)) + inner


def _call(
    serial: int, to: str, path: str, interface: str, member: str, kind: str, body: bytes
) -> bytes:
    """A message; ``kind``: signature of ``body``."""
    fields = b""
    for code, text in (
        (_PATH, path), (_INTERFACE, interface), (_MEMBER, member), (_DESTINATION, to),
    ):  # fmt: skip
        signature = b"o" if code == _PATH else b"s"
        fields = _aligned(fields, 8) + bytes([code, 1]) + signature + b"\0" + _string(text)
    if kind:
        raw = bytes([len(kind)]) + kind.encode() + b"\0"
        fields = _aligned(fields, 8) + bytes([_SIGNATURE, 1]) + b"g\0" + raw
    head = _HEADER.pack(ord("l"), _CALL, 0, 1, len(body), serial, len(fields))
    return _aligned(head + fields, 8) + body


class _Reader:
    """Takes values out of a message, whose offsets count from ``data``'s beginning."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def _align(self, boundary: int) -> None:
        self.at += -self.at % boundary

    def read(self, kind: str) -> tuple[Any, str]:
        """The value of the first type in a signature, and what is left of that."""
        first, rest = kind[0], kind[1:]
        if first in _NUMBERS:
            form = _NUMBERS[first]
            size = struct.calcsize(form)
            self._align(size)
            (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
            self.at += size
            return (bool(value) if first == "b" else value), rest
        if first in "sog":
            length = self.read("y" if first == "g" else "u")[0]
            raw = self.data[self.at : self.at + length]
            self.at += length + 1
            return raw.decode(errors="replace"), rest
        if first == "v":
            return self.read(self.read("g")[0])[0], rest
        if first == "a":
            return self._array(rest)
        if first in "({":
            self._align(8)
            values = []
            while rest[0] not in ")}":
                value, rest = self.read(rest)
                values.append(value)
            return tuple(values), rest[1:]
        raise ValueError(f"type {first} is none of D-Bus")

    def _array(self, kind: str) -> tuple[Any, str]:
        length = self.read("u")[0]
        self._align(8 if kind[0] in "xtd({" else 4 if kind[0] in "iubsoah" else 1)
        end = self.at + length
        rest = _after(kind)
        if kind[0] == "y":
            self.at = end
            return self.data[end - length : end], rest
        values = []
        while self.at < end:
            values.append(self.read(kind)[0])
        return values, rest


def _after(kind: str) -> str:
    """What follows the first type of a signature."""
    first, rest = kind[0], kind[1:]
    if first == "a":
        return _after(rest)
    if first in "({":
        while rest[0] not in ")}":
            rest = _after(rest)
        return rest[1:]
    return rest


def values(kind: str, data: bytes) -> list[Any]:
    """The values in the body of a message. Raises ValueError, struct.error, IndexError."""
    reader = _Reader(data)
    found = []
    while kind:
        value, kind = reader.read(kind)
        found.append(value)
    return found


def assert_there() -> None:
    """Raises NoSystemdError where another init system has booted, or systemd does not answer."""
    if not os.path.isdir(BOOTED):
        raise NoSystemdError("this host was not booted with systemd")
    # Who may ask systemd itself needs no bus of the machine; it may be down.
    if os.geteuid() == 0:
        with Bus():
            pass


class Bus:
    """A connection to systemd, open in a ``with`` block. Its methods raise NoSystemdError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._received = b""
        self._serial = 0
        path = PRIVATE if os.geteuid() == 0 and os.path.exists(PRIVATE) else SYSTEM
        try:
            self._connect(path)
        except OSError as error:
            self._socket.close()
            why = error.strerror or str(error)
            raise NoSystemdError(f"systemd does not answer on {path}: {why}") from None

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _connect(self, path: str) -> None:
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.connect(path)
        user = str(os.geteuid()).encode().hex()
        self._socket.sendall(f"\0AUTH EXTERNAL {user}\r\nBEGIN\r\n".encode())
        while b"\r\n" not in self._received:
            self._receive()
        answer, self._received = self._received.split(b"\r\n", 1)
        if not answer.startswith(b"OK "):
            raise PermissionError(0, answer.decode(errors="replace"))
        if path == SYSTEM:
            # The machine's bus serves nobody who has not said this.
            self._socket.sendall(
                _call(self._next(), _DBUS, "/org/freedesktop/DBus", _DBUS, "Hello", "", b"")
            )
            self._answer()

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _receive(self) -> None:
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionResetError(0, "it closed the connection")
        self._received += data

    def _answer(self) -> tuple[int, Any]:
        """The next answer: the serial number of its call, and its values or an error."""
        while True:
            while len(self._received) < _HEADER.size or len(self._received) < (
                size := _size(self._received)
            ):
                self._receive()
            message, self._received = self._received[:size], self._received[size:]
            if message[1] in (_RETURN, _ERROR):
                return _parse(message)

    def _exchange(self, calls: Sequence[tuple[str, str, str, str, bytes]]) -> list[Any]:
        """What is answered to each of these: its values, or a BusError."""
        first = self._serial + 1
        found: dict[int, Any] = {}
        try:
            for sent, (path, interface, member, kind, body) in enumerate(calls):
                serial = self._next()
                self._socket.sendall(_call(serial, _NAME, path, interface, member, kind, body))
                while sent + 1 - len(found) >= _UNDER_WAY:
                    found.update([self._answer()])
            while len(found) < len(calls):
                found.update([self._answer()])
        except (OSError, ValueError, LookupError, struct.error) as error:
            raise NoSystemdError(f"systemd does not answer: {error}") from None
        return [found[first + number] for number in range(len(calls))]

    def units(self, states: Iterable[str], patterns: Iterable[str] = ()) -> list[str]:
        """Names of the units that are loaded and in one of these states. Raises BusError."""
        body = _strings(states)
        body = _aligned(body, 4) + _strings(patterns)
        (answer,) = self._exchange([(_ROOT, MANAGER, "ListUnitsByPatterns", "asas", body)])
        if isinstance(answer, BusError):
            raise answer
        return [entry[0] for entry in answer[0]]

    def get(self, wanted: Sequence[tuple[str, str, str]]) -> list[Any]:
        """Values of properties: (unit, or "" for systemd itself; interface; name).

        None where there is no such property.
        """
        answers = self._exchange(
            [
                (
                    f"{_ROOT}/unit/{escape(unit)}" if unit else _ROOT,
                    _PROPERTIES,
                    "Get",
                    "ss",
                    _aligned(_string(interface), 4) + _string(name),
                )
                for unit, interface, name in wanted
            ]
        )
        return [None if isinstance(answer, BusError) else answer[0] for answer in answers]


def _size(data: bytes) -> int:
    """Bytes of the message that begins here."""
    _, _, _, _, body, _, fields = _HEADER.unpack_from(data)
    return int(_HEADER.size + fields + -fields % 8 + body)


def _parse(message: bytes) -> tuple[int, Any]:
    reader = _Reader(message, _HEADER.size - 4)
    fields = dict(reader.read("a(yv)")[0])
    body = message[len(message) - _HEADER.unpack_from(message)[4] :]
    found = values(fields.get(_SIGNATURE, ""), body)
    if message[1] == _ERROR:
        return fields[_REPLY_SERIAL], BusError(str(found[0]) if found else "no reason given")
    return fields[_REPLY_SERIAL], found


def text(value: Any) -> str:
    """A value as ``systemctl show`` has it; of what is not there, and of a point in time that has
    not come yet, nothing. Points in time are in µs.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)
