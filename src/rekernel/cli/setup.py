"""rekernel setup: prepare this machine once, or take that back."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from rekernel import policy
from rekernel.attempt.lock import exclusive
from rekernel.carry.memory import region
from rekernel.cli.common import VerbParsers, add_verb, print_json, require_root
from rekernel.errors import NothingToDoError, UsageError
from rekernel.setup import dropins, files, operation, plan
from rekernel.setup.files import Record
from rekernel.setup.host import Host
from rekernel.setup.plan import Plan, Wish
from rekernel.systemd.units import Unit, running_services

SCHEMA = 1
_NOTHING = NothingToDoError.exit_code
_DECLINED = 1


def _size(text: str) -> int:
    try:
        size = region.parse_bytes(text)
    except ValueError:
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: 2G, 1536M")
    return size


def add_parser(subparsers: VerbParsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "setup",
        "prepare this machine for upgrades, once",
        "Reserve the carry region on the kernel command line, keep low process numbers free, and "
        "write the drop-ins that some units need to be carried. Everything is listed before it is "
        "done, and --undo takes it back.",
    )
    parser.add_argument(
        "--region", type=_size, metavar="SIZE", help="of the carry region: 2G, 1536M (default: "
        "half of the memory above 4 GiB)",
    )  # fmt: skip
    parser.add_argument(
        "--store", type=_size, metavar="SIZE", help="of the part of it that an upgrade hands over "
        "in: shared memory must fit in, else it goes by way of the disk (default, and at least: a "
        "sixteenth)",
    )  # fmt: skip
    parser.add_argument("--undo", action="store_true", help="take back what setup changed")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, only")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace, host: Host | None = None) -> int:
    """Returns the exit code; raises RekernelError."""
    host = host if host is not None else Host()
    require_root()
    if args.undo and (args.region is not None or args.store is not None):
        raise UsageError("--undo takes no --region and no --store")
    with contextlib.nullcontext() if args.dry_run else exclusive(host.path("/run/rekernel/lock")):
        record = files.load_record(host)
        return _undo(args, host, record) if args.undo else _setup(args, host, record)


def _consent(args: argparse.Namespace) -> bool:
    if args.yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("nobody to ask: there is no terminal", "give --yes, or --dry-run to look")
    print("\nDo this? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _units(host: Host) -> list[Unit]:
    return running_services() if host.path("/run/systemd/system").is_dir() else []


def _setup(args: argparse.Namespace, host: Host, record: Record | None) -> int:
    wishes = policy.load(config=host.path(str(policy.CONFIG)))
    todo = plan.make(host, record, Wish(args.region, args.store), _units(host), wishes)
    if todo.empty:
        _show(args, todo, "unchanged")
        return _NOTHING
    if args.dry_run:
        _show(args, todo, "planned")
        return 0
    if not args.json:
        _print_plan(todo)
    if not _consent(args):
        print("Nothing was changed.", file=sys.stderr)
        return _DECLINED
    operation.apply(host, todo, record)
    _show(args, todo, "changed")
    return 0


def _json(todo: Plan, state: str) -> dict[str, Any]:
    by_hand = todo.loader.file is None
    return {
        "schema": SCHEMA,
        "action": "setup",
        "state": state,
        "region": {"start": todo.region.start, "end": todo.region.end, "size": todo.region.size},
        "store_size": todo.store_bytes,
        "kernel_parameters": todo.words,
        "boot_loader": todo.loader.name,
        "add_by_hand": todo.words if by_hand and todo.reboot else [],
        "changes": [
            *({"kind": "write", "what": item.path, "why": item.why} for item in todo.files),
            *({"kind": "enable", "what": name, "why": "acts at boot"} for name in todo.enable),
            *(
                [{"kind": "run", "what": todo.loader.command, "why": "boot loader"}]
                if todo.update_loader
                else []
            ),
        ],
        "restart_units": list(todo.restart),
        "reboot_required": todo.reboot,
    }


def _print_plan(todo: Plan) -> None:
    mib = todo.region.size // region.MIB
    total = todo.memory.total // region.MIB
    store = todo.store_bytes // region.MIB
    print(f"Carry region: {mib} MiB at {todo.region.start:#x}, of {total} MiB; store: {store} MiB")
    print("Setup will:")
    for item in todo.files:
        print(f"  write   {item.path}  ({item.why})")
    for name in todo.enable:
        print(f"  enable  {name}")
    if todo.update_loader:
        print(f"  run     {todo.loader.command}")
    print(f"  write   {files.RECORD}  (for --undo; from now on process numbers start at 10000)")


def _show(args: argparse.Namespace, todo: Plan, state: str) -> None:
    if args.json:
        print_json(_json(todo, state))
        return
    if state == "planned":
        _print_plan(todo)
        print("Nothing was changed: --dry-run.")
        return
    print("Done." if state == "changed" else "Nothing to do: this machine is set up like that.")
    if todo.loader.file is None and todo.reboot:
        print("This boot loader is not known. Add to the kernel command line:")
        print("  " + " ".join(todo.words))
    if todo.restart:
        print("The reboot restarts what needs its new drop-in: " + ", ".join(todo.restart))
    if todo.reboot:
        print("Reboot once, so that the kernel reserves the region. Then: rekernel check")


def _undo(args: argparse.Namespace, host: Host, record: Record | None) -> int:
    done: list[dict[str, str]] = []
    if record is None:
        if args.json:
            print_json(_undo_json("unchanged", done, reboot=False))
        else:
            print("Nothing to do: there is no record of a setup.")
        return _NOTHING
    reboot = region.from_cmdline(host.text("/proc/cmdline")) is not None
    planned = [
        *({"kind": "take back", "what": item.path} for item in reversed(record.files)),
        *({"kind": "disable", "what": name} for name in record.enabled),
    ]
    if args.dry_run and args.json:
        print_json(_undo_json("planned", planned, reboot=reboot))
        return 0
    if not args.json:
        print("Undo will:")
        for change in planned:
            print(f"  {change['kind']:9} {change['what']}")
    if args.dry_run:
        print("Nothing was changed: --dry-run.")
        return 0
    if not _consent(args):
        print("Nothing was changed.", file=sys.stderr)
        return _DECLINED
    operation.undo(host, record, lambda what, which: done.append({"kind": what, "what": which}))
    if args.json:
        print_json(_undo_json("changed", done, reboot=reboot))
        return 0
    for change in done:
        print(f"{change['kind']} {change['what']}")
    print("Done.")
    if any(item.path.startswith(dropins.UNIT_DIRECTORY) for item in record.files):
        print("Units that had a drop-in get their own settings back when they are restarted.")
    if reboot:
        print("The region is ordinary memory again after the next reboot.")
    return 0


def _undo_json(state: str, changes: list[dict[str, str]], *, reboot: bool) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "action": "undo",
        "state": state,
        "changes": changes,
        "reboot_required": reboot,
    }
