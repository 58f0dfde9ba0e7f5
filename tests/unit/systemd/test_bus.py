"""Messages of systemd's bus: recorded ones, those of a peer of ours, and those that never come."""

from __future__ import annotations

import datetime
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import shown

from rekernel.systemd import bus, units
from rekernel.systemd.bus import Bus, BusError, NoSystemdError


def micros(text: str) -> str:
    """As systemctl writes a point in time -> as the bus has it."""
    if not text:
        return "0"
    moment = datetime.datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S.%f UTC")
    since = moment - datetime.datetime(1970, 1, 1)
    return str(since // datetime.timedelta(microseconds=1))


def test_the_same_as_systemctl_says() -> None:
    assert len(shown.ANSWERS) == len(shown.ASKED) == 84
    for (unit, _, name), value in shown.ANSWERS.items():
        said = shown.SHOWN[unit][name]
        assert bus.text(value) == (micros(said) if name.endswith("Timestamp") else said), name


def test_values_as_text() -> None:
    values = (None, True, False, b"\x0a\xff", ["/a", "/b"], 7, "x")
    assert [bus.text(value) for value in values] == ["", "yes", "no", "0aff", "/a /b", "7", "x"]


@pytest.mark.parametrize(
    ("name", "path"),
    [("a-b@1.service", "a_2db_401_2eservice"), ("1x.slice", "_31x_2eslice"), ("", "_")],
)
def test_paths(name: str, path: str) -> None:
    assert bus.escape(name) == path


def test_types() -> None:
    body = struct.pack("<II", 1, 12) + b"\0\0\0\0\x07\0\0\0\x02\0\0\0\0\0\0\0"
    assert bus.values("ba(yu)", struct.pack("<II", 1, 8) + b"\x05\0\0\0\x09\0\0\0") == [
        True, [(5, 9)],
    ]  # fmt: skip
    assert bus.values("a{su}ax", struct.pack("<I4xI2sxxIxxxxI", 12, 1, b"k\0", 3, 0))[0] == [
        ("k", 3)
    ]
    with pytest.raises(ValueError, match="type !"):
        bus.values("!", body)


class Peer:
    """systemd, as far as it is asked: one connection, a table of properties."""

    def __init__(self, path: Path, answer: Callable[[bytes], bytes | None]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._answer = answer
        self.greeting = b"OK 00\r\n"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            data = b""
            while b"BEGIN\r\n" not in data:
                data += connection.recv(4096)
            connection.sendall(self.greeting)
            data = data.split(b"BEGIN\r\n", 1)[1]
            while True:
                while len(data) < 16 or len(data) < (size := bus._size(data)):
                    more = connection.recv(4096)
                    if not more:
                        return
                    data += more
                message, data = data[:size], data[size:]
                answer = self._answer(message)
                if answer is None:
                    return
                connection.sendall(answer)


def reply(call: bytes, kind: str, body: bytes, *, error: bool = False) -> bytes:
    """An answer to a call, after a signal that nobody has asked for."""
    serial = struct.unpack_from("<I", call, 8)[0]
    fields = b"\x05\x01u\0" + struct.pack("<I", serial)
    if kind:
        fields += b"\x08\x01g\0" + bytes([len(kind)]) + kind.encode() + b"\0"
    head = struct.pack("<4BIII", ord("l"), 3 if error else 2, 0, 1, len(body), 1, len(fields))
    signal = struct.pack("<4BIII", ord("l"), 4, 0, 1, 0, 1, 0)
    return signal + bus._aligned(head + fields, 8) + body


def called(call: bytes) -> list[Any]:
    """What a call gives along."""
    fields = dict(bus._Reader(call, 12).read("a(yv)")[0])
    length = struct.unpack_from("<I", call, 4)[0]
    return [
        fields[bus._PATH], fields[bus._MEMBER],
        *bus.values(fields.get(bus._SIGNATURE, ""), call[len(call) - length :]),
    ]  # fmt: skip


def text_of(call: bytes) -> bytes | None:
    """Every property but Gone is what was asked for."""
    path, member, *words = called(call)
    if member == "ListUnitsByPatterns":
        assert words == [["active", "failed"], ["a*"]]
        return reply(call, "a(s)", struct.pack("<I4x", 14) + bus._string("a.service"))
    assert member == "Get"
    if words[1] == "Gone":
        return reply(call, "s", bus._string("no such property"), error=True)
    return reply(call, "v", b"\x01s\0\0" + bus._string(f"{path} {words[0]} {words[1]}"))


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Peer]]:
    """Makes one that answers like this."""
    monkeypatch.setattr(bus, "PRIVATE", str(tmp_path / "private"))
    monkeypatch.setattr(bus, "SYSTEM", str(tmp_path / "system"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(bus, "_TIMEOUT_S", 5.0)

    def make(answer: Callable[[bytes], bytes | None] = text_of, name: str = "private") -> Peer:
        return Peer(tmp_path / name, answer)

    yield make


def test_many_calls_at_once(peer: Callable[..., Peer]) -> None:
    peer()
    names = [f"n{number}" for number in range(2000)]
    with Bus() as systemd:
        found = systemd.get([("a.service", "i", name) for name in names])
        assert found == [f"/org/freedesktop/systemd1/unit/a_2eservice i {name}" for name in names]
        assert systemd.get([("", "m", "x"), ("a.service", "i", "Gone"), ("", "m", "y")]) == [
            "/org/freedesktop/systemd1 m x", None, "/org/freedesktop/systemd1 m y",
        ]  # fmt: skip
        assert systemd.units(["active", "failed"], ["a*"]) == ["a.service"]


def test_an_error_is_an_error(peer: Callable[..., Peer]) -> None:
    peer(lambda call: reply(call, "s", bus._string("no"), error=True))
    with Bus() as systemd, pytest.raises(BusError, match=r"^no$"):
        systemd.units(["active"])


def test_the_bus_of_the_machine(peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    """For who is not root: it wants to be greeted."""
    members: list[str] = []

    def answer(call: bytes) -> bytes | None:
        members.append(called(call)[1])
        return reply(call, "s", bus._string(":1.7")) if members[-1] == "Hello" else text_of(call)

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    peer(answer, "system")
    assert units.state_of("a.service").endswith(" org.freedesktop.systemd1.Unit ActiveState")
    assert members == ["Hello", "Get"]


def test_nobody_is_there(peer: Callable[..., Peer]) -> None:
    with pytest.raises(NoSystemdError, match=r"systemd does not answer on .*/system: No such"):
        Bus()


def test_who_is_turned_away(peer: Callable[..., Peer]) -> None:
    peer().greeting = b"REJECTED EXTERNAL\r\n"
    with pytest.raises(NoSystemdError, match="/private: REJECTED EXTERNAL"):
        Bus()


def test_a_peer_that_hangs_up(peer: Callable[..., Peer]) -> None:
    peer(lambda call: None)
    with Bus() as systemd, pytest.raises(NoSystemdError, match=r"does not answer: .*closed"):
        systemd.get([("", "i", "x")])


def test_a_peer_that_is_silent(peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "_TIMEOUT_S", 0.2)
    peer(lambda call: b"")
    with Bus() as systemd, pytest.raises(NoSystemdError, match="does not answer: timed out"):
        systemd.get([("", "i", "x")])


def test_a_peer_that_talks_nonsense(peer: Callable[..., Peer]) -> None:
    peer(lambda call: reply(call, "v", b"\x01!\0\0"))
    with Bus() as systemd, pytest.raises(NoSystemdError, match="does not answer: type !"):
        systemd.get([("", "i", "x")])
