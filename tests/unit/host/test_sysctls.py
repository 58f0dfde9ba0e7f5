from __future__ import annotations

from pathlib import Path

from rekernel.host import sysctls


def test_values_can_be_written_back_as_they_are() -> None:
    found = sysctls.values()
    assert found["kernel/pid_max"].isdigit()
    for name, value in found.items():
        assert value == Path("/proc/sys", name).read_text().strip()
