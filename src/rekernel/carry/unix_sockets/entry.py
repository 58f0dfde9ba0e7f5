"""Connections over unix sockets, as the agent makes them again."""

from __future__ import annotations

from rekernel.records import field, record


@record
class UnixEnd:
    """One end of a connection between unix sockets, held by process ``pid``.

    ``queue``: store blob with what it has not read yet, "" for nothing (socket_queues.py).
    ``closed``: nothing more arrives. ``flags``: of the open file. ``options``: SO_* number -> value
    in hex.
    """

    pid: int
    queue: str = ""
    closed: bool = False
    flags: int = 0
    options: dict[str, str] = field(default_factory=dict)


@record
class UnixConnection:
    """A connection between unix sockets of two trees, or of one and what boots afresh: one end.

    ``kind``: SOCK_STREAM or SOCK_SEQPACKET.
    """

    kind: int
    ends: tuple[UnixEnd, ...]


@record
class DatagramConnection:
    """Descriptor ``number`` of process ``pid``, a datagram socket, is to be connected with a
    descriptor of another tree, or with nobody if ``target_pid`` is 0.
    """

    pid: int
    number: int
    target_pid: int = 0
    target_number: int = 0
