"""The section of ours in unit files."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekernel.errors import UsageError
from rekernel.systemd import unitfiles
from rekernel.systemd.units import Unit


def unit(tmp_path: Path, *texts: str) -> Unit:
    """A unit with a file and drop-ins."""
    paths = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.conf"
        path.write_text(text)
        paths.append(str(path))
    properties = {"FragmentPath": paths[0], "DropInPaths": " ".join(paths[1:])}
    return Unit("app.service", "active", "running", "simple", 10, "/a", "", properties)


SERVICE = "[Service]\nExecStart=/bin/a \\\n  -b [X-Rekernel]\nPolicy=no-setting-of-ours\n"


def test_no_section(tmp_path: Path) -> None:
    assert unitfiles.wish(unit(tmp_path, SERVICE)) is None
    nothing = Unit("app.service", "active", "running", "simple", 10, "/a", "", {})
    assert unitfiles.wish(nothing) is None
    gone = Unit("a", "", "", "", 0, "", "", {"FragmentPath": str(tmp_path / "gone")})
    assert unitfiles.wish(gone) is None


def test_a_drop_in_overrides(tmp_path: Path) -> None:
    own = f"{SERVICE}[X-Rekernel]\n# why\n Policy = restart \n[Install]\nPolicy=carry\n"
    assert unitfiles.wish(unit(tmp_path, own)) == "restart"
    assert unitfiles.wish(unit(tmp_path, own, "[X-Rekernel]\nPolicy=\\\nblock\n")) == "block"
    assert unitfiles.wish(unit(tmp_path, own, "[X-Rekernel]\nPolicy=\n")) is None
    assert unitfiles.wish(unit(tmp_path, own, "; nothing\n")) == "restart"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[X-Rekernel]\nPolicy=keep\n", "app.service: Policy=keep"),
        ("[X-Rekernel]\nPolitik=carry\n", "unknown setting 'Politik=carry'"),
        ("[X-Rekernel]\nPolicy\n", "unknown setting 'Policy'"),
    ],
)
def test_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        unitfiles.wish(unit(tmp_path, SERVICE, text))
    assert message in caught.value.message
