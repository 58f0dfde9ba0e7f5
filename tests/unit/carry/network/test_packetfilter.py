"""The packet filter, as nft and iptables write it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rekernel.carry.network import packetfilter
from rekernel.run import CommandFailedError, CommandNotFoundError

MINE = 'table inet mine {\n\tchain input {\n\t\tiif "eth0" accept\n\t}\n}\n'
OWNED = """\
table inet fw { # progname fw
\tflags owner,persist

\tset x {
\t\tflags owner
\t}
}
"""
FILTER = 'table ip filter {\n\tchain INPUT {\n\t\txt match "recent"\n\t}\n}\n'
PODMAN = (Path(__file__).parents[3] / "fixtures" / "podman" / "ruleset.nft").read_text()
SAVED = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"


class Programs:
    """nft and iptables of a machine; what is asked of them."""

    def __init__(self, ruleset: str) -> None:
        self.ruleset = ruleset
        self.rules: list[dict[str, Any]] = []
        self.saved: str | Exception = SAVED
        self.refusal = ""
        self.checked = ""

    def run(self, argv: list[str], *, stdin: str = "") -> str:
        if argv[:2] == ["nft", "-c"]:
            self.checked = stdin
            if self.refusal:
                raise CommandFailedError(argv, 1, self.refusal)
            return ""
        if argv[0] == "nft":
            return self.ruleset
        if isinstance(self.saved, Exception):
            raise self.saved
        return self.saved.replace("filter", argv[2])

    def run_json(self, argv: list[str]) -> Any:
        return {"nftables": [{"metainfo": {}}, *({"rule": rule} for rule in self.rules)]}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    found = Programs(MINE + PODMAN + FILTER)
    found.rules = [
        {"family": "inet", "table": "mine", "expr": [{"accept": None}]},
        # nft 1.0.6 says no more.
        {"family": "ip", "table": "filter", "expr": [{"xt": None}, {"drop": None}]},
    ]
    monkeypatch.setattr(packetfilter, "run", found.run)
    monkeypatch.setattr(packetfilter, "run_json", found.run_json)
    return found


def test_each_by_the_program_that_made_it(programs: Programs) -> None:
    programs.ruleset += FILTER.replace("ip filter", "ip6 nat") + FILTER.replace("filter", "nat")
    for family in ("ip6", "ip"):
        programs.rules.append({"family": family, "table": "nat", "expr": [{"xt": {"name": "x"}}]})
    found = packetfilter.observe()
    assert found.tables == {"inet mine": MINE}
    assert found.saved == {
        "iptables-nft-restore filter": SAVED,
        "iptables-nft-restore nat": SAVED.replace("filter", "nat"),
        "ip6tables-nft-restore nat": SAVED.replace("filter", "nat"),
    }
    assert found.problems == ()
    assert programs.checked == f"flush ruleset\n{MINE}"


def test_no_tables(programs: Programs) -> None:
    programs.ruleset = PODMAN
    assert packetfilter.observe() == packetfilter.PacketFilter()


@pytest.mark.parametrize(
    "saved", [CommandNotFoundError("iptables-nft-save"), CommandFailedError(["x"], 1, "")]
)
def test_nobody_writes_it_out(programs: Programs, saved: Exception) -> None:
    programs.saved = saved
    assert packetfilter.observe().problems == (
        "packet filter table ip filter (neither nft nor iptables writes it out)",
    )
    programs.ruleset = FILTER.replace("ip filter", "arp filter")
    programs.rules = [{"family": "arp", "table": "filter", "expr": [{"xt": None}]}]
    (problem,) = packetfilter.observe().problems
    assert "arp filter" in problem


def test_what_is_mixed(programs: Programs) -> None:
    programs.saved = "# Table `filter' is incompatible, use 'nft' tool.\n"
    assert packetfilter.observe().problems == (
        "packet filter table ip filter (partly made by iptables, partly by nft)",
    )


@pytest.mark.parametrize("rule", ["--match-set bad src -j DROP", "-j SET --add-set x src"])
def test_sets_that_nobody_carries(programs: Programs, rule: str) -> None:
    programs.saved = f"*filter\n-A INPUT -m set {rule}\nCOMMIT\n"
    assert packetfilter.observe().problems == (
        "packet filter table ip filter (it uses sets of ipset)",
    )


def test_what_nft_does_not_take_back(programs: Programs) -> None:
    programs.refusal = "/dev/stdin:2:1-3: Error: no such thing\nx\n^^^\n"
    (problem,) = packetfilter.observe().problems
    assert "Error: no such thing" in problem


def test_one_that_goes_with_its_program(programs: Programs) -> None:
    programs.ruleset = MINE + OWNED
    found = packetfilter.observe()
    assert found.tables == {
        "inet mine": MINE,
        "inet fw": OWNED.replace("\tflags owner,persist\n", ""),
    }
    # Nobody else may touch it now.
    assert programs.checked == f"flush ruleset\n{MINE}"


def test_real_listings() -> None:
    tables = dict(packetfilter.split(PODMAN))
    assert list(tables) == ["inet netavark"]
    assert tables["inet netavark"] == PODMAN
    assert json.dumps(tables)
