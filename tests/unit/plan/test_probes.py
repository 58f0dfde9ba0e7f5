"""Every answer of the probes, over files like those of a real machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekernel import syscalls
from rekernel.attempt import state as attempt
from rekernel.carry.disks import observe as disks
from rekernel.carry.loops import observe as loops
from rekernel.carry.loops.observe import Loops
from rekernel.carry.memory import region
from rekernel.carry.memory.dax import Range
from rekernel.carry.memory.region import MIB, Layout, layout, parameters
from rekernel.carry.network import observe as network
from rekernel.carry.network import trial as network_trial
from rekernel.census.pages import Survey
from rekernel.census.usage import Usage
from rekernel.census.verdicts import UnitVerdict, Verdict
from rekernel.criu import canary
from rekernel.criu.canary import CanaryError, CanaryResult
from rekernel.criu.log import first_error
from rekernel.errors import BlockedError, RekernelError
from rekernel.kernel import drivers, fitness
from rekernel.plan import probes, room
from rekernel.plan.probes import Context, Finding, Status
from rekernel.plan.room import Disk, Free
from rekernel.records import replace
from rekernel.systemd.units import Unit

ZONEINFO = (Path(__file__).parent / "data" / "zoneinfo-6.12.txt").read_text()
REGION = Range(4 << 30, 6 << 30)


def host(tmp_path: Path, files: dict[str, str], backend: str = "auto") -> Context:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Context(root=tmp_path, backend=backend)


def unit(name: str, verdict: Verdict, *pids: int) -> UnitVerdict:
    facts = Unit(name, "active", "running", "simple", pids[0], f"/system.slice/{name}", "", {})
    return UnitVerdict(facts, verdict, "", "", dict.fromkeys(pids, facts.cgroup), pids[:1])


def cmdline(*words: str) -> dict[str, str]:
    return {"proc/cmdline": "root=/dev/vda ro " + " ".join(words) + "\n"}


def test_region_missing(tmp_path: Path) -> None:
    status, reason, remedy = probes.region_layout(host(tmp_path, cmdline("quiet")))
    assert (status, reason) == (Status.FAIL, "no carry region is reserved")
    assert "rekernel setup" in remedy
    assert probes.region_layout(host(tmp_path, cmdline(), "image"))[0] is Status.OK


def test_region_as_setup_writes_it(tmp_path: Path) -> None:
    answer = probes.region_layout(host(tmp_path, cmdline(*parameters(REGION))))
    assert answer == (Status.OK, "2048 MiB at 0x100000000", "")


def test_region_that_a_kernel_may_be_placed_in(tmp_path: Path) -> None:
    words = [word for word in parameters(REGION) if "!" not in word]
    status, reason, _ = probes.region_layout(host(tmp_path, cmdline(*words)))
    assert status is Status.FAIL
    assert "may be placed inside the region" in reason
    words.append("memmap=1024M!0x100000000")
    assert probes.region_layout(host(tmp_path, cmdline(*words)))[0] is Status.FAIL


def test_region_among_too_many_words(tmp_path: Path) -> None:
    more = [f"memmap=1M${at}M" for at in range(100, 104)]
    status, reason, _ = probes.region_layout(host(tmp_path, cmdline(*more, *parameters(REGION))))
    assert status is Status.FAIL
    assert "5 memmap= words" in reason


def test_region_too_small_to_place_a_kernel_below_its_size(tmp_path: Path) -> None:
    small = Range(4 << 30, (4 << 30) + 512 * MIB)
    status, reason, remedy = probes.region_layout(host(tmp_path, cmdline(*parameters(small))))
    assert status is Status.WARN
    assert "512 MiB" in reason
    assert "at least 1 GiB" in remedy


def test_region_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    where = Layout(REGION, Range(REGION.start, REGION.start + 128 * MIB), Range(0, 1920 * MIB))
    monkeypatch.setattr(region, "current", lambda: where)
    monkeypatch.setattr(region, "store_device", lambda where: None)
    monkeypatch.setattr(region, "ram_ranges", lambda where: [])
    assert probes.region_devices(Context())[1] == "the handover store is not set up"
    monkeypatch.setattr(region, "store_device", lambda where: object())
    assert probes.region_devices(Context())[1] == "nothing of the region is RAM"
    monkeypatch.setattr(region, "ram_ranges", lambda where: [Range(0, 1000 * MIB)])
    status, reason, _ = probes.region_devices(Context())
    assert (status, reason) == (Status.WARN, "920 MiB of the region are not RAM")
    monkeypatch.setattr(region, "ram_ranges", lambda where: [Range(0, 1920 * MIB)])
    assert probes.region_devices(Context())[0] is Status.OK
    monkeypatch.setattr(region, "current", lambda: None)
    assert probes.region_devices(Context())[0] is Status.FAIL
    assert probes.region_devices(Context(backend="image"))[0] is Status.OK


def test_zones() -> None:
    zones = probes.parse_zones(ZONEINFO)
    assert zones == {"DMA": 3840, "DMA32": 494314, "Normal": 118660, "Movable": 360448, "Device": 0}


def test_movable_zone(tmp_path: Path) -> None:
    assert probes.movable_zone(host(tmp_path, {"proc/zoneinfo": ZONEINFO}))[1] == "1408 MiB"
    none = ZONEINFO.replace("360448", "0")
    assert probes.movable_zone(host(tmp_path, {"proc/zoneinfo": none}))[0] is Status.FAIL
    assert probes.movable_zone(Context(backend="image"))[0] is Status.OK


def test_room_to_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = host(tmp_path, {"proc/zoneinfo": ZONEINFO})
    small = replace(context, usages=(usage_of(300 * MIB),))
    assert probes.drain_room(small)[0] is Status.OK
    status, reason, _ = probes.drain_room(replace(context, usages=(usage_of(2000 * MIB),)))
    assert status is Status.WARN
    assert "carried pages then exist twice" in reason
    # Little memory, but shared by many.
    forked = replace(small, pages=Survey(0, 6000 * MIB))
    assert probes.drain_room(forked)[0] is Status.WARN


def usage_of(resident: int, shared: int = 0) -> Usage:
    return Usage("db.service", False, 1, resident, 0, shared, 0)


def test_room_for_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was said that all is well, and the upgrade was refused."""
    where = layout(REGION, 128 * MIB)
    disk = Disk("/var/lib/rekernel/images", 7, 1000 * MIB)
    free = Free(where.store.size, 3000 * MIB, disk)
    monkeypatch.setattr(region, "current", lambda: where)
    monkeypatch.setattr(region, "ram_ranges", lambda where: [where.ram])
    monkeypatch.setattr(room, "tmpfs_sizes", lambda plans: {})
    monkeypatch.setattr(
        room, "observe", lambda where, containers: free if where else replace(free, store=0)
    )
    for shared, status in ((0, Status.OK), (600, Status.OK), (1600, Status.FAIL)):
        context = replace(host(tmp_path, {}), usages=(usage_of(shared * MIB, shared * MIB),))
        found = probes.images_room(context)
        assert found[0] is status
        if shared == 600:
            assert "by way of the disk: db.service (600 MiB)" in found[1]
            assert found[2] == "to keep it in memory: `rekernel setup --store 704M` and a reboot"
        if status is Status.FAIL:
            assert "has 1000 MiB free, the upgrade needs 1600 MiB there" in found[1]
    images = replace(host(tmp_path, {}, "image"), usages=(usage_of(9 * MIB, 9 * MIB),))
    assert probes.images_room(images)[:2] == (Status.OK, "9 MiB go to /var/lib/rekernel/images")


