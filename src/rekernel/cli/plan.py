"""``rekernel plan``: what an upgrade would do."""

from __future__ import annotations

import argparse
from typing import Any

from rekernel import policy
from rekernel.attempt import brownout
from rekernel.census.verdicts import Verdict
from rekernel.cli.common import (
    VerbParsers,
    add_policy_options,
    add_verb,
    paint_for_stdout,
    print_json,
    require_root,
)
from rekernel.cli.verdicts import unit_document, verdict_lines
from rekernel.errors import BlockedError, BusyError
from rekernel.plan import plan as planning
from rekernel.plan.confirmed import Confirmed, Expected
from rekernel.plan.plan import Plan
from rekernel.plan.room import Place, Room
from rekernel.report.history import History
from rekernel.report.layout import Paint, human_bytes, human_seconds, plural
from rekernel.report.prediction import Copied, Prediction, boot_seconds, predict
from rekernel.systemd.units import booted

# Bytes that take long enough to copy.
_WORTH_A_LINE = 32 << 20


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "plan",
        "show what an upgrade would do",
        "Show what an upgrade would do: the kernel, the units and what becomes of them, where "
        "their memory lies, and the blackout to expect. Nothing is changed.",
    )
    add_policy_options(parser)


def run(args: argparse.Namespace) -> int:
    """Returns 0, or 3 if a unit blocks or there is no room. Raises RekernelError, as the upgrade
    would.
    """
    require_root()
    plan, prediction = decide(args)
    show(plan, prediction, in_json=args.json)
    blocked = plan.having(Verdict.BLOCKS) or plan.room.lack
    return BlockedError.exit_code if blocked else 0


def decide(args: argparse.Namespace) -> tuple[Plan, Prediction]:
    """The plan for these options, and what it will cost. Raises RekernelError."""
    made = planning.make(args.kernel, policy.load(args.carry, args.restart), args.memory)
    return made, prediction_for(made)


def prediction_for(plan: Plan) -> Prediction:
    """The blackout to expect of a plan."""
    return predict(
        backend=plan.backend,
        trees=len(plan.having(Verdict.CARRIED)),
        resident_bytes=plan.resident_bytes,
        container_bytes=plan.container_bytes,
        copied=Copied(
            plan.room.bytes_in(Place.STORE) + plan.room.strays, plan.room.bytes_in(Place.DISK)
        ),
        past=History().reports(),
        boot_seconds=boot_seconds(booted()),
    )


def to_confirm(plan: Plan, prediction: Prediction) -> Confirmed:
    """What somebody says yes to."""
    return Confirmed(
        release=plan.kernel.release,
        image=str(plan.kernel.image),
        modules=str(plan.kernel.modules),
        running=plan.running,
        backend=plan.backend,
        units=tuple(
            Expected(item.unit.name, str(item.verdict), item.reason) for item in plan.units
        ),
        blackout_s=float(prediction.seconds),
        basis=prediction.basis,
        samples=prediction.samples,
    )


def renew(args: argparse.Namespace, confirmed: Confirmed) -> tuple[Plan, tuple[str, ...]]:
    """The plan that was confirmed, renewed for these options: see plan.renew()."""
    return planning.renew(confirmed, policy.load(args.carry, args.restart))


def show(plan: Plan, prediction: Prediction, *, in_json: bool) -> None:
    """Print it."""
    if in_json:
        print_json(document(plan, prediction))
    else:
        print(render(plan, prediction, paint_for_stdout()))


def document(plan: Plan, prediction: Prediction) -> dict[str, Any]:
    """What --json prints."""
    where = plan.where
    return {
        "schema": 1,
        "old_release": plan.running,
        "new_release": plan.kernel.release,
        "image": str(plan.kernel.image),
        "backend": plan.backend,
        "region": {"start": where.whole.start, "size": where.whole.size} if where else None,
        "units": [unit_document(item) for item in plan.units],
        "memory": {
            "resident_bytes": plan.resident_bytes,
            "container_bytes": plan.container_bytes,
            "in_region_bytes": plan.pages.in_region_bytes if plan.pages else None,
            "stray_bytes": plan.pages.stray_bytes if plan.pages else None,
            "growth_bytes": plan.growth_bytes,
        },
        "room": room_document(plan),
        "prediction": {
            "blackout_s": prediction.seconds,
            "basis": prediction.basis,
            "samples": prediction.samples,
        },
        "warnings": list(plan.warnings),
    }


