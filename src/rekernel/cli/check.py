"""``rekernel check``: is this host ready, and what becomes of every unit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rekernel import policy
from rekernel.census import processes, wants
from rekernel.census.processes import Account, Fate, account, totals
from rekernel.census.verdicts import UnitVerdict, Verdict, judge
from rekernel.cli.common import (
    VerbParsers,
    add_memory_option,
    add_verb,
    paint_for_stdout,
    print_json,
    require_root,
)
from rekernel.cli.verdicts import unit_document, verdict_lines
from rekernel.criu.canary import Background
from rekernel.kernel.installed import choose, installed, running_release
from rekernel.plan.probes import PROBES, Context, Finding, Status, probe_all, with_memory
from rekernel.report.layout import Paint, table
from rekernel.systemd.units import running_units

BLOCKED = 3


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "check",
        "tell whether this host is ready, and what becomes of every unit",
        "Probe whether this host is ready for an upgrade, and tell for every unit whether it "
        "would be carried, restarted, booted afresh or block the upgrade; why; and what to do. "
        "A small test process of its own is dumped and restored. Exit code 3 if it is not ready.",
    )
    parser.add_argument(
        "kernel", nargs="?", metavar="KERNEL", help="the release to change to (default: the newest)"
    )
    add_memory_option(parser)
    parser.add_argument(
        "--all", action="store_true", help="also tell for every process what becomes of it"
    )


def run(args: argparse.Namespace) -> int:
    """Returns 0 if the host is ready, else 3. Raises RekernelError."""
    require_root()
    kernels = installed()
    kernel = choose(args.kernel, kernels) if args.kernel or kernels else None
    canary = Background()
    found = processes.observe()
    parents = {process.pid: process.parent for process in found}
    units = judge(running_units(), policy.load(), parents)
    if kernel is not None:
        units = wants.judge(units, kernel, running_release())
    context = Context(backend=args.memory, units=tuple(units), canary=canary.result)
    findings = probe_all(with_memory(context), PROBES)
    ready = is_ready(findings, units)
    # Looked at again: criu and its canary came and went meanwhile.
    accounts = account(processes.observe(), units) if args.all else []
    if args.json:
        print_json(document(findings, units, ready) | process_document(accounts))
    else:
        paint = paint_for_stdout()
        for line in process_lines(accounts, paint):
            print(line)
        print(render(findings, units, ready, paint))
    return 0 if ready else BLOCKED


def is_ready(findings: Sequence[Finding], units: Sequence[UnitVerdict]) -> bool:
    """Whether an upgrade could be started."""
    failed = any(item.status is Status.FAIL for item in findings)
    return not failed and not any(item.verdict is Verdict.BLOCKS for item in units)


def document(
    findings: Sequence[Finding],
    units: Sequence[UnitVerdict],
    ready: bool,
) -> dict[str, Any]:
    """What --json prints."""
    return {
        "schema": 1,
        "ready": ready,
        "probes": [
            {
                "name": item.name,
                "status": str(item.status),
                "reason": item.reason,
                "remedy": item.remedy,
            }
            for item in findings
        ],
        "units": [unit_document(item) for item in units],
    }


def process_document(accounts: Sequence[Account]) -> dict[str, Any]:
    """What --all adds to it."""
    if not accounts:
        return {}
    return {
        "processes": [
            {
                "pid": item.process.pid,
                "command": item.process.command,
                "fate": str(item.fate),
                "owner": item.owner,
                "reason": item.reason,
            }
            for item in accounts
        ],
        "totals": {str(fate): count for fate, count in totals(accounts).items()},
    }


def process_lines(accounts: Sequence[Account], paint: Paint) -> list[str]:
    """Every process but the kernel's own threads, and how many there are of each kind."""
    if not accounts:
        return []
    rows = [
        [str(item.process.pid), item.process.command, str(item.fate), item.owner, item.reason]
        for item in accounts
        if item.fate is not Fate.KERNEL
    ]
    counts = [f"{count} {fate}" for fate, count in totals(accounts).items() if count]
    head = ("PID", "process", "verdict", "belongs to", "why")
    return [
        *table(rows, head, paint=paint, right=(0,)),
        "",
        f"{len(accounts)} processes: {', '.join(counts)}",
        "",
    ]


def _painted(status: Status, paint: Paint) -> str:
    return {Status.OK: paint.good, Status.WARN: paint.warn, Status.FAIL: paint.bad}[status](
        str(status)
    )


def render(
    findings: Sequence[Finding],
    units: Sequence[UnitVerdict],
    ready: bool,
    paint: Paint,
) -> str:
    """What people see."""
    rows = []
    for item in findings:
        reason = item.reason + (f" {paint.dim('→')} {item.remedy}" if item.remedy else "")
        rows.append([_painted(item.status, paint), item.name, reason])
    lines = [*table(rows, indent=""), ""]
    lines += verdict_lines(units, paint)
    lines.append("")
    if ready:
        lines.append(paint.good("This host is ready: rekernel plan"))
    else:
        failed = [item.name for item in findings if item.status is Status.FAIL]
        failed += [item.unit.name for item in units if item.verdict is Verdict.BLOCKS]
        lines.append(paint.bad(f"This host is not ready: {', '.join(failed)}"))
    return "\n".join(lines)