def test_kexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_lock = {"sys/kernel/security/lockdown": "[none] integrity confidentiality\n"}
    unloaded: list[bool] = []
    monkeypatch.setattr(syscalls, "kexec_unload", lambda: unloaded.append(True))
    assert probes.kexec(host(tmp_path, open_lock))[0] is Status.OK
    assert unloaded == [True]
    # A kernel that somebody has loaded must stay loaded.
    assert probes.kexec(host(tmp_path, {"sys/kernel/kexec_loaded": "1\n"}))[0] is Status.OK
    assert unloaded == [True]
    locked = {"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}
    assert "locked down (integrity)" in probes.kexec(host(tmp_path, locked))[1]
    off = {"proc/sys/kernel/kexec_load_disabled": "1\n"}
    assert "kexec_load_disabled" in probes.kexec(host(tmp_path, off))[1]


def test_kexec_not_in_this_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(syscalls, "kexec_unload", missing)
    status, reason, remedy = probes.kexec(host(tmp_path, {}))
    assert (status, reason) == (Status.FAIL, "kexec_file_load: Function not implemented")
    assert "CONFIG_KEXEC_FILE" in remedy


def test_swap(tmp_path: Path) -> None:
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    assert probes.swap(host(tmp_path, {"proc/swaps": head}))[0] is Status.OK
    used = f"{head}/dev/vda2                 partition\t524284\t\t204800\t\t-2\n"
    files = {"proc/swaps": used, "proc/meminfo": "MemTotal: 900000 kB\nMemAvailable: 300000 kB\n"}
    status, reason, _ = probes.swap(host(tmp_path, files))
    assert status is Status.OK
    assert reason.startswith("/dev/vda2: off during an upgrade, 200 MiB come back")
    files["proc/meminfo"] = "MemAvailable: 102400 kB\n"
    status, reason, remedy = probes.swap(host(tmp_path, files))
    assert status is Status.FAIL
    assert reason == "200 MiB are swapped out, 100 MiB of memory are available"
    assert "free memory" in remedy


def test_merged_pages(tmp_path: Path) -> None:
    files = {"sys/kernel/mm/ksm/run": "1\n", "sys/kernel/mm/ksm/pages_sharing": "12\n"}
    assert "KSM has merged 12 pages" in probes.merging(host(tmp_path, files))[1]
    files["sys/kernel/mm/ksm/pages_sharing"] = "0\n"
    assert probes.merging(host(tmp_path, files))[0] is Status.OK


def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "nft" else f"/bin/{name}")
    names = ("rekernel-pagemap", "rekernel-pager")
    context = host(tmp_path, {f"usr/lib/rekernel/{name}": "" for name in names})
    assert probes.programs(context)[1] == "not found: nft, rekernel-hook"


