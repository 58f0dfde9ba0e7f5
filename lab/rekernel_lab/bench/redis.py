"""What benchmarks do with a Redis in a guest: fill it, and watch it from the host."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rekernel_lab.errors import LabError
from rekernel_lab.images.guestfiles import GUEST_ADDRESS
from rekernel_lab.vm.netns import Namespace

MIB = 1 << 20

_ADDRESS = (GUEST_ADDRESS, 6379)
_PATIENCE_S = 900.0

# Value size in bytes and its share of the data: objects of all sizes, as in real life.
_MIXTURE = ((100, 0.1), (1000, 0.5), (16_000, 0.4))


class Redis:
    """One connection to Redis; commands and replies in its own protocol (RESP)."""

    def __init__(self, namespace: Namespace, timeout: float = _PATIENCE_S) -> None:
        self._socket = namespace.connect(_ADDRESS, timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")

    def __enter__(self) -> Redis:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def ask(self, *words: str) -> str:
        """Run one command; returns its reply as text. Raises LabError, OSError."""
        encoded = [word.encode() for word in words]
        self._socket.sendall(
            b"*%d\r\n" % len(encoded)
            + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        )
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("Redis closed the connection")
        kind, text = line[:1], line[1:-2].decode(errors="replace")
        if kind == b"-":
            raise LabError(f"Redis: {words[0]}: {text}")
        if kind == b"$":
            return self._replies.read(int(text) + 2)[:-2].decode(errors="replace")
        return text

    def used(self) -> int:
        """Bytes of data that Redis says it holds."""
        lines = self.ask("INFO", "memory").splitlines()
        return int(next(line for line in lines if line.startswith("used_memory:"))[12:])

    def fill(self, size: int) -> int:
        """Hold `size` bytes of data; returns the number of keys. Nothing else is kept."""
        self.ask("FLUSHALL")
        # What it uses when empty does not count.
        size += self.used()
        for number, (value, share) in enumerate(_MIXTURE):
            goal = size if number == len(_MIXTURE) - 1 else self.used() + int(size * share)
            part = 0
            while self.used() < goal:
                # In ever smaller parts: what a key costs beyond its value is learned on the way.
                count = max(min((goal - self.used()) // (value + 100), 200_000), 1)
                prefix = f"v{value}:{part}"
                self.ask("DEBUG", "POPULATE", str(count), prefix, str(value))
                part += 1
        return int(self.ask("DBSIZE"))


class GapClient:
    """Asks Redis all the time and knows the longest silence; a context manager.

    With `reconnect` every request has a connection of its own: what comes after a reboot.
    """

    def __init__(self, namespace: Namespace, *, reconnect: bool) -> None:
        self._namespace = namespace
        self._reconnect = reconnect
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.longest_s = 0.0
        self.error = ""
        self._last = 0.0

    def __enter__(self) -> GapClient:
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)

    def wait_for_gap(
        self, seconds: float, timeout: float, check: Callable[[], None] = lambda: None
    ) -> float:
        """Return the longest silence once it is over and was at least so long.

        `check` is called meanwhile, and raises LabError if there is no use in waiting.
        """
        deadline = time.monotonic() + timeout
        while self.longest_s < seconds:
            if self.error:
                raise LabError(f"the client lost its connection: {self.error}")
            check()
            if time.monotonic() > deadline:
                raise LabError(f"no silence of {seconds} s was over within {timeout:.0f} s")
            time.sleep(0.05)
        return self.longest_s

    def _answered(self) -> None:
        now = time.monotonic()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = now

    def _connections(self) -> Iterator[Redis]:
        while not self._stopping.is_set():
            with contextlib.suppress(OSError), Redis(self._namespace, 0.5) as redis:
                yield redis
            self._stopping.wait(0.05)

    def _run(self) -> None:
        try:
            if self._reconnect:
                for redis in self._connections():
                    # LOADING is no answer: the data is not there yet.
                    with contextlib.suppress(OSError, LabError):
                        redis.ask("INCR", "bench")
                        self._answered()
                return
            with Redis(self._namespace) as redis:
                while not self._stopping.wait(0.02):
                    redis.ask("INCR", "bench")
                    self._answered()
        except (OSError, LabError) as error:
            self.error = str(error) or repr(error)
