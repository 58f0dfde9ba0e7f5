"""Where packages come from, as the host's apt configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekernel_lab.errors import LabError
from rekernel_lab.images.aptsources import (
    Source,
    host_sources,
    os_release,
    parse_deb822,
    parse_one_line,
    pick_mirror,
)


def test_one_line_style_with_options_and_comments() -> None:
    content = """
    # deb http://commented.example/debian trixie main
    deb [arch=amd64 signed-by=/usr/share/k.gpg] http://a.example/debian/ trixie main contrib
    deb-src http://a.example/debian trixie main
    deb http://a.example/debian trixie-updates main # trailing
    """
    assert list(parse_one_line(content)) == [
        Source("http://a.example/debian/", "trixie", ("main", "contrib"), "/usr/share/k.gpg"),
        Source("http://a.example/debian", "trixie-updates", ("main",)),
    ]


def test_deb822_multiplies_uris_and_suites() -> None:
    content = """\
# a comment paragraph

Types: deb deb-src
# a comment inside
URIs: http://a.example/debian
  http://b.example/debian
Suites: trixie trixie-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: trixie
Components: main

Types: deb-src
URIs: http://src.example/debian
Suites: trixie
Components: main
"""
    assert [(source.uri, source.suite) for source in parse_deb822(content)] == [
        ("http://a.example/debian", "trixie"),
        ("http://a.example/debian", "trixie-updates"),
        ("http://b.example/debian", "trixie"),
        ("http://b.example/debian", "trixie-updates"),
    ]
    assert {source.signed_by for source in parse_deb822(content)} == {""}


def test_mirror_is_the_archive_of_the_own_release() -> None:
    sources = [
        Source("http://s.example/debian-security", "trixie-security", ("main",)),
        Source("http://other.example/debian-things", "stable", ("main",)),
        Source("http://a.example/debian/", "trixie", ("main",)),
    ]
    assert pick_mirror(sources, "trixie") == "http://a.example/debian"
    assert pick_mirror(sources[:2], "trixie") == "http://other.example/debian-things"


def test_no_mirror_is_an_error_with_a_way_out() -> None:
    with pytest.raises(LabError, match="no Debian archive") as caught:
        pick_mirror([Source("http://x.example/repo", "stable", ("free",))], "trixie")
    assert "--mirror" in caught.value.hint


def test_all_files_of_the_configuration_are_read(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example/debian trixie main\n")
    (parts / "b.list").write_text("deb http://b.example/debian trixie main\n")
    (parts / "c.sources").write_text(
        "Types: deb\nURIs: http://c.example/debian\nSuites: trixie\nComponents: main\n"
    )
    (parts / "d.sources.disabled").write_text(
        "Types: deb\nURIs: http://d.example/debian\nSuites: trixie\nComponents: main\n"
    )
    assert [source.uri[7] for source in host_sources(tmp_path)] == ["a", "b", "c"]


def test_os_release_unquotes(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('ID=debian\nPRETTY_NAME="Debian GNU/Linux 12"\nVERSION_CODENAME=bookworm\n')
    assert os_release(path)["PRETTY_NAME"] == "Debian GNU/Linux 12"
