from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rekernel.carry.sysctls import observe as sysctls


def test_values_can_be_written_back_as_they_are() -> None:
    found = sysctls.values()
    assert found["kernel/pid_max"].isdigit()
    for name, value in found.items():
        assert value.split()[-1] == Path("/proc/sys", name).read_text().split()[-1]


def test_what_was_changed_is_set_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (unit,) = Path(__file__).parents[4].glob("packaging/systemd/rekernel-settings.service")
    _, _, command = unit.read_text().replace("\\\n", "").partition("sh -c '")
    script = command.partition("'\n")[0]
    run = tmp_path / "run"
    words = script.replace("/proc/sys", str(tmp_path)).replace("/run/rekernel", str(run))
    monkeypatch.setattr(sysctls, "_PROC_SYS", tmp_path)
    monkeypatch.setattr(sysctls, "_AT_BOOT", run / "settings")
    assert not sysctls.are_noted()
    assert sysctls.changed() == {}
    interfaces = ("all", "default", "aa0")
    for name in ("vm", "kernel", *(f"net/ipv4/conf/{name}" for name in interfaces)):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "vm/swappiness").write_text("10\n")
    (tmp_path / "vm/dirty_ratio").write_text("20\n")
    (tmp_path / "vm/lines").write_text("a: b\nc\n")
    (tmp_path / "vm/max_map_count").write_text("1\n")
    (tmp_path / "kernel/tainted").write_text("0\n")
    (tmp_path / "kernel/told").write_text("0\n")
    (tmp_path / "kernel/told").chmod(0o444)
    for name in interfaces:
        (tmp_path / f"net/ipv4/conf/{name}/rp_filter").write_text("2\n")
    subprocess.run(["sh", "-c", words], check=True)
    assert sysctls.are_noted()
    assert sysctls.changed() == {}
    for name in interfaces:
        (tmp_path / f"net/ipv4/conf/{name}/rp_filter").write_text("0\n")
    (tmp_path / "vm/swappiness").write_text("60\n")
    (tmp_path / "vm/lines").write_text("a: b\nd\n")
    # What travels anyway, what the kernel changes, what nobody can set; and what is new.
    for name in ("vm/max_map_count", "kernel/tainted", "kernel/told", "vm/new"):
        (tmp_path / name).write_text("9\n")
    assert list(sysctls.changed().items()) == [
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/aa0/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("vm/lines", "a: b\nd"),
        ("vm/swappiness", "60"),
    ]
    wanted = {"vm/swappiness": "10", "vm/dirty_ratio": "20", "vm/not_here": "1"}
    assert sysctls.set_again(wanted) == []
    assert (tmp_path / "vm/swappiness").read_text() == "10"
    # What was right is not written.
    assert (tmp_path / "vm/dirty_ratio").read_text() == "20\n"


def test_what_the_kernel_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing can be written below a directory of the kernel's that tells what it is.
    monkeypatch.setattr(sysctls, "_PROC_SYS", Path("/proc/sys"))
    (problem,) = sysctls.set_again({"kernel/osrelease": "9.9"})
    assert problem.startswith("kernel/osrelease is not 9.9 as before: ")


@pytest.mark.parametrize(
    ("groups", "meanwhile"),
    [
        ("0\t2147483647", "0 2147483647"),
        ("1000\t2000", "0 2000"),
        # Nobody.
        ("1\t0", "0 0"),
    ],
)
def test_who_may_open_ping_sockets(
    groups: str, meanwhile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """criu makes them again as root, which need not be one of these."""
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "sys/net/ipv4/ping_group_range").write_text(f"{groups}\n")
    monkeypatch.setattr(sysctls, "_PROC_SYS", tmp_path / "sys")
    monkeypatch.setattr(sysctls, "_AT_BOOT", tmp_path / "settings")
    (tmp_path / "settings").write_text(f"{tmp_path}/sys/net/ipv4/ping_group_range:{groups}\n")
    assert sysctls.values()["net/ipv4/ping_group_range"] == meanwhile
    # And as it was, once all is restored.
    again = {} if groups.startswith("0") else {"net/ipv4/ping_group_range": groups}
    assert sysctls.to_set_again() == again
    # Nobody has changed it.
    assert sysctls.changed() == {}
