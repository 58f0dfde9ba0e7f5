"""Reports from the agent's own result, recorded on a change from Linux 6.12 to 7.3."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from rekernel.attempt.problem import Problem
from rekernel.errors import BlockedError, RekernelError, RolledBackError
from rekernel.handover.manifest import Phase
from rekernel.records import asdict, replace
from rekernel.report import builder, html, text
from rekernel.report.builder import After, UnitAfter
from rekernel.report.layout import Paint

RECORDED = json.loads((Path(__file__).parent / "data" / "agent-6.12-to-7.3.json").read_text())
REDIS = ["tcp", "10.77.0.2:6379", "10.77.0.1:51000"]
HTTP = ["tcp", "10.77.0.2:80", "10.77.0.1:51002"]
DRAIN = {"state": "drained", "pages_total": 1924, "bytes_left": 0}


@pytest.fixture
def agent() -> dict[str, Any]:
    """The recorded result with connections, a restarted unit and strays."""
    found = copy.deepcopy(RECORDED)
    found["report"]["connections"] = [HTTP, REDIS]
    found["report"]["stray_pages"] = 10
    found["report"]["units"].append(
        {
            "unit": "virt<ual>.service",
            "verdict": "restarted",
            "reason": "process 7 has a KVM virtual machine open (descriptor 3)",
            "main_pid": 7,
            "processes": [7],
            "cgroup": "/system.slice/virt.service",
        }
    )
    assert isinstance(found, dict)
    return found


def after(agent: dict[str, Any], **changes: UnitAfter) -> After:
    """As before, but for what a test changes."""
    units = {
        item["unit"]: UnitAfter(True, item["main_pid"], item["cgroup"], tuple(item["processes"]))
        for item in agent["report"]["units"]
    }
    units |= {f"{name}.service": unit for name, unit in changes.items()}
    return After(units, [HTTP, REDIS])


def by_name(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(unit for unit in report["units"] if unit["unit"] == name)
    return found


def test_everything_carried_over(agent: dict[str, Any]) -> None:
    report = builder.carried_over(agent, after(agent), drain=DRAIN, brownout_s=34.5)
    assert (report["schema"], report["outcome"], report["exit_code"]) == (1, "done", 0)
    assert report["id"] == "20261122-220201"
    assert report["blackout_s"] == pytest.approx(25.8316, abs=1e-3)
    assert report["connections"]["lost"] == []
    assert report["error"] == ""
    nginx = by_name(report, "nginx.service")
    assert nginx["kept"]
    assert nginx["main_pid_before"] == nginx["main_pid_after"] == 5013
    assert not by_name(report, "dbus.service")["kept"]
    memory = report["memory"]
    assert memory["bytes_copied"] == 10 * 4096 + 3639031 + 51200
    assert memory["pages_in_place"] == 1924
    assert memory["drain"] == DRAIN
    json.dumps(report)


def test_one_that_a_second_attempt_left_out(agent: dict[str, Any]) -> None:
    """It was to be carried, so this is no success."""
    agent["report"]["left_out"] = ["virt<ual>.service"]
    report = builder.carried_over(agent, after(agent), drain=DRAIN)
    assert (report["outcome"], report["exit_code"]) == ("degraded", 4)
    assert report["error"] == "not carried over: virt<ual>.service"
    assert by_name(report, "virt<ual>.service")["verdict"] == "restarted"


def test_a_tree_that_was_not_restored(agent: dict[str, Any]) -> None:
    agent["trees"][0]["failure"] = "criu ended with 1"
    fresh = UnitAfter(True, 5900, "/system.slice/nginx.service", (5900,))
    report = builder.carried_over(agent, after(agent, nginx=fresh))
    assert (report["outcome"], report["exit_code"]) == ("degraded", 4)
    nginx = by_name(report, "nginx.service")
    assert not nginx["kept"]
    assert nginx["failure"] == "criu ended with 1"
    assert nginx["log"] == "/run/rekernel/restore/nginx"
    assert report["error"] == "not carried over: nginx.service"


LOST = [{"pid": 5013, "pages": 3}]


@pytest.mark.parametrize(
    ("drain", "why", "words"),
    [
        (
            {"pages_lost": 3, "lost": LOST},
            "unreadable",
            "process 5013: 3 pages of its memory could not be read from the old memory",
        ),
        (
            {"unknown": 1, "unknown_processes": [{"pid": 5013, "pages": 0}]},
            "unknown",
            "process 5013: it was not in the page map and has zeros for its memory",
        ),
        (
            {"stopped": LOST},
            "stopped",
            "process 5013: no pager could bring 3 pages of its memory: it is stopped",
        ),
    ],
)
def test_memory_that_was_lost(
    agent: dict[str, Any], drain: dict[str, Any], why: str, words: str
) -> None:
    report = builder.carried_over(agent, after(agent), drain=DRAIN | drain, brownout_s=3.0)
    assert (report["outcome"], report["exit_code"]) == ("degraded", 4)
    assert report["error"] == "memory was lost: nginx.service (process 5013)"
    assert report["hint"] == "systemctl restart nginx.service"
    assert [item["why"] for item in report["memory"]["losses"]] == [why]
    nginx = by_name(report, "nginx.service")
    assert (nginx["kept"], nginx["failure"]) == (False, words)
    shown = text.render(json.loads(json.dumps(report)))
    assert words in shown
    assert "until every page that could be read was home" in shown


@pytest.mark.parametrize(
    ("drain", "unserved", "words"),
    [
        # A forked child that was not found.
        (
            {"state": "stopped", "bytes_left": 8192, "stopped": []},
            False,
            "a process: no pager could bring 2 pages of its memory: it is stopped",
        ),
        # Killed before it said what it had to bring.
        (
            {"state": "serving", "bytes_left": 0},
            True,
            "a process: the pager was killed, pages of its memory are zeros now",
        ),
    ],
)
def test_memory_that_was_lost_without_a_name(
    agent: dict[str, Any], drain: dict[str, Any], unserved: bool, words: str
) -> None:
    report = builder.carried_over(agent, after(agent), drain=DRAIN | drain, unserved=unserved)
    assert (report["outcome"], report["exit_code"]) == ("degraded", 4)
    assert f"lost  {words}" in text.render(report)


@pytest.mark.parametrize(("member", "pages"), [("pages_lost", 2), ("unknown", 2)])
def test_memory_that_was_lost_of_nobody_knows_whom(
    agent: dict[str, Any], member: str, pages: int
) -> None:
    report = builder.carried_over(agent, after(agent), drain=DRAIN | {member: pages})
    assert (report["outcome"], report["exit_code"]) == ("degraded", 4)
    assert report["error"] == "memory was lost: a process that is not known"
    assert report["hint"] == "restart the carried units: any of them may be concerned"
    assert "lost  a process: " in text.render(report)
    agent["missing"] = ["table inet x of the packet filter"]
    both = builder.carried_over(agent, after(agent), drain=DRAIN | {member: pages})
    assert both["error"].endswith("not known; not carried over: table inet x of the packet filter")


def test_memory_that_was_lost_outside_of_services(agent: dict[str, Any]) -> None:
    drain = DRAIN | {"pages_lost": 5, "lost": [*LOST, {"pid": 777, "pages": 2}]}
    report = builder.carried_over(agent, after(agent), drain=drain)
    assert report["error"] == "memory was lost: nginx.service (process 5013), process 777"
    assert report["hint"] == (
        "systemctl restart nginx.service; end process 777 and start it afresh"
    )


def test_a_pager_that_was_killed_and_lost_nothing(agent: dict[str, Any]) -> None:
    report = builder.carried_over(agent, after(agent), drain=DRAIN | {"restarts": 2})
    assert (report["outcome"], report["exit_code"]) == ("done", 0)
    assert "the pager was killed 2 times and went on where it was" in report["notes"]


def test_a_pager_that_is_gone(agent: dict[str, Any]) -> None:
    drain = {"state": "serving", "bytes_left": 5 * 4096, "missing": LOST}
    report = builder.carried_over(agent, after(agent), drain=drain, unserved=True)
    assert (report["outcome"], report["exit_code"]) == ("degraded", 4)
    failure = "process 5013: the pager was killed, 3 pages of its memory are zeros now"
    assert by_name(report, "nginx.service")["failure"] == failure
    assert [(item["pid"], item["pages"]) for item in report["memory"]["losses"]] == [
        (5013, 3),
        (0, 2),
    ]
    # As long as it is there, they are on their way.
    assert builder.carried_over(agent, after(agent), drain=drain)["outcome"] == "done"


def test_what_the_next_kernel_did_not_take(agent: dict[str, Any]) -> None:
    agent["missing"] = ["table inet x of the packet filter"]
    report = builder.carried_over(agent, after(agent), drain=DRAIN)
    assert (report["outcome"], report["exit_code"]) == ("degraded", 4)
    assert report["error"] == "not carried over: table inet x of the packet filter"
    agent["trees"][0]["failure"] = "no"
    assert "service, table inet x" in builder.carried_over(agent, after(agent))["error"]


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (UnitAfter(False, 0, "", ()), "not active"),
        (UnitAfter(True, 77, "/system.slice/nginx.service", (77,)), "was 5013 and is 77"),
        (UnitAfter(True, 5013, "/system.slice", (5013,)), "control group was"),
    ],
)
def test_a_unit_that_is_another_one_afterwards(
    agent: dict[str, Any], seen: UnitAfter, words: str
) -> None:
    report = builder.carried_over(agent, after(agent, nginx=seen))
    assert report["exit_code"] == 4
    assert words in by_name(report, "nginx.service")["failure"]


def test_a_login_may_have_ended_since(agent: dict[str, Any]) -> None:
    unit = next(item for item in agent["report"]["units"] if item["unit"] == "nginx.service")
    unit["unit"] = agent["trees"][0]["unit"] = "session-3.scope"
    report = builder.carried_over(agent, after(agent))
    assert by_name(report, "session-3.scope")["kept"]
    assert report["outcome"] == "done"
    gone = replace(after(agent), units={})
    assert "5013, ended since" in text.render(builder.carried_over(agent, gone))
    agent["trees"][0]["failure"] = "criu ended with 1"
    assert builder.carried_over(agent, after(agent))["exit_code"] == 4


def test_a_unit_without_main_process(agent: dict[str, Any]) -> None:
    unit = next(item for item in agent["report"]["units"] if item["unit"] == "nginx.service")
    unit["main_pid"] = 0
    group = "/system.slice/nginx.service"
    kept = UnitAfter(True, 0, group, (5013, 5014))
    assert builder.carried_over(agent, after(agent, nginx=kept))["outcome"] == "done"
    other = UnitAfter(True, 0, group, (9000,))
    report = builder.carried_over(agent, after(agent, nginx=other))
    assert by_name(report, "nginx.service")["failure"] == "its first process is gone"


def test_a_carried_unit_that_no_tree_has(agent: dict[str, Any]) -> None:
    agent["trees"] = agent["trees"][1:]
    report = builder.carried_over(agent, after(agent))
    assert by_name(report, "nginx.service")["failure"] == "it was not handed over"


def test_lost_connections(agent: dict[str, Any]) -> None:
    seen = After(after(agent).units, [HTTP])
    report = builder.carried_over(agent, seen)
    assert report["connections"]["lost"] == [REDIS]
    # Either end may have closed it: no reason to call the upgrade degraded.
    assert report["outcome"] == "done"
    assert "1 of 2 connections still open" in text.render(report)


def test_an_agent_that_failed_half_way() -> None:
    result = {"schema": 1, "handover": "used", "id": "20261122-220201", "reason": "no root"}
    report = builder.carried_over(result, After())
    assert (report["outcome"], report["exit_code"], report["error"]) == ("failed", 1, "no root")
    assert report["blackout_s"] is None
    text.render(report)
    html.render(report)


LOCKED = Problem("unlock-network", "", "no memory for nft", "nft delete table inet rekernel_lock")
ATTEMPT = {"id": "20261122-220201", "old_release": "6.12.1", "new_release": "7.3.4"}


@pytest.mark.parametrize(
    ("error", "left", "outcome", "code"),
    [
        (RolledBackError("stopped by SIGTERM"), [], "rolled-back", 5),
        (RekernelError("redis could not be dumped"), [], "rolled-back", 5),
        (BlockedError("swap is in use"), [], "refused", 3),
        # Whatever it was that ended it: never as if all ran on.
        (RolledBackError("stopped by SIGTERM"), [LOCKED], "not-undone", 1),
        (RekernelError("x"), [LOCKED], "not-undone", 1),
        (BlockedError("swap is in use"), [LOCKED], "not-undone", 1),
    ],
)
def test_attempts_that_ended_before_the_jump(
    error: RekernelError, left: list[Problem], outcome: str, code: int
) -> None:
    phases = [Phase("freeze", 10**9, 2 * 10**9)]
    report = builder.undone(ATTEMPT, error, phases, left)
    assert (report["outcome"], report["exit_code"]) == (outcome, code)
    assert report["error"] == error.message
    assert report["phases"][0]["seconds"] == 1.0
    assert report["not_undone"] == [asdict(problem) for problem in left]
    for rendered in (text.render(report), html.render(report)):
        assert error.message in rendered
        assert ("all of it is undone" in rendered) == bool(left)
        for word in ("no memory for nft", "nft delete table inet rekernel_lock", "rekernel abort"):
            assert (word in rendered) == bool(left)
    listed = text.render_history([report])
    assert ("failed, and not all of it is undone" in listed) == bool(left)


def test_what_was_tried_again() -> None:
    report = builder.undone(ATTEMPT, BlockedError("swap is in use", "free memory"), (), [LOCKED])
    again = replace(LOCKED, error="no nft")
    assert builder.tried_again(report, [again]) == report | {"not_undone": [asdict(again)]}
    frozen = Problem("thaw", "/a", "busy", "echo 0")
    other = {"not_undone": [asdict(frozen)], "notes": [f"undone only later: {LOCKED}"]}
    assert builder.tried_again(report, [frozen]) == report | other
    then = builder.tried_again(report, [])
    assert (then["outcome"], then["exit_code"], then["not_undone"]) == ("rolled-back", 5, [])
    # It is no secret that they stood still until then.
    assert then["notes"] == [f"undone only later: {LOCKED}"]
    assert then["error"] == "swap is in use"
    assert then["hint"] == "everything runs on as before"
    # An attempt that had written down its own end, and was undone after that only.
    rolled_back = builder.undone(ATTEMPT, RolledBackError("stopped"))
    assert builder.tried_again(rolled_back, [LOCKED])["outcome"] == "not-undone"


def test_a_report_of_an_earlier_version() -> None:
    report = builder.undone(ATTEMPT, RolledBackError("stopped"))
    del report["not_undone"]
    assert text.not_undone(report) == []
    html.render(report)


def test_nothing_came_over() -> None:
    report = builder.not_carried(ATTEMPT, {}, "the manifest is damaged (checksum)")
    assert (report["outcome"], report["exit_code"]) == ("failed", 1)
    assert "the manifest is damaged" in report["error"]
    assert report["notes"] == []
    left = {"not_ended": {"redis-server.service": [7]}}
    report = builder.not_carried(ATTEMPT, left, "it stands still", ["swap is off"])
    assert report["notes"][0].startswith("redis-server.service: process 7 of before the upgrade")
    assert report["notes"][1] == "swap is off"


def test_a_unit_of_which_something_is_left(agent: dict[str, Any]) -> None:
    """It cannot be ended, so that the unit was not started: nobody may think that it was."""
    seen = after(agent)
    unit = agent["trees"][0]["unit"]
    agent["trees"][0]["failure"] = "criu ended with -9"
    agent["not_ended"] = {unit: [7, 8]}
    report = builder.carried_over(agent, seen)
    assert (report["outcome"], report["exit_code"]) == ("degraded", 4)
    (found,) = [item for item in report["units"] if item["unit"] == unit]
    assert found["not_ended"] == [7, 8]
    assert all(item["not_ended"] == [] for item in report["units"] if item is not found)
    rendered = " ".join(text.render(report).split())
    assert f"{unit}: processes 7, 8 of before the upgrade could not be ended" in rendered
    assert f"rm /run/rekernel/not-ended/{unit}, systemctl start {unit}" in rendered
    assert "7, 8 of before" in html.render(report)
    scope = f"libpod-{'ab' * 32}.scope"
    (note,) = builder.not_carried(ATTEMPT, {"not_ended": {scope: [7]}}, "x")["notes"]
    assert note.endswith("or once they have ended: podman start abababababab")


def test_text(agent: dict[str, Any]) -> None:
    report = builder.carried_over(agent, after(agent), drain=DRAIN, brownout_s=34.5)
    rendered = text.render(report)
    assert "6.12.107+deb13-cloud-amd64 → 7.3.4+deb13-cloud-amd64   done" in rendered
    assert "2 of 2 units carried over" in rendered
    assert "5013 = 5013 ✓" in rendered
    assert "2 of 2 connections still open ✓" in rendered
    assert "blackout 25.83 s" in rendered
    assert "load kernel" not in rendered
    assert "1,924 pages" in rendered
    assert "34.50 s  until every page was home" in rendered
    assert "process 7 has a KVM virtual machine open" in rendered
    assert "\x1b" not in rendered
    assert "\x1b[32m" in text.render(report, Paint(True))


def test_processes_compared(agent: dict[str, Any]) -> None:
    seen = after(agent)
    assert "compared" not in text.render(builder.carried_over(agent, seen))
    same = builder.carried_over(agent, replace(seen, compared=3))
    assert "3 processes compared with before ✓" in text.render(same)
    lines = [f"process {pid} (<x>): nice value was 0 and is {pid}" for pid in range(20)]
    report = builder.carried_over(agent, replace(seen, compared=20, differences=lines))
    rendered = text.render(report)
    assert lines[0] in rendered
    assert lines[19] not in rendered
    assert "and 8 more: rekernel report --all" in rendered
    assert lines[19] in text.render(report, everything=True)
    assert "process 19 (&lt;x&gt;)" in html.render(report)
    # What happened is told, whether somebody meant it to happen is not known.
    assert report["outcome"] == "done"


def test_what_a_program_may_have_changed_by_itself(agent: dict[str, Any]) -> None:
    """A busy database opens and closes files all the time: that hides nothing that counts."""
    lines = [f"process 7 (<p>): descriptor {n} was /base/{n} and is closed" for n in range(20)]
    seen = replace(after(agent), compared=3, changes=lines)
    report = builder.carried_over(agent, seen)
    assert report["changes"] == lines
    rendered = text.render(report)
    assert "3 processes compared with before ✓" in rendered
    assert "/base/" not in rendered
    assert "20 changes that a program may have made by itself: rekernel report --all" in rendered
    whole = text.render(report, everything=True)
    assert all(line in whole for line in lines)
    page = html.render(report)
    assert "process 7 (&lt;p&gt;): descriptor 19" in page
    # Not with what counts.
    assert "what differs" not in whole + page
    both = builder.carried_over(agent, replace(seen, differences=["process 7 (p): user IDs …"]))
    assert "what differs:\n  process 7 (p): user IDs …\n" in text.render(both)


def test_what_is_different_with_many_processes_takes_one_line(agent: dict[str, Any]) -> None:
    lines = [f"process {pid} (sh): terminal was {pid} and is 0" for pid in range(20)]
    lines.append("process 99 (sh): descriptor 3 was /a and is closed")
    seen = replace(after(agent), compared=20, differences=lines)
    rendered = text.render(builder.carried_over(agent, seen))
    assert "\n  20 processes: terminal is 0 now\n" in rendered
    assert lines[-1] in rendered
    assert "(sh): terminal was 7" not in rendered


def test_text_while_pages_are_on_their_way(agent: dict[str, Any]) -> None:
    drain = {"state": "draining", "bytes_left": 3 << 20}
    rendered = text.render(builder.carried_over(agent, after(agent), drain=drain))
    assert "3.0 MiB still on their way home" in rendered


def test_text_of_the_image_backend(agent: dict[str, Any]) -> None:
    agent["memory"]["backend"] = "image"
    assert "through images on disk" in text.render(builder.carried_over(agent, after(agent)))


def test_phases_within_phases_count_once(agent: dict[str, Any]) -> None:
    report = builder.carried_over(agent, after(agent))
    inside = sum(item["seconds"] for item in text.blackout_phases(report))
    rest = text.unaccounted(report)
    assert 0 < rest < report["blackout_s"]
    report["phases"].append(dict(report["phases"][-1], name="inner"))
    assert text.unaccounted(report) == pytest.approx(rest)
    assert inside + rest == pytest.approx(report["blackout_s"], rel=0.1)


def test_html_needs_nothing_else(agent: dict[str, Any]) -> None:
    page = html.render(builder.carried_over(agent, after(agent), drain=DRAIN, brownout_s=34.5))
    assert "http" not in page
    assert "<script" not in page
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == page.count("</svg>") == 1
    assert "kexec and kernel boot" in page
    assert "virt&lt;ual&gt;.service" in page
    assert "virt<ual>" not in page


def test_html_without_a_jump() -> None:
    page = html.render(builder.undone(ATTEMPT, RolledBackError("stopped", "see <x>")))
    assert "<svg" not in page
    assert "see &lt;x&gt;" in page


def test_history_table(agent: dict[str, Any]) -> None:
    reports = [
        builder.carried_over(agent, after(agent)),
        builder.undone(ATTEMPT, RolledBackError("stopped")),
    ]
    lines = text.render_history(reports).splitlines()
    assert lines[0].split() == ["id", "kernels", "blackout", "carried", "outcome"]
    assert "25.83 s" in lines[1]
    assert "2/2" in lines[1]
    assert "undone" in lines[2]
