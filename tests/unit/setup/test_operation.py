from __future__ import annotations

import itertools
import json

import pytest

from rekernel.carry.memory import region
from rekernel.carry.memory.dax import Range
from rekernel.errors import BlockedError, RekernelError
from rekernel.policy import Policy
from rekernel.run import CommandFailedError
from rekernel.setup import dropins, files, operation, plan
from rekernel.setup.bootloader import GRUB_DROP_IN, KERNEL_CMDLINE
from rekernel.setup.files import RECORD, Record
from rekernel.systemd.units import Unit

from .conftest import FIXTURES, Machine
from .test_bootloader import systemd_boot

GIB = 1 << 30
WORDS = region.parameters(Range(4 * GIB, 5 * GIB))
REDIS_DROP_IN = "/etc/systemd/system/redis-server.service.d/50-rekernel.conf"


def unit(name: str, *, private_users: str = "no", fragment: str = "/usr/lib/x") -> Unit:
    properties = {"PrivateUsers": private_users, "FragmentPath": fragment}
    return Unit(name, "active", "running", "simple", 10, f"/system.slice/{name}", "", properties)


UNITS = [unit("redis-server.service", private_users="yes"), unit("nginx.service")]


def make(
    machine: Machine,
    size: int | None = None,
    units: list[Unit] = UNITS,
    store: int | None = None,
    wishes: Policy = Policy(),  # noqa: B008 - frozen
) -> plan.Plan:
    record = files.load_record(machine.host)
    return plan.make(machine.host, record, plan.Wish(size, store), units, wishes)


def setup(
    machine: Machine,
    size: int | None = None,
    units: list[Unit] = UNITS,
    store: int | None = None,
) -> plan.Plan:
    todo = make(machine, size, units, store)
    operation.apply(machine.host, todo, files.load_record(machine.host))
    return todo


def undo(machine: Machine) -> list[str]:
    told: list[str] = []
    record = files.load_record(machine.host)
    assert record is not None
    operation.undo(machine.host, record, lambda what, which: told.append(f"{what} {which}"))
    return told


def test_setup(machine: Machine) -> None:
    todo = setup(machine)
    assert (
        machine.booted() == f"root=LABEL=lab-root ro console=ttyS0,115200 {' '.join(WORDS)} quiet"
    )
    assert "PrivateUsers=no\n" in machine.host.text(REDIS_DROP_IN)
    assert todo.restart == ("redis-server.service",)
    assert todo.reboot
    assert ["systemctl", "daemon-reload"] in machine.calls
    record = files.load_record(machine.host)
    assert record is not None
    assert record.state == "done"


def test_twice_changes_nothing(machine: Machine) -> None:
    setup(machine)
    before = machine.tree()
    # After its drop-in the unit does not show up as needy any more.
    for units in (UNITS, []):
        todo = make(machine, units=units)
        assert todo.empty
        assert make(machine, GIB, units).empty
    assert machine.tree() == before


def test_after_the_reboot(machine: Machine) -> None:
    setup(machine)
    machine.write("/proc/cmdline", machine.booted())
    machine.write("/proc/iomem", (FIXTURES / "iomem-6.12-4g-region").read_text())
    todo = make(machine)
    assert todo.empty
    assert not todo.reboot


def test_undo_restores_every_byte(machine: Machine) -> None:
    machine.write(REDIS_DROP_IN, "# mine\n[Service]\n", 0o600)
    machine.write(GRUB_DROP_IN, "")
    before = machine.tree()
    setup(machine)
    assert machine.tree() != before
    setup(machine, 1536 << 20)
    undo(machine)
    assert machine.tree() == before


def test_undo_removes_its_directories_only(machine: Machine) -> None:
    before = machine.tree()
    setup(machine)
    machine.write("/etc/systemd/system/redis-server.service.d/mine.conf", "x")
    undo(machine)
    gone = machine.tree().keys() ^ before.keys()
    top = "etc/systemd/system/redis-server.service.d"
    assert {path for path in gone if path.startswith(top)} == {top, f"{top}/mine.conf"}
    assert not machine.host.path(RECORD).exists()


def test_undo_keeps_what_was_edited_since(machine: Machine) -> None:
    setup(machine)
    machine.write(REDIS_DROP_IN, "[Service]\nPrivateUsers=no\nNice=5\n")
    told = undo(machine)
    assert f"kept your changes as {REDIS_DROP_IN}.saved" in told
    assert not machine.host.path(REDIS_DROP_IN).exists()
    assert "Nice=5" in machine.host.text(f"{REDIS_DROP_IN}.saved")