def room_document(plan: Plan) -> dict[str, Any]:
    """What is written down in the blackout, and where there is room for it."""
    room = plan.room
    free = room.free
    sizes = {item.name: item for item in room.items if not item.is_tmpfs}
    return {
        "units": [
            {
                "unit": item.unit,
                "processes": item.processes,
                "resident_bytes": item.resident,
                "shared_bytes": item.shared,
                "private_bytes": item.written,
                "queued_bytes": item.queued,
                "image_bytes": sizes[item.unit].size,
                "place": str(sizes[item.unit].place),
            }
            for item in plan.usages
            if not item.container
        ],
        "tmpfs": [
            {"target": item.name, "bytes": item.size, "place": str(item.place)}
            for item in room.items
            if item.is_tmpfs
        ],
        "store": {
            "size": free.store,
            "capacity": room.capacity,
            "needed": room.bytes_in(Place.STORE),
            "stray_bytes": room.strays,
        },
        "memory": {"available": free.memory, "needed": room.scratch},
        "disk": {
            "directory": free.images.directory,
            "free": free.images.free,
            "needed": room.bytes_in(Place.DISK),
        },
        "lack": {"reason": room.lack.reason, "remedy": room.lack.remedy} if room.lack else None,
    }


def _images(room: Room) -> list[str]:
    """What is copied in the blackout, if it is worth a line."""
    store, disk = room.bytes_in(Place.STORE), room.bytes_in(Place.DISK)
    if not room.free.store or store + disk < _WORTH_A_LINE:
        return []
    parts = []
    if store >= _WORTH_A_LINE:
        large = [
            f"{item.name} ({human_bytes(item.size)})"
            for item in room.items
            if item.place is Place.STORE and item.size >= _WORTH_A_LINE
        ]
        names = f": {', '.join(large)}" if large else ""
        parts.append(f"{human_bytes(store)} by way of the handover store{names}")
    slow = room.by_way_of_disk
    if slow is not None:
        parts.append(f"{slow.reason} → {slow.remedy}")
    heads = ("copied    ", "          ")
    return [head + part for head, part in zip(heads, parts, strict=False)]


def _memory(plan: Plan) -> str:
    resident = human_bytes(plan.resident_bytes)
    if plan.where is None:
        return f"{resident} resident, through images on disk"
    if plan.pages is None:
        return f"{resident} resident, left in the carry region"
    inside = human_bytes(plan.pages.in_region_bytes)
    return (
        f"{resident} resident; private pages: {inside} in the carry region stay where they are, "
        f"{human_bytes(plan.pages.stray_bytes)} outside of it are copied"
    )


def render(plan: Plan, prediction: Prediction, paint: Paint) -> str:
    """What people see."""
    carried = plan.having(Verdict.CARRIED)
    blocking = plan.having(Verdict.BLOCKS)
    lines = [
        f"{paint.bold(plan.running)} → {paint.bold(plan.kernel.release)}",
        "",
        *verdict_lines(plan.units, paint),
        "",
        f"carried   {plural(len(carried), 'unit')}, "
        f"{plural(sum(len(item.processes) for item in carried), 'process')}",
        f"memory    {_memory(plan)}",
        *_images(plan.room),
        f"blackout  about {paint.bold(human_seconds(prediction.seconds))} "
        f"{paint.dim(f'({prediction.explanation})')}",
    ]
    warnings = list(plan.warnings)
    if plan.growth_bytes:
        warnings.append(
            f"forked processes take {human_bytes(plan.growth_bytes)} more afterwards: "
            "pages that they share come back as a copy for each"
        )
    lines += [paint.warn(f"warning: {text}") for text in warnings]
    lines += [
        paint.bad(f"blocked by {item.unit.name}: {item.reason}; {item.remedy}") for item in blocking
    ]
    if plan.room.lack is not None:
        lack = plan.room.lack
        lines.append(paint.bad(f"blocked: {lack.reason}; {lack.remedy}"))
    return "\n".join(lines)


def refuse_or_pass(args: argparse.Namespace, plan: Plan, prediction: Prediction) -> None:
    """Whatever stands against this plan. Raises BlockedError, BusyError."""
    last = brownout.observe()
    if last.under_way and last.is_stuck:
        raise BusyError(
            "the last upgrade is not finished: processes wait for pages that nobody can bring",
            "`rekernel report` names them: restart their units",
        )
    if last.under_way:
        raise BusyError(
            "the last upgrade is not finished: carried pages are still on their way home",
            "`rekernel status` shows how far it is",
        )
    blocking = plan.having(Verdict.BLOCKS)
    if blocking:
        names = ", ".join(f"{item.unit.name} ({item.reason})" for item in blocking)
        raise BlockedError(f"these units block the upgrade: {names}", blocking[0].remedy)
    plan.room.assert_enough()
    limit = args.max_blackout
    if limit is None:
        limit = policy.load(args.carry, args.restart).max_blackout
    if limit is not None and prediction.seconds > limit:
        raise BlockedError(
            f"the predicted blackout is {human_seconds(prediction.seconds)} "
            f"({prediction.explanation}), more than {human_seconds(limit)}",
            "allow more with --max-blackout, or carry less with --restart UNIT",
        )
