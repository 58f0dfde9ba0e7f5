"""A report as one HTML file: nothing is loaded from anywhere, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rekernel.report.layout import human_bytes, human_seconds, plural
from rekernel.report.text import (
    BAD,
    blackout_phases,
    not_undone,
    outcome_words,
    unaccounted,
    when,
)

_PAGE = 4096

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #68727f; --paper: #fff; --line: #e2e6ea;
  --card: #f6f8fa; --good: #1a7f4b; --warn: #9a6700; --bad: #c62f2f; --old: #4a7fc1;
  --new: #d9822b; --kexec: #8b5fbf; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #98a2b0; --paper: #14181e;
  --line: #2c333d; --card: #1c222a; --good: #4cc38a; --warn: #e0b354; --bad: #f47171;
  --old: #6fa3e0; --new: #eaa15a; --kexec: #b08ae0; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.2rem 4rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem }
p { margin: .3rem 0 } .soft { color: var(--soft) } .good { color: var(--good) }
.warn { color: var(--warn) } .bad { color: var(--bad) }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.4rem 0 }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .7rem 1rem; flex: 1 1 9rem } .card b { display: block; font-size: 1.35rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top } th { color: var(--soft); font-weight: 500 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
code { font: .92em ui-monospace, monospace } svg { width: 100%; height: auto; display: block }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif } svg .soft { fill: var(--soft) }
.old { fill: var(--old) } .new { fill: var(--new) } .kexec { fill: var(--kexec) }
.grid { stroke: var(--line) }
"""

_LABEL = 170
_WIDTH = 960
_ROW = 26


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells}</tr>{body}</table></div>'


def _step(seconds: float) -> float:
    """A round distance between two lines of the grid, about eight of them."""
    for step in (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60):
        if seconds / step <= 10:
            return float(step)
    return 300.0


