"""Carry out a plan as a whole or not at all, and take back what is on record."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterator

from rekernel.carry.memory import region
from rekernel.errors import RekernelError
from rekernel.setup import bootloader, files
from rekernel.setup.files import RECORD, Content, Record, Written
from rekernel.setup.host import Host
from rekernel.setup.plan import Plan

_log = logging.getLogger(__name__)


def _reload(host: Host) -> None:
    # In a chroot there is no manager to tell.
    if host.path("/run/systemd/system").is_dir():
        host.run(["systemctl", "daemon-reload"])


def _next_record(host: Host, plan: Plan, old: Record | None) -> Record:
    """The record with everything that the plan will change, and how it was."""
    new = copy.deepcopy(old) if old is not None else Record(plan.region, plan.loader.name)
    new.region, new.store = plan.region, plan.store
    new.boot_loader, new.state = plan.loader.name, "applying"
    paths = [RECORD, *(change.path for change in plan.files)]
    for path in paths:
        for item in files.missing_parents(host, path):
            if item not in new.directories:
                new.directories.append(item)
    for change in plan.files:
        known = new.file(change.path)
        before = known.before if known is not None else files.read(host.path(change.path))
        if known is not None:
            new.files.remove(known)
        new.files.append(Written(change.path, files.digest(change.content), before))
    new.enabled += [name for name in plan.enable if name not in new.enabled]
    return new


def apply(host: Host, plan: Plan, old: Record | None) -> Record:
    """Do what the plan says; returns the new record.

    The record is on disk before the first change, so that `setup --undo` finds everything even
    if this process is killed. On any exception what was done is taken back first.
    """
    new = _next_record(host, plan, old)
    former = {path: files.read(host.path(path)) for path in (c.path for c in plan.files)}
    record_before = files.read(host.path(RECORD))
    made = [item for item in new.directories if not host.path(item).exists()]
    updated = False
    try:
        for item in made:
            host.path(item).mkdir()
        files.save_record(host, new)
        for change in plan.files:
            present = former[change.path]
            content = (
                Content(change.content, present.mode, present.uid, present.gid)
                if present is not None
                else Content(change.content, 0o644, os.geteuid(), os.getegid())
            )
            files.write(host.path(change.path), content)
        for name in plan.enable:
            host.run(["systemctl", "enable", "--", name])
        _reload(host)
        if plan.update_loader:
            updated = True
            plan.loader.update(host, plan.words)
        new.state = "done"
        files.save_record(host, new)
    except BaseException:
        _roll_back(host, plan, former, made, updated, record_before)
        raise
    return new


def _roll_back(
    host: Host,
    plan: Plan,
    former: dict[str, Content | None],
    made: list[str],
    updated: bool,
    record_before: Content | None,
) -> None:
    failures: list[Exception] = []

    @contextlib.contextmanager
    def attempt() -> Iterator[None]:
        try:
            yield
        except (RekernelError, OSError) as error:
            _log.error("cannot take back: %s", error)
            failures.append(error)

    for path, content in former.items():
        with attempt():
            files.restore(host.path(path), content)
    for name in plan.enable:
        with attempt():
            host.run(["systemctl", "disable", "--", name])
    with attempt():
        _reload(host)
    if updated:
        with attempt():
            plan.loader.update(host, ())
    if failures:
        # The record stays in the state "applying": the way back for `setup --undo`.
        return
    with attempt():
        files.restore(host.path(RECORD), record_before)
        files.remove_empty(host, made)


def undo(host: Host, record: Record, tell: Callable[[str, str], None]) -> None:
    """Take back everything on record; ``tell`` gets what was done with which path or unit.

    May be repeated after a failure: the record goes last.
    """
    loader = bootloader.by_name(record.boot_loader)
    for item in reversed(record.files):
        _take_back(host, item, loader, tell)
    for name in record.enabled:
        host.run(["systemctl", "disable", "--", name], check=False)
        tell("disabled", name)
    _reload(host)
    if loader.file is not None and record.file(loader.file) is not None:
        loader.update(host, ())
        tell("ran", loader.command)
    elif loader.file is None:
        tell("remove by hand from the kernel command line:", _words(record))
    host.path(RECORD).unlink()
    files.remove_empty(host, record.directories)


def _words(record: Record) -> str:
    return " ".join(region.parameters(record.region, record.store))


def _take_back(
    host: Host,
    item: Written,
    loader: bootloader.BootLoader,
    tell: Callable[[str, str], None],
) -> None:
    path = host.path(item.path)
    current = files.read(path)
    if current is None or current == item.before:
        # Someone was here before us, or an undo that was interrupted.
        if current is None and item.before is not None:
            files.restore(path, item.before)
            tell("restored", item.path)
        return
    if files.digest(current.data) != item.digest:
        kept = loader.without(current.data) if item.path == loader.file else None
        if kept is not None:
            files.write(path, Content(kept, current.mode, current.uid, current.gid))
            tell("removed rekernel's words from", item.path)
            return
        saved = path.with_name(f"{path.name}.saved")
        files.write(saved, current)
        tell("kept your changes as", f"{item.path}.saved")
    files.restore(path, item.before)
    tell("restored" if item.before is not None else "removed", item.path)
