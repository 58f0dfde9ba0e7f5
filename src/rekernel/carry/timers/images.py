"""Periodic timers that expired while everything was frozen: criu would restore them switched off.

The kernel starts a periodic timerfd again only when its expirations are read. Until then
/proc/PID/fdinfo gives its remaining time as zero, which criu writes down and hands to
timerfd_settime(2), where zero means: off. A timer with expirations to read and an interval was on;
one nanosecond instead of zero lets it go off at once and then run on.

The image has the entry in files.img (criu's images/fdinfo.proto and timerfd.proto). Zero and one
are both one byte there, so nothing moves.
"""

from __future__ import annotations

from rekernel.criu.images import ImageError, fields

# Fields of timerfd_entry.
_TICKS, _VSEC, _VNSEC, _ISEC, _INSEC = 5, 7, 8, 9, 10


def rearm(data: bytearray, start: int, end: int) -> bool:
    """Change a timerfd_entry in place; returns whether that was needed. Raises ImageError."""
    found = {number: (value, at) for number, value, at, _ in fields(data, start, end)}
    try:
        ticks, vsec, isec, insec = (found[item][0] for item in (_TICKS, _VSEC, _ISEC, _INSEC))
        vnsec, where = found[_VNSEC]
    except KeyError as error:
        raise ImageError(f"a timer has no field {error}") from None
    if not ticks or vsec or vnsec or not (isec or insec):
        return False
    data[where] = 1
    return True