def test_undo_disables_only_what_setup_enabled(machine: Machine) -> None:
    machine.states["rekernel-pids.service"] = "disabled"
    todo = setup(machine)
    assert todo.enable == ("rekernel-pids.service",)
    undo(machine)
    assert machine.states == {"rekernel-pids.service": "disabled"}
    assert ["systemctl", "disable", "--", "rekernel-region.service"] not in machine.calls


@pytest.mark.parametrize("failure", ["update-grub", "systemctl enable", "systemctl daemon-reload"])
@pytest.mark.parametrize("second", [False, True])
def test_failure_midway(machine: Machine, failure: str, second: bool) -> None:
    if second:
        setup(machine)
    machine.states["rekernel-pids.service"] = "disabled"
    before = machine.tree()
    todo = make(machine, 1536 << 20)
    machine.fail = failure
    with pytest.raises(CommandFailedError):
        operation.apply(machine.host, todo, files.load_record(machine.host))
    if machine.tree() != before:
        # Where taking back needs the very program that fails, the record leads the way out.
        record = files.load_record(machine.host)
        assert record is not None
        assert record.state == "applying"
        machine.fail = ""
        undo(machine)
        assert files.load_record(machine.host) is None
        assert "memmap" not in machine.booted()


def test_interrupt_midway(machine: Machine) -> None:
    before = machine.tree()
    todo = make(machine)
    machine.interrupt = "update-grub"
    with pytest.raises(KeyboardInterrupt):
        operation.apply(machine.host, todo, None)
    assert machine.tree() == before


def test_word_lost_on_the_way_to_the_boot_loader(machine: Machine) -> None:
    machine.write("/usr/sbin/update-grub", "#!/bin/sh\n", 0o755)
    before = machine.tree()
    with pytest.raises(RekernelError, match="did not take over"):
        setup(machine)
    assert machine.tree() == before


class Killed(BaseException):
    """SIGKILL: nothing is cleaned up."""


