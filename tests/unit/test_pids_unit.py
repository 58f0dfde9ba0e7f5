"""The unit that keeps low process numbers free, as far as it can be run here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "rekernel-pids.service"
LAST = Path("/proc/sys/kernel/ns_last_pid")


def test_numbers_that_are_high_enough_are_left_alone() -> None:
    """After an upgrade they begin where the agent has said, above all that was carried."""
    match = re.search(r"^ExecStart=/bin/sh -c '(.*?)'$", UNIT.read_text(), re.M | re.S)
    assert match is not None
    script = match[1].replace("\\\n", " ").replace("$$", "$")
    script = script.replace(f"echo 10000 >{LAST}", "echo raised")
    said = [
        subprocess.run(
            ["/bin/sh", "-c", script.replace("10000", str(limit))],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for limit in (max(int(LAST.read_text()) // 2, 10), 1 << 30)
    ]
    assert said == ["", "raised\n"]
