"""Every benchmark still works: its smallest load, once. What they find is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rekernel_lab import cli
from rekernel_lab.bench import registry as bench

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", bench.names())
def test_smoke(name: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", name, "--smoke", "--json", str(found)])
    assert ended.value.code == 0
    result = json.loads(found.read_text())
    assert result["measurements"]
