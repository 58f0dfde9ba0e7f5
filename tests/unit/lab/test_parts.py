"""The smaller pure parts of the lab."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rekernel_lab import cache
from rekernel_lab.bench.registry import REGISTRY, Request, benchmark, find
from rekernel_lab.cli import parser
from rekernel_lab.errors import LabError, UsageError
from rekernel_lab.hostsetup import PACKAGES, backports_source, missing, parse_qemu_version
from rekernel_lab.images.rootfs import Image, Keys, preferences
from rekernel_lab.scenario.product import newest, parse_depends
from rekernel_lab.scenario.runner import Result
from rekernel_lab.scenario.session import Script
from rekernel_lab.scenario.upgrade import Outcome, command, drained
from rekernel_lab.vm import qemu, state, tinyinit
from rekernel_lab.vm.guest import Guest
from rekernel_lab.vm.leftovers import orphans
from rekernel_lab.vm.netns import Namespace
from rekernel_lab.vm.state import Process, State


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the tests away from the real cache."""
    monkeypatch.setenv("REKERNEL_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_qemu_command_line() -> None:
    boot = qemu.Boot(Path("/b/vmlinuz"), Path("/b/initrd"), "root=/dev/vda memmap=2G!4G")
    names = ("disk", "second", "variables", "serial", "qmp", "questions")
    paths = {name: Path("/", name) for name in names}
    words = qemu.command(qemu.Machine("tcg", 8192, 1), boot, **paths)
    assert words[words.index("-append") + 1] == "root=/dev/vda memmap=2G!4G"
    assert words[words.index("-m") + 1] == "8192M"
    assert words[words.index("-smp") + 1] == "1"
    assert words[words.index("-accel") + 1].startswith("tcg")
    assert "-no-reboot" in words
    assert not [word for word in words if "file=/second" in word]
    words = qemu.command(qemu.Machine("tcg", disk_mib=9), boot, **paths)
    assert len([word for word in words if "file=/second" in word]) == 1
    assert not [word for word in words if "pflash" in word]
    words = qemu.command(qemu.Machine("tcg", uefi=True), boot, **paths)
    assert len([word for word in words if "pflash" in word]) == 2


def test_tiny_init_is_a_program_that_speaks(tmp_path: Path) -> None:
    # For want of CAP_SYS_BOOT the reboot fails, and the init waits for good.
    program = tmp_path / "init"
    program.write_bytes(tinyinit.elf())
    program.chmod(0o755)
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    if os.geteuid() != 0:
        drop = []
    process = subprocess.Popen([*drop, str(program)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"\n"
        assert process.stdout.readline().decode().strip() == tinyinit.MARKER
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_cpio_is_aligned_and_ends() -> None:
    archive = tinyinit.cpio({"init": (0o100755, b"12345")})
    assert archive.startswith(b"070701")
    assert len(archive) % 4 == 0
    assert b"TRAILER!!!" in archive


def test_installed_packages_are_not_missing() -> None:
    status = "".join(f"{name} ii \n" for name in PACKAGES)
    assert missing(status) == []
    assert missing(status.replace("gcc ii ", "gcc rc ")) == ["gcc"]
    assert missing(status.replace("libc6-dev ii ", "libc6-dev:amd64 ii ")) == []
    assert missing("") == list(PACKAGES)


def test_qemu_version() -> None:
    assert parse_qemu_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n") == 10
    assert parse_qemu_version("QEMU emulator version 7.2.17 (Debian)\n") == 7
    assert parse_qemu_version("no idea") == 0


def test_backports_source_uses_the_host_mirror() -> None:
    source = backports_source("http://a.example/debian", "bookworm")
    assert "URIs: http://a.example/debian\nSuites: bookworm-backports\n" in source


def test_criu_pin() -> None:
    assert "Pin: release n=forky\nPin-Priority: 990" in preferences("")
    assert "Pin: version 4.1.1*\nPin-Priority: 990" in preferences("4.1.1")


def test_depends_field() -> None:
    field = "python3 (>= 3.11), python3:any, criu (>= 4.2) | criu-dev, libc6 (>= 2.38)"
    assert parse_depends(field) == ["criu", "libc6", "python3"]
    assert parse_depends("") == []


def test_newest_package(tmp_path: Path) -> None:
    for number, name in enumerate(("rekernel_0.2_amd64.deb", "rekernel_0.1_amd64.deb")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    assert newest(tmp_path).name == "rekernel_0.1_amd64.deb"


def test_image_knows_its_kernels(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    for release in ("6.12.107+deb13-cloud-amd64", "7.3.4+deb13-cloud-amd64", "6.12.94+x"):
        (tmp_path / "boot" / f"vmlinuz-{release}").touch()
    assert Image(tmp_path).release("6.12") == "6.12.107+deb13-cloud-amd64"


def test_state_survives_the_disk(tmp_path: Path) -> None:
    machine = qemu.Machine("tcg", 1024, 1)
    saved = State("one", machine, tmp_path, "7.3.4", "a=b").save(phase="running", boots=2)
    assert state.load("one") == saved
    assert [known.name for known in state.load_all()] == ["one"]
    assert saved.namespace.name == orphans(f"other\n{saved.namespace.name} (id: 3)\n")[0]


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "-a", "x" * 33])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(UsageError, match="no name for a VM"):
        state.vm_directory(name)


def test_unknown_vm() -> None:
    with pytest.raises(UsageError, match="no VM 'none'"):
        state.load("none")


def test_process_identity_is_more_than_a_number() -> None:
    me = Process.of(os.getpid())
    assert me.alive()
    assert not Process(me.pid, me.started + 1).alive()
    assert not Process(0, 0).alive()


def test_artefact_is_built_once_and_only_if_whole(own_cache: Path) -> None:
    with pytest.raises(RuntimeError), cache.building("kind", "x") as scratch:
        assert scratch
        (scratch / "half").touch()
        raise RuntimeError
    with cache.building("kind", "x") as scratch:
        assert scratch and not list(scratch.iterdir())
    with cache.building("kind", "x") as scratch:
        assert scratch is None
    assert [path.name for path in (own_cache / "kind").iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ({}, True),
        ({"drain": None}, True),
        ({"drain": {"finished": True}}, True),
        ({"drain": {"finished": False}}, False),
        (None, False),
        ([], False),
    ],
)
def test_drained(status: object, done: bool) -> None:
    assert drained(status) is done


def test_upgrade_command() -> None:
    assert command("7.3.4", ["a.service", "b.service"]) == [
        *("rekernel", "upgrade", "--yes", "--carry", "a.service", "--carry", "b.service"),
        "7.3.4",
    ]
    assert command("7.3.4", None) == ["rekernel", "upgrade", "--yes", "7.3.4"]


def test_result_passes_only_as_a_whole(tmp_path: Path) -> None:
    good = Outcome("7.3.4", 0, "7.3.4", {})
    result = Result("s", tmp_path, upgrades=[good], finished=True)
    result.scripts["guest-verify"] = Script(0, tmp_path)
    assert result.passed and result.to_json()["passed"] is True
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(20)))
    result.scripts["host-client"] = Script(1, log)
    assert not result.passed
    (shortcoming,) = result.shortcomings()
    assert shortcoming.splitlines()[::10] == ["host-client: exit code 1", "  line 19"]
    del result.scripts["host-client"]
    result.upgrades.append(Outcome("6.12", 4, "6.12", {}))
    assert result.shortcomings() == ["upgrade to 6.12: exit code 4"]
    assert not Result("s", tmp_path, upgrades=[good]).passed
    assert not Outcome("7.3.4", 0, "6.12", {}).passed


