"""What a watch for pressure was told."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rekernel.carry.open_files.observe import files
from rekernel.carry.pressure import observe as pressure
from rekernel.carry.pressure.observe import is_watch, told

OWN = b"full 100000 1000000\0"


@pytest.mark.parametrize(
    ("link", "flags", "watches"),
    [
        ("/sys/fs/cgroup/user.slice/memory.pressure", os.O_RDWR, True),
        ("/sys/fs/cgroup/a/b/io.pressure", os.O_WRONLY, True),
        ("/proc/pressure/cpu", os.O_RDWR | os.O_NONBLOCK, True),
        ("/proc/pressure/cpu", os.O_RDONLY, False),
        ("/sys/fs/cgroup/a/memory.events", os.O_RDWR, False),
        ("/home/memory.pressure", os.O_RDWR, False),
    ],
)
def test_what_is_a_watch(link: str, flags: int, watches: bool) -> None:
    assert is_watch(link, flags) == watches


@pytest.mark.parametrize(
    ("told_so", "setting", "known"),
    [
        (b"", "", b""),
        (b"some 200000 2000000\0", "", b"some 200000 2000000\0"),
        (OWN, base64.b64encode(OWN).decode(), OWN),
        # Nobody knows what.
        (b"some 5 6\0", "", None),
        (b"some 5 6\0", "%%%", None),
    ],
)
def test_what_it_was_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told_so: bytes,
    setting: str,
    known: bytes | None,
) -> None:
    path = tmp_path / "memory.pressure"
    program = (
        f"import os, sys; fd = os.open({str(path)!r}, os.O_RDWR | os.O_CREAT);"
        f"os.write(fd, {told_so!r}); print(fd, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"MEMORY_PRESSURE_WRITE": setting},
    ) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        assert told(process.pid, number) == known
        monkeypatch.setattr(pressure, "is_watch", lambda link, flags: link == str(path))
        (found,) = files([process.pid])
    # From whichever mount it was opened; criu opens nothing again that the agent has told already.
    assert re.fullmatch(rf"file\[[0-9a-f]+:{path.stat().st_ino:x}\]", found.dump)
    assert found.inherited is not None
    assert found.inherited.argument == f"fd[{{fd}}]:{found.dump.removeprefix('f')}"
    assert found.inherited.header == (known or b"").decode()


def test_what_the_program_has_in_itself(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    with program.open("ab") as file:
        file.write(b"\0full 10000 2000000\0some 5000000 10000000\0")
    path = tmp_path / "memory.pressure"
    for text in (b"some 5000000 10000000\0", b"full 10000 2000000"):
        with path.open("wb", buffering=0) as opened:
            opened.write(text)
            number = opened.fileno()
            with subprocess.Popen([program, "60"], pass_fds=[number]) as process:
                found = told(process.pid, number)
                process.kill()
        assert found == text
