"""Makes the installed rekernel fail at a chosen point. Only ever put into a test guest.

A .pth file imports this into every Python of the guest. It does nothing unless
/etc/rekernel-fault.json names a phase: when that phase begins, it does the deed, once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

SPEC = Path("/etc/rekernel-fault.json")
REACHED = Path("/run/rekernel-fault.reached")
_kept: list[subprocess.Popen[bytes]] = []


def _kill(spec: dict[str, Any]) -> None:
    """Every process of this name, or this one."""
    victims = _named(spec["comm"]) if "comm" in spec else [os.getpid()]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _named(comm: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_text().strip() == comm:
                found.append(int(entry.name))
    return found


def _stop_criu(spec: dict[str, Any]) -> None:
    """As soon as it has seized a process of this unit; then do what ``then`` names."""
    from rekernel.transition import dumps

    # Less than what nginx waits for an idle client.
    dumps.PATIENCE_S = 5.0
    procs = Path(f"/sys/fs/cgroup/system.slice/{spec['unit']}/cgroup.procs")
    threading.Thread(target=_stop_tracer, args=(procs,), daemon=True).start()
    spec.update(spec["then"])
    SPEC.touch()


def _stop_tracer(procs: Path) -> None:
    while True:
        for pid in procs.read_text().split():
            if tracer := _tracer(Path("/proc", pid)):
                os.kill(tracer, signal.SIGSTOP)
                return
        time.sleep(0.001)


def _tracer(process: Path) -> int:
    with contextlib.suppress(OSError):
        for line in (process / "status").read_text().splitlines():
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    return 0


def _terminate(spec: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _break(spec: dict[str, Any]) -> None:
    """Programs that fail in the place of others, be it once; and then it is to end."""
    for name, how_often in spec["programs"].items():
        path = Path("/usr/local/sbin", name)
        last = 'rm -f "$0"\n' if how_often == "once" else ""
        path.write_text(f"#!/bin/sh\n{last}echo {name} is broken >&2\nexit 1\n")
        path.chmod(0o755)
    _terminate(spec)


def _wait(spec: dict[str, Any]) -> None:
    """Until somebody asks the attempt to stop; the phase goes on then, as it would."""
    heard = threading.Event()
    handle = signal.getsignal(signal.SIGTERM)
    assert callable(handle)

    def hear(number: int, frame: FrameType | None) -> None:
        heard.set()
        handle(number, frame)

    signal.signal(signal.SIGTERM, hear)
    REACHED.touch()
    heard.wait(60)


def _fill(spec: dict[str, Any]) -> None:
    """Leave no more than this on a file system."""
    directory = spec["directory"]
    status = os.statvfs(directory)
    free = status.f_bfree * status.f_frsize - spec.get("leave", 0)
    with open(f"{directory}/rekernel-fault.fill", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free, 1))


def _unlink(spec: dict[str, Any]) -> None:
    os.unlink(spec["path"])


def _join(spec: dict[str, Any]) -> None:
    """A process of this unit, as long as the attempt lives, with what criu cannot dump."""
    program = "import os, sys; kept = os.pipe2(os.O_DIRECT); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    group = Path(f"/sys/fs/cgroup/system.slice/{spec['unit']}/cgroup.procs")
    group.write_text(str(process.pid))
    # Its end is the end of that pipe.
    _kept.append(process)


def _compact(spec: dict[str, Any]) -> None:
    """Let the kernel put pages of everybody elsewhere."""
    Path("/proc/sys/vm/compact_memory").write_text("1")


def _corrupt(spec: dict[str, Any]) -> None:
    """One bit of the sealed store's index, right before the jump."""
    from rekernel.carry.memory import region
    from rekernel.transition import loading, store

    jump = loading.jump

    def corrupt_and_jump() -> None:
        with store.open_store(region.current(), None) as area:
            index = int.from_bytes(area[16:24], "little")
            area[index + 5] ^= 1
        jump()

    loading.jump = corrupt_and_jump


_DEEDS: dict[str, Callable[[dict[str, Any]], None]] = {
    "kill": _kill,
    "term": _terminate,
    "stop-criu": _stop_criu,
    "break": _break,
    "wait": _wait,
    "fill": _fill,
    "unlink": _unlink,
    "join": _join,
    "compact": _compact,
    "corrupt": _corrupt,
}


def _arm(spec: dict[str, Any]) -> None:
    try:
        from rekernel.attempt.events import EventStream
    except ImportError:
        # A version of before 2026-12, in `rekernel-lab bench verbs`.
        from rekernel.transition.events import EventStream  # type: ignore[import-not-found,no-redef]

    emit = EventStream.emit

    def emit_and_do(self: EventStream, kind: str, name: str, **detail: Any) -> None:
        emit(self, kind, name, **detail)
        if kind == "begin" and name == spec["phase"] and SPEC.exists():
            SPEC.unlink()
            # It may name another one that comes after it.
            _DEEDS[spec["do"]](spec)

    EventStream.emit = emit_and_do  # type: ignore[method-assign]


def _start() -> None:
    # Only the upgrade's own process, not each of the guest's Pythons.
    if SPEC.exists() and "--in-unit" in getattr(sys, "orig_argv", ()):
        _arm(json.loads(SPEC.read_text()))


_start()
