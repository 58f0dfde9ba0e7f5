"""The packet filter as it stands: tables as nft takes them, and as iptables does that made them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rekernel.records import field, record
from rekernel.run import CommandFailedError, CommandNotFoundError, run, run_json

# Of podman's netavark, which makes it anew with the first container.
_OF_OTHERS = ("inet netavark",)
# Family -> the program that made a table, if it has parts that nft can only show.
_IPTABLES = {"ip": "iptables-nft", "ip6": "ip6tables-nft"}
_HEADER = re.compile(r"table (\S+ \S+) \{")
# Of a table that goes with the program that made it (nft(8)): the next one takes it as its own.
_OWNED = re.compile(r"^\tflags .*\bowner\b.*\n", re.MULTILINE)
# They are nobody's table.
_SETS = re.compile(r"--(match|map)-set |-j SET ")


@record
class PacketFilter:
    """``tables``: "FAMILY NAME" -> input for nft. ``saved``: "PROGRAM TABLE" -> its input."""

    tables: dict[str, str] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)
    # What could not be set up again, in words.
    problems: tuple[str, ...] = ()


def observe() -> PacketFilter:
    """Tables of the packet filter but those that others make again. Raises CommandFailedError."""
    tables = dict(split(run(["nft", "-s", "list", "ruleset"])))
    for name in _OF_OTHERS:
        tables.pop(name, None)
    if not tables:
        return PacketFilter()
    saved: dict[str, str] = {}
    problems = []
    for name in _made_by_iptables(run_json(["nft", "-j", "-t", "list", "ruleset"])):
        if tables.pop(name, None) is None:
            continue
        family, _, table = name.partition(" ")
        try:
            program = _IPTABLES[family]
            text = run([f"{program}-save", "-t", table])
        except (KeyError, CommandNotFoundError, CommandFailedError):
            problems.append(f"packet filter table {name} (neither nft nor iptables writes it out)")
            continue
        if "incompatible" in text:
            problems.append(f"packet filter table {name} (partly made by iptables, partly by nft)")
        if _SETS.search(text):
            problems.append(f"packet filter table {name} (it uses sets of ipset)")
        saved[f"{program}-restore {table}"] = text
    owned = {name for name, text in tables.items() if _OWNED.search(text)}
    problems += _refused("".join(tables[name] for name in tables if name not in owned))
    tables |= {name: _OWNED.sub("", tables[name]) for name in owned}
    return PacketFilter(tables, saved, tuple(problems))


def split(ruleset: str) -> Iterator[tuple[str, str]]:
    """Each table of a listing: "FAMILY NAME", and its text."""
    name = ""
    lines: list[str] = []
    for line in ruleset.splitlines(keepends=True):
        header = _HEADER.match(line)
        if header:
            name = header[1]
        if name:
            lines.append(line)
        if line == "}\n":
            yield name, "".join(lines)
            name, lines = "", []


def _made_by_iptables(listed: dict[str, Any]) -> list[str]:
    """Tables with rules that only iptables can write out: nft has no syntax for its extensions."""
    found: dict[str, None] = {}
    for item in listed["nftables"]:
        rule = item.get("rule", {})
        if any("xt" in part for part in rule.get("expr", ()) if isinstance(part, dict)):
            found.setdefault(f"{rule['family']} {rule['table']}")
    return list(found)


def _refused(ruleset: str) -> list[str]:
    """Why nft would not take what it lists; it is asked while nothing depends on it."""
    try:
        run(["nft", "-c", "-f", "-"], stdin=f"flush ruleset\n{ruleset}")
    except CommandFailedError as error:
        lines = [line for line in error.output.splitlines() if "Error" in line]
        return [f"packet filter (nft does not take what it lists: {(lines or ['?'])[0]})"]
    return []
