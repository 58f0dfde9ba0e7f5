"""What criu is given for a descriptor that it does not make again by itself."""

from __future__ import annotations

from rekernel.records import record


@record
class Inherited:
    """A descriptor to give to criu; ``argument`` has {fd} for its number.

    ``kind``: "journal" (a connection to the journal's stdout socket), "file" (``path``, opened with
    ``flags``) or "unix" (``end`` of the connection with number ``connection``). ``header``: what is
    written to it first, "" for nothing.
    """

    kind: str
    argument: str
    path: str = ""
    flags: int = 0
    header: str = ""
    connection: int = 0
    end: int = 0