def timeline(report: Mapping[str, Any]) -> str:
    """The blackout as an SVG picture: one row per phase; "" if there was none."""
    if report["blackout_s"] is None:
        return ""
    start, total = report["frozen_ns"], float(report["blackout_s"])
    phases = blackout_phases(report)
    height = _ROW * len(phases) + 34
    scale = (_WIDTH - _LABEL - 70) / total if total else 1.0
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="the phases of the blackout">'
    ]
    step = _step(total)
    at = 0.0
    while at <= total + 1e-9:
        x = _LABEL + at * scale
        parts.append(
            f'<line class="grid" x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{height - 24}"/>'
            f'<text class="soft" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{at:g} s</text>'
        )
        at += step
    for index, phase in enumerate(phases):
        offset = max(0.0, (phase["start_ns"] - start) / 1e9)
        length = min(float(phase["seconds"]), total - offset)
        x, y = _LABEL + offset * scale, index * _ROW + 6
        wide = max(length * scale, 1.5)
        kind = "kexec" if "kernel boot" in phase["name"] else phase["side"]
        words = human_seconds(phase["seconds"])
        parts.append(
            f'<text x="{_LABEL - 10}" y="{y + 14}" text-anchor="end">{escape(phase["name"])}</text>'
            f'<rect class="{escape(kind)}" x="{x:.1f}" y="{y}" width="{wide:.1f}" height="18" '
            f'rx="3"><title>{escape(phase["name"])}: {words}</title></rect>'
            f'<text class="soft" x="{x + wide + 6:.1f}" y="{y + 14}">{words}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def _cards(report: Mapping[str, Any]) -> str:
    cards = []
    if report["blackout_s"] is not None:
        cards.append(("blackout", human_seconds(report["blackout_s"])))
    carried = [unit for unit in report["units"] if unit["verdict"] == "carried"]
    if carried:
        kept = sum(1 for unit in carried if unit["kept"])
        cards.append(("units carried over", f"{kept} of {len(carried)}"))
    connections = report["connections"]
    if connections["before"]:
        kept = len(connections["before"]) - len(connections["lost"])
        cards.append(("connections still open", f"{kept} of {len(connections['before'])}"))
    memory = report["memory"]
    if memory:
        cards.append(("left in place", human_bytes(memory["pages_in_place"] * _PAGE)))
        cards.append(("copied in the blackout", human_bytes(memory["bytes_copied"])))
    if report["brownout_s"] is not None:
        cards.append(("brownout", human_seconds(report["brownout_s"])))
    boxes = "".join(
        f'<div class="card"><b>{escape(value)}</b><span class="soft">{escape(name)}</span></div>'
        for name, value in cards
    )
    return f'<div class="cards">{boxes}</div>' if boxes else ""


def _units(report: Mapping[str, Any]) -> str:
    rows = []
    for unit in report["units"]:
        kept = unit["kept"]
        before, after = unit["main_pid_before"], unit["main_pid_after"] or "-"
        sign = "=" if kept else "→"
        mark = ""
        if unit["verdict"] == "carried":
            mark = '<span class="good">✓</span>' if kept else '<span class="bad">✗</span>'
        why = escape(unit["failure"] or unit["reason"])
        state = "active" if unit["active_after"] else "not active"
        rows.append(
            _cell(f"<code>{escape(unit['unit'])}</code>")
            + _cell(escape(unit["verdict"]))
            + _cell(f"{before} {sign} {after} {mark}")
            + _cell(state, "" if unit["active_after"] else "bad")
            + _cell(why, "soft")
        )
    if not rows:
        return ""
    return "<h2>Units</h2>" + _table(("unit", "verdict", "main PID", "state", "why"), rows)


def _connections(report: Mapping[str, Any]) -> str:
    connections = report["connections"]
    if not connections["before"]:
        return ""
    lost = {tuple(item) for item in connections["lost"]}
    rows = [
        _cell(escape(item[0]))
        + _cell(f"<code>{escape(item[1])}</code>")
        + _cell(f"<code>{escape(item[2])}</code>")
        + (_cell("gone", "bad") if tuple(item) in lost else _cell("same ✓", "good"))
        for item in connections["before"]
    ]
    head = ("protocol", "local", "peer", "after")
    return f"<h2>{plural(len(rows), 'connection').capitalize()}</h2>" + _table(head, rows)


def _differences(report: Mapping[str, Any]) -> str:
    parts = ""
    if rows := [_cell(escape(line)) for line in report.get("differences", ())]:
        parts += _table(("what differs from before the upgrade",), rows)
    if rows := [_cell(escape(line)) for line in report.get("changes", ())]:
        head = plural(len(rows), "change") + " that a program may have made by itself"
        parts += f"<details><summary>{head}</summary>{_table((), rows)}</details>"
    return f"<h2>Processes</h2>{parts}" if parts else ""


def _phase_table(report: Mapping[str, Any]) -> str:
    inside = {id(item) for item in blackout_phases(report)}
    rows = [
        _cell(escape(item["name"]))
        + _cell("blackout" if id(item) in inside else "running on", "soft")
        + _cell(f"{item['side']} kernel", "soft")
        + _cell(human_seconds(item["seconds"]), "n")
        for item in report["phases"]
    ]
    rest = unaccounted(report)
    if rest >= 0.001:
        rows.append(
            _cell("in between") + _cell("blackout", "soft") + _cell("") + _cell(
                human_seconds(rest), "n")
        )  # fmt: skip
    if not rows:
        return ""
    return "<h2>Phases</h2>" + _table(("phase", "services", "side", "time"), rows)


def render(report: Mapping[str, Any]) -> str:
    """The document."""
    kind = "good" if report["outcome"] == "done" else "warn"
    if report["outcome"] in BAD:
        kind = "bad"
    title = f"{report['old_release'] or '?'} → {report['new_release'] or '?'}"
    notes = "".join(f'<p class="warn">{escape(note)}</p>' for note in report["notes"])
    error = ""
    if report["error"]:
        error = f'<p class="bad">{escape(report["error"])}</p>'
        error += f'<p class="soft">{escape(report["hint"])}</p>' if report["hint"] else ""
    error += "".join(f'<p class="bad">{escape(line)}</p>' for line in not_undone(report))
    picture = timeline(report)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>rekernel: {escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>"
        f'<p class="{kind}">{escape(outcome_words(report))}</p>'
        f'<p class="soft">{escape(when(report["id"]))}</p>{error}{notes}{_cards(report)}'
        + (f"<h2>Blackout</h2>{picture}" if picture else "")
        + _units(report)
        + _connections(report)
        + _differences(report)
        + _phase_table(report)
        + "</body></html>\n"
    )