def test_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacks: dict[str, list[str]] = {}
    monkeypatch.setattr(probes, "running_release", lambda: "6.12.1")
    monkeypatch.setattr(drivers, "essential", lambda table: fitness.Needs(()))
    monkeypatch.setattr(
        fitness,
        "shortcomings",
        lambda kernel, running, needs, region: lacks.get(kernel.release, []),
    )
    assert probes.kernels(Context(root=tmp_path))[0] is Status.FAIL
    for release in ("6.12.1", "7.3.4"):
        files = {f"usr/lib/modules/{release}/modules.dep": "", f"boot/vmlinuz-{release}": ""}
        context = host(tmp_path, files)
        expected = Status.WARN if release == "6.12.1" else Status.OK
        assert probes.kernels(context)[0] is expected
    assert probes.kernels(context)[1] == "to switch to: 7.3.4"
    lacks["7.3.4"] = ["no nvme", "no CONFIG_USERFAULTFD"]
    words = "to switch to: none; cannot take over: 7.3.4 (no nvme, no CONFIG_USERFAULTFD)"
    assert probes.kernels(context)[:2] == (Status.FAIL, words)
    host(tmp_path, {"usr/lib/modules/6.9.1/modules.dep": "", "boot/vmlinuz-6.9.1": ""})
    status, found, _ = probes.kernels(context)
    assert (status, found) == (Status.OK, words.replace("none", "6.9.1"))


def test_low_pids() -> None:
    low = Context(units=(unit("a.service", Verdict.CARRIED, 400, 5000),))
    assert "1 carried processes are below PID 1000" in probes.pids(low)[1]
    # What restarts gets a new PID anyway.
    assert probes.pids(Context(units=(unit("a.service", Verdict.RESTARTED, 400),)))[0] is Status.OK


def test_an_attempt_that_is_not_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "unit_runs", lambda: False)
    assert probes.undone(Context(root=tmp_path)) == (Status.OK, "nothing is left of an attempt", "")
    left = '[["unlock-network", "", "no nft"]]'
    context = host(tmp_path, {"run/rekernel/undo.json": left})
    status, reason, remedy = probes.undone(context)
    assert (status, remedy) == (Status.FAIL, "rekernel abort")
    assert reason.startswith("an attempt is not undone: unlock-network: no nft (by hand: nft ")
    # What is under way is not left.
    monkeypatch.setattr(attempt, "unit_runs", lambda: True)
    assert probes.undone(context)[0] is Status.OK