@pytest.mark.parametrize("writes", range(1, 5))
@pytest.mark.parametrize("way_on", ["undo", "setup"])
def test_killed_midway(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, writes: int, way_on: str
) -> None:
    before = machine.tree()
    todo = make(machine)
    count = itertools.count(1)
    real = files.write

    def dying(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        if next(count) == writes:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", dying)
        patch.setattr(operation, "_roll_back", lambda *args: None)
        with pytest.raises(Killed):
            operation.apply(machine.host, todo, None)
    if way_on == "setup":
        setup(machine)
        assert make(machine).empty
        assert set(WORDS) <= set(machine.booted().split())
    undo(machine)
    assert machine.tree() == before


def test_undo_can_be_repeated(machine: Machine) -> None:
    before = machine.tree()
    setup(machine)
    machine.fail = "update-grub"
    with pytest.raises(CommandFailedError):
        undo(machine)
    machine.fail = ""
    undo(machine)
    assert machine.tree() == before


def test_systemd_boot(machine: Machine) -> None:
    systemd_boot(machine, " ".join(WORDS))
    machine.write(KERNEL_CMDLINE, "root=x\nquiet", 0o640)
    before = machine.tree()
    setup(machine)
    assert machine.host.text(KERNEL_CMDLINE) == f"root=x quiet {' '.join(WORDS)}\n"
    assert make(machine).empty
    undo(machine)
    assert machine.tree() == before


def test_systemd_boot_keeps_the_administrators_words(machine: Machine) -> None:
    systemd_boot(machine, " ".join(WORDS))
    machine.write(KERNEL_CMDLINE, "root=x\n")
    setup(machine)
    machine.write(KERNEL_CMDLINE, machine.host.text(KERNEL_CMDLINE).strip() + " mine=1\n")
    undo(machine)
    assert machine.host.text(KERNEL_CMDLINE) == "root=x mine=1\n"


def test_boot_loader_by_hand(machine: Machine) -> None:
    (machine.root / "usr/sbin/update-grub").unlink()
    todo = setup(machine)
    assert todo.loader.file is None
    assert make(machine).empty
    assert undo(machine)[-1].endswith(" ".join(WORDS))


def test_another_boot_loader_since(machine: Machine) -> None:
    setup(machine)
    systemd_boot(machine)
    with pytest.raises(BlockedError, match="another boot loader") as error:
        make(machine)
    assert "--undo" in error.value.hint


def test_region_that_someone_else_reserved(machine: Machine) -> None:
    machine.write("/etc/default/grub", f'GRUB_CMDLINE_LINUX="{" ".join(WORDS)}"\n')
    with pytest.raises(BlockedError, match="/etc/default/grub reserves a carry region already"):
        make(machine)


def test_setup_again_after_undo_without_a_reboot(machine: Machine) -> None:
    setup(machine)
    machine.write("/proc/cmdline", machine.booted())
    machine.write("/proc/iomem", (FIXTURES / "iomem-6.12-4g-region").read_text())
    undo(machine)
    assert setup(machine).region == Range(4 * GIB, 5 * GIB)


def test_units_that_need_nothing_or_gain_nothing(machine: Machine) -> None:
    units = [
        unit("systemd-timesyncd.service", private_users="yes"),
        unit("run-1.service", private_users="yes", fragment="/run/systemd/transient/run-1.service"),
        unit("wanted.service", private_users="self"),
        unit("given-up.service", private_users="yes"),
    ]
    wishes = Policy((("given-up.service", "restart"),))
    assert [*dropins.needed(units, wishes)] == ["wanted.service"]


def test_masked_service(machine: Machine) -> None:
    machine.states["rekernel-region.service"] = "masked"
    with pytest.raises(BlockedError, match=r"rekernel-region\.service is masked"):
        make(machine)


def test_service_not_installed(machine: Machine) -> None:
    machine.states["rekernel-region.service"] = "not-found"
    with pytest.raises(BlockedError, match="is not installed"):
        make(machine)


def test_kernel_without_hotplug(machine: Machine) -> None:
    (machine.root / "sys/devices/system/memory/block_size_bytes").unlink()
    with pytest.raises(BlockedError, match="cannot reserve a carry region"):
        make(machine)


def test_no_manager_to_reload_in_a_chroot(machine: Machine) -> None:
    (machine.root / "run/systemd/system").rmdir()
    setup(machine)
    assert ["systemctl", "daemon-reload"] not in machine.calls


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema": 2}', '{"schema": 1, "region": {"start": "x"}}']
)
def test_damaged_record(machine: Machine, text: str) -> None:
    machine.write(RECORD, text)
    with pytest.raises(RekernelError, match=r"setup\.json cannot be read"):
        files.load_record(machine.host)


def test_record_is_read_as_written(machine: Machine) -> None:
    record = Record(
        Range(1, 2),
        "grub",
        "done",
        [
            files.Written("/a", "00", files.Content(b"\xff\x00", 0o640, 1, 2)),
            files.Written("/b", "11", None),
        ],
        ["/c"],
        ["d.service"],
    )
    assert files.parse_record(record.dump()) == record
    assert json.loads(record.dump())["schema"] == 1


def test_a_larger_store(machine: Machine) -> None:
    setup(machine)
    before = machine.tree()
    todo = setup(machine, store=300 << 20)
    # Whole blocks.
    assert todo.words == [*WORDS, "rekernel.store=384M"]
    assert todo.store_bytes == 384 << 20
    assert todo.reboot
    record = files.load_record(machine.host)
    assert record is not None
    assert (record.region.size, record.store) == (GIB, 384 << 20)
    # It stays as it is, and is the region's still when that grows.
    machine.write("/proc/cmdline", " ".join(["ro", *todo.words]))
    again = make(machine)
    assert again.empty
    assert not again.reboot
    assert make(machine, GIB + (256 << 20)).words[-1] == "rekernel.store=384M"
    # The usual one needs no word.
    usual = setup(machine, store=1 << 20)
    assert usual.words == WORDS
    assert usual.reboot
    assert machine.tree().keys() == before.keys()


def test_a_store_that_leaves_no_room(machine: Machine) -> None:
    with pytest.raises(
        BlockedError, match="leaves no room for pages in a region of 1024"
    ) as caught:
        make(machine, store=GIB)
    assert "--region 2048M" in caught.value.hint


def test_a_record_of_before_has_no_store(machine: Machine) -> None:
    setup(machine)
    path = machine.root / RECORD.lstrip("/")
    raw = json.loads(path.read_text())
    del raw["store"]
    path.write_text(json.dumps(raw))
    record = files.load_record(machine.host)
    assert record is not None
    assert record.store == 0
