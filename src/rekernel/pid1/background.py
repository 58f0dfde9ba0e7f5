"""A step that runs beside others.

Imported early: see agent/main.py.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Background(threading.Thread):
    """Runs a step from its creation on; :meth:`finish` waits for it and raises its error."""

    def __init__(self, step: Callable[[], object]) -> None:
        super().__init__()
        self._step = step
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """What the thread does."""
        try:
            self._step()
        except BaseException as error:
            self._error = error

    def finish(self, timeout: float | None = None) -> None:
        """Raises what the step raised, TimeoutError if it is not done within these seconds.

        The thread goes on then.
        """
        self.join(timeout)
        if self.is_alive():
            raise TimeoutError(f"not done within {timeout:.0f} s")
        if self._error is not None:
            raise self._error