def test_userfaultfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(argv: list[str]) -> str:
        raise RekernelError("criu failed (1): uffd is not supported")

    monkeypatch.setattr(probes, "run", refuse)
    assert probes.userfaultfd(Context())[0] is Status.FAIL
    assert probes.userfaultfd(Context(backend="image"))[0] is Status.OK


def test_canary_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "try_canary", lambda: CanaryResult(0.5, 0.25))
    assert "dump 0.5 s, restore 0.2 s" in probes.canary(Context())[1]

    def fail() -> CanaryResult:
        raise CanaryError("criu cannot dump a test process: x", "do y")

    monkeypatch.setattr(probes, "try_canary", fail)
    assert probes.canary(Context()) == (Status.FAIL, "criu cannot dump a test process: x", "do y")


def test_what_cannot_be_set_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = ["/srv (xfs on /dev/sdb)"]
    attached = Loops({}, {"/dev/loop3": "of /x, which is gone"})
    monkeypatch.setattr(loops, "observe", lambda table: attached)
    monkeypatch.setattr(disks, "unsupported", lambda table, loops: problems)
    monkeypatch.setattr(network, "observe", lambda: None)
    monkeypatch.setattr(network, "unsupported", lambda facts: ["br0 (bridge)"])
    assert probes.mounted(Context())[1] == "not supported yet: /srv (xfs on /dev/sdb)"
    assert probes.links(Context())[1] == "not supported yet: br0 (bridge)"
    monkeypatch.setattr(network, "unsupported", lambda facts: [])
    monkeypatch.setattr(network, "describe", lambda facts: None)
    monkeypatch.setattr(network_trial, "refused", lambda network: ["route append x (no way)"])
    status, words, _ = probes.links(Context())
    assert (status, words) == (
        Status.WARN,
        "this kernel would not take all of it once more: route append x (no way)",
    )
    problems.clear()
    status, words, _ = probes.mounted(Context())
    assert (status, words) == (Status.WARN, "/dev/loop3, of /x, which is gone, will be gone")

    def no_root(table: object) -> None:
        raise BlockedError("the root file system is btrfs (/dev/vda)", "only ext4")

    monkeypatch.setattr(disks, "root", no_root)
    assert probes.root_filesystem(Context())[1] == "the root file system is btrfs (/dev/vda)"


def test_a_probe_that_breaks_counts_as_failed() -> None:
    def broken(context: Context) -> probes.Answer:
        raise OSError(5, "Input/output error")

    found = probes.probe_all(Context(), [("disk", broken)])
    assert found == [
        Finding("disk", Status.FAIL, "could not be found out: [Errno 5] Input/output error")
    ]


def test_names_are_unique() -> None:
    names = [name for name, _ in probes.PROBES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("(00.01) Error (criu/sockets.c:547): Can't get 1:16 opt: Operation not supported", "4.2"),
        ("(00.01) Error (criu/mem.c:1): no such thing", "newer criu"),
    ],
)
def test_criu_errors_have_remedies(tmp_path: Path, line: str, words: str) -> None:
    log = tmp_path / "dump.log"
    log.write_text(
        f"(00.00) Warn  (criu/x.c:1): skip\n{line}\n(00.02) Error (criu/y.c:2): FAILED\n"
    )
    cause = first_error(log)
    assert cause == line.partition("): ")[2]
    assert words in canary.remedy_for(cause)


def test_no_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(CanaryError, match="criu is not installed"):
        canary.try_canary()


def test_a_canary_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "try_canary", lambda: CanaryResult(0.5, 0.25))
    context = Context(canary=canary.Background().result)
    assert "dump 0.5 s, restore 0.2 s" in probes.canary(context)[1]

    def fail() -> CanaryResult:
        raise CanaryError("criu cannot dump a test process: x", "do y")

    monkeypatch.setattr(canary, "try_canary", fail)
    context = Context(canary=canary.Background().result)
    assert probes.canary(context) == (Status.FAIL, "criu cannot dump a test process: x", "do y")