def test_command_line_takes_a_guest_command() -> None:
    arguments = parser().parse_args(["shell", "dev", "--", "ls", "-l"])
    assert (arguments.name, arguments.command) == ("dev", ["ls", "-l"])


def test_benchmarks_register_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(REGISTRY, "nothing", raising=False)

    @benchmark("nothing")
    def nothing(request: Request) -> int:
        return 0

    assert find("nothing") is nothing
    with pytest.raises(UsageError, match="no benchmark 'other'"):
        find("other")
    del REGISTRY["nothing"]


def test_pushed_file_gets_exactly_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The guest's shell is played by the one here.
    monkeypatch.setattr(Guest, "ssh", lambda self, command, options=(): ["sh", "-c", command])
    guest = Guest(Namespace("none"), Keys(tmp_path))
    source = tmp_path / "t1.py"
    source.write_text("x")
    for name in ("t1.py", "with space.py", "with 'quote'.py", "a\\.b"):
        guest.push(source, str(tmp_path / "into" / name))
        assert (tmp_path / "into" / name).read_text() == "x"
    assert len(list((tmp_path / "into").iterdir())) == 4


def test_commands_share_a_connection_only_if_there_is_one(tmp_path: Path) -> None:
    alone = Guest(Namespace("none"), Keys(tmp_path))
    assert "ControlPath=none" in alone.ssh(["true"])
    shared = Guest(Namespace("none"), Keys(tmp_path), tmp_path / "ssh")
    assert f"ControlPath={tmp_path}/ssh" in shared.ssh(["true"])
    # As if it had been made.
    (tmp_path / "ssh").touch()
    with subprocess.Popen(["sleep", "60"]) as master:
        shared.wait_connected(master)
        master.kill()


@pytest.mark.parametrize("words", [["false"], ["sleep", "60"]])
def test_a_connection_that_is_not_made(words: list[str], tmp_path: Path) -> None:
    guest = Guest(Namespace("none"), Keys(tmp_path), tmp_path / "ssh")
    with subprocess.Popen(words) as master:
        with pytest.raises(LabError, match="no connection into the guest that could be shared"):
            guest.wait_connected(master, timeout=0.3)
        master.kill()
