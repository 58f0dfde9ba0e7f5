"""The state that the next systemd reads: its format, and that nobody writes into it."""

from __future__ import annotations

import glob
import re

import pytest
import shown
from hypothesis import given
from hypothesis import strategies as st
from recorded import Recorded, on_each_kernel

from rekernel.carry.systemd_state import observe as adoption
from rekernel.systemd.units import Unit


def test_section(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = shown.show(monkeypatch)["redis-server.service"]
    text = adoption.section(redis)
    # A blank line ends it: what follows is the next unit.
    assert text.endswith("\n\n")
    assert "\n\n" not in text[:-1]
    name, *lines = text.rstrip().split("\n")
    assert name == "redis-server.service"
    values = dict(line.split("=", 1) for line in lines)
    stamps = {key: values.pop(key) for key in list(values) if key.endswith("-timestamp")}
    assert values == {
        "condition-result": "yes",
        "assert-result": "yes",
        "cgroup": "/system.slice/redis-server.service",
        "cgroup-realized": "yes",
        "invocation-id": redis.properties["InvocationID"],
        "state": "running",
        "result": "success",
        "main-pid": shown.SHOWN["redis-server.service"]["MainPID"],
        "main-pid-known": "yes",
        "status-text": "Ready to accept connections",
    }
    assert set(stamps) == {
        "state-change-timestamp",
        "inactive-exit-timestamp",
        "active-enter-timestamp",
    }
    # Microseconds of real time; the monotonic clock has begun anew.
    assert all(re.fullmatch(r"17\d{14} 1", stamp) for stamp in stamps.values())


def test_timestamp() -> None:
    assert adoption._timestamp("1000002") == "1000002 1"
    assert adoption._timestamp("0") is None
    assert adoption._timestamp("") is None


def test_a_status_text_stays_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = shown.show(monkeypatch)["odd.service"]
    (line,) = (line for line in adoption.section(odd).split("\n") if line.startswith("status-"))
    assert line == (
        "status-text=half \\x5c way\\x0bMainPID=1\\x0cControlGroup=/\u2028Id=ssh.service"
    )


@given(st.text())
def test_escaped_text_is_unescaped_to_itself(text: str) -> None:
    escaped = adoption._escape(text)
    assert not re.search(r"[\x00-\x1f\x7f]", escaped)
    assert re.sub(r"\\x(..)", lambda match: chr(int(match[1], 16)), escaped) == text


def test_restarts_are_counted_on() -> None:
    one = Unit("a.service", "active", "running", "simple", 0, "/a", "", {"NRestarts": "3"})
    assert "n-restarts=3\n" in adoption.section(one)
    assert "main-pid" not in adoption.section(one)


@on_each_kernel
def test_private_tmp(recorded: Recorded) -> None:
    found = adoption.private_tmp(recorded.mounts("redis-server/mountinfo"))
    assert found is not None
    # One lies on a tmpfs, the other on the root file system.
    pattern = r"systemd-private-[0-9a-f]{32}-redis-server\.service-\w{6}"
    assert re.fullmatch(rf"/tmp/{pattern}", found[0])
    assert re.fullmatch(rf"/var/tmp/{pattern}", found[1])
    assert adoption.private_tmp(recorded.mounts("nginx/mountinfo")) is None


@on_each_kernel
def test_private_tmps_outlive_the_boot(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = adoption.private_tmp(recorded.mounts("redis-server/mountinfo"))
    assert kept is not None
    other = "/tmp/systemd-private-0-other.service-abcdef"
    present = {"/tmp/systemd-private-*": [kept[0], other], "/var/tmp/systemd-private-*": [kept[1]]}
    monkeypatch.setattr(glob, "glob", lambda pattern: present[pattern])
    text = adoption.keep_private_tmps({"redis-server.service": kept})
    assert text.splitlines() == [
        "x /tmp/systemd-private-*",
        "X /tmp/systemd-private-*/tmp",
        f"R! {other}",
        "x /var/tmp/systemd-private-*",
        "X /var/tmp/systemd-private-*/tmp",
    ]


@on_each_kernel
def test_header(recorded: Recorded) -> None:
    tmps = adoption.private_tmp(recorded.mounts("redis-server/mountinfo"))
    assert tmps is not None
    lines = adoption.header({"redis-server.service": tmps}).splitlines()
    assert lines[:3] == [
        f"exec-runtime=redis-server.service tmp-dir={tmps[0]} var-tmp-dir={tmps[1]}",
        "",
        "systemd-journald.socket",
    ]
    assert lines[-1] == ""
