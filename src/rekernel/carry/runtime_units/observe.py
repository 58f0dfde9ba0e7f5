"""What systemd knows of units in /run only, and must know on the next kernel, too.

Units that were made at run time (systemd-run(1)) have their files there. And what nothing at boot
asks for, somebody has started by hand: a starting systemd would stop it, as it isolates its default
target (src/core/main.c, do_queue_default_job; transaction.c, shall_stop_on_isolate); what triggers
others, a timer say, would merely be missing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from rekernel.errors import RekernelError
from rekernel.run import run, run_json
from rekernel.systemd.unitfiles import files_of
from rekernel.systemd.units import Unit, active, show

_SYSTEMD = Path("/run/systemd")
_KEEP = "50-rekernel-keep.conf"
_KEEP_TEXT = """\
# Until the upgrade is finished: nothing at boot may stop it.
[Unit]
IgnoreOnIsolate=yes
"""
# systemd-networkd removes routing rules that it did not make, when it starts (networkd.conf(5)).
_KEEP_RULES = "networkd.conf.d/99-rekernel-keep.conf"
_KEEP_RULES_TEXT = """\
# Until the upgrade is finished: those of others have been set up already.
[Network]
ManageForeignRoutingPolicyRules=no
"""
_MICROSECOND = 1_000_000
# Read by systemd for a timer that counts from its own start.
_COUNTS = re.compile(r"^OnActiveSec=.*$", re.MULTILINE)


def is_transient(unit: Unit) -> bool:
    """Whether it is gone for good when it stops."""
    return "/transient/" in unit.properties.get("FragmentPath", "")


def has_transient_file(name: str, systemd: Path = _SYSTEMD) -> bool:
    """Whether a unit has a file in /run only, by its name: it may not run any more."""
    return (systemd / "transient" / name).exists()


def files(units: Iterable[Unit], systemd: Path = _SYSTEMD) -> dict[str, str]:
    """Path -> text of their files that no disk has; without those that went meanwhile."""
    found = {}
    for unit in units:
        for path in files_of(unit):
            if not path.is_relative_to(systemd) or path.name == _KEEP:
                continue
            # Generators make theirs at each boot.
            if not path.relative_to(systemd).parts[0].startswith("generator"):
                with suppress(FileNotFoundError):
                    found[str(path)] = path.read_text(errors="replace")
    return found


def keeping(units: Iterable[Unit], systemd: Path = _SYSTEMD) -> dict[str, str]:
    """Drop-ins with which a starting systemd lets these run, whoever has started them."""
    return {
        str(systemd / "system" / f"{unit.name}.d" / _KEEP): _KEEP_TEXT
        for unit in units
        if unit.name.endswith(".service")
    }


def keeping_rules(batches: Iterable[str], systemd: Path = _SYSTEMD) -> dict[str, str]:
    """Files that keep systemd-networkd from removing routing rules, if there are any."""
    return {str(systemd / _KEEP_RULES): _KEEP_RULES_TEXT} if any(batches) else {}


def forget(systemd: Path = _SYSTEMD) -> None:
    """Take away what :func:`keeping` and :func:`keeping_rules` made. Raises RekernelError."""
    (systemd / _KEEP_RULES).unlink(missing_ok=True)
    found = list((systemd / "system").glob(f"*.d/{_KEEP}"))
    for path in found:
        path.unlink()
        # Others may have put something there.
        with suppress(OSError):
            path.parent.rmdir()
    if found:
        run(["systemctl", "daemon-reload"])


def triggers() -> list[Unit]:
    """Whatever starts others and is about to: sockets, timers, paths."""
    # A timer that was to elapse once, and has, would do it again.
    return [unit for unit in show(active(".socket", ".timer", ".path")) if unit.sub != "elapsed"]


def triggered_files(units: Sequence[Unit], systemd: Path = _SYSTEMD) -> dict[str, str]:
    """Files in /run of units that trigger others, and of those that they trigger.

    A timer that counts from its own start counts on from where it is now.
    """
    own = [unit for unit in units if files([unit], systemd)]
    if not own:
        return {}
    names = [unit.name for unit in own]
    text = run(["systemctl", "show", "--value", "--property=Triggers", "--", *names])
    found = files([*own, *show(sorted(set(text.split())))], systemd)
    timers = run_json(["systemctl", "list-timers", "--output=json"])
    due = {str(item["unit"]): item["next"] for item in timers}
    for unit in own:
        path = unit.properties.get("FragmentPath", "")
        if due.get(unit.name) and path in found:
            seconds = max(1, round(due[unit.name] / _MICROSECOND - time.time()))
            found[path] = _COUNTS.sub(f"OnActiveSec={seconds}s", found[path])
    return found


def start_again(names: Sequence[str]) -> list[str]:
    """Start what was active and is not any more; returns what went wrong, in words."""
    try:
        missing = [unit.name for unit in show(names) if unit.active == "inactive"]
        if missing:
            run(["systemctl", "start", "--no-block", "--", *missing])
    except RekernelError as error:
        return [f"not started again: {error.message}"]
    return []
