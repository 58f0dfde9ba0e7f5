"""The new side: /init of the small initrd. Restores what was carried, then becomes init.

Whatever goes wrong, this boots the machine: a handover that is missing, damaged or foreign ends
in a normal boot with the reason left in /run/rekernel/agent.json.

Most of the agent is imported (half a second on a slow machine) while a thread loads kernel modules,
mounts the root file system and lets criu check the kernel. So what this module imports at its
top is little.
"""

from __future__ import annotations

import sys
import threading
import time

from rekernel import syscalls
from rekernel.agent import boot
from rekernel.carry.block import udev_records
from rekernel.carry.device_mapper import restore as devmapper
from rekernel.carry.mounts import restore as mounts
from rekernel.carry.raid import restore as raid
from rekernel.pid1 import processes
from rekernel.pid1.console import Timeline, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

# Seconds; what follows has a watchdog.
_LIMIT_S = 120


def main(raw: Mapping[str, Any]) -> NoReturn:
    """Run as PID 1 with the configuration that the initrd was built with (handover/config.py).

    If not even the root file system is there, reboot by way of the firmware.
    """
    preparation = _Preparation(raw)
    failure = ""
    try:
        _main(raw, preparation)
    except BaseException as error:
        failure = f"{type(error).__name__}: {error}"
        say(f"failed: {failure}")
    try:
        if preparation.ident is not None:
            preparation.join(_LIMIT_S)
        if preparation.root_stands:
            boot.tell_failure(failure)
            _start_init(raw, list(raw["init"]))
    except Exception as error:
        say(f"failed: {type(error).__name__}: {error}")
    say("no way to boot from here: rebooting in 10 s")
    time.sleep(10)
    syscalls.reboot_firmware()


class _Preparation(threading.Thread):
    """From kernel modules to criu's check of this kernel, beside the imports."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        super().__init__()
        self._raw = raw
        self._error: BaseException | None = None
        self._check: int | str = "it was not started"
        self.root_stands = False

    def run(self) -> None:
        """What the thread does; an error waits for :meth:`finish`."""
        try:
            self._mount_root()
        except BaseException as error:
            self._error = error
            return
        try:
            self._check = self._start_criu_check()
        except Exception as error:
            self._check = str(error)

    def _mount_root(self) -> None:
        for failure in boot.load_modules(self._raw["modules"], self._raw["parameters"]):
            say(f"module {failure}")
        raid.assemble(self._raw["arrays"])
        devmapper.activate(self._raw["mapped"])
        boot.switch_root(**self._raw["root"])
        self.root_stands = True
        for item in self._raw["early"]:
            mounts.mount_disk(**item)
        boot.mount_run()
        udev_records.record(
            [*raid.known(self._raw["arrays"]), *devmapper.known(self._raw["mapped"])]
        )

    def _start_criu_check(self) -> int:
        threading.Thread(target=boot.prefetch, args=(self._raw["prefetch"],)).start()
        # It talks to itself over loopback: with one of its own, that of the machine can
        # be locked meanwhile. This thread ends right after.
        syscalls.unshare(syscalls.CLONE_NEWNET)
        syscalls.set_link_up("lo")
        return processes.start(self._raw["criu_check"], log="/run/rekernel/criu-check.log")

    def finish(self) -> int | str:
        """Wait for the root file system; raises why there is none.

        Returns the PID of criu's check, or why there is none.
        """
        self.join(_LIMIT_S)
        if self.is_alive():
            raise TimeoutError(f"modules and the root file system: not there after {_LIMIT_S} s")
        if self._error is not None:
            raise self._error
        return self._check


def _main(raw: Mapping[str, Any], preparation: _Preparation) -> NoReturn:
    timeline = Timeline()
    started = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    boot.mount_api()
    boot.expedite_rcu(True)
    say("agent started")
    # Between two system calls the thread waits for the interpreter.
    sys.setswitchinterval(0.0005)
    preparation.start()
    with timeline.phase("imports"):
        from rekernel.agent import resume
    with timeline.phase("modules and root"):
        check = preparation.finish()
    sys.setswitchinterval(0.005)
    _start_init(raw, resume.resume(raw, timeline, started, check))


def _start_init(raw: Mapping[str, Any], init: list[str]) -> NoReturn:
    boot.expedite_rcu(False)
    boot.set_panic(raw.get("panic", ""))
    say(f"starting {init[0]}")
    boot.execute_init(init)
