from __future__ import annotations

from pathlib import Path

from rekernel.systemd.journal import header_of


def test_header_of_a_known_connection(tmp_path: Path) -> None:
    (tmp_path / "9:1938").write_text(
        "# This is private data. Do not parse\n"
        "PRIORITY=28\nLEVEL_PREFIX=0\nFORWARD_TO_SYSLOG=0\nFORWARD_TO_KMSG=0\n"
        "FORWARD_TO_CONSOLE=1\nSTREAM_ID=c015d4e458f34d38b4d835e882731193\n"
        "IDENTIFIER=redis-server\nUNIT=redis-server.service\n"
    )
    header = header_of(9, 1938, tmp_path)
    assert header == "redis-server\nredis-server.service\n28\n0\n0\n0\n1\n"


def test_header_of_a_users_service_names_no_unit(tmp_path: Path) -> None:
    (tmp_path / "9:4015").write_text("PRIORITY=30\nLEVEL_PREFIX=1\nIDENTIFIER=python3\n")
    assert header_of(9, 4015, tmp_path) == "python3\n\n30\n1\n0\n0\n0\n"


def test_header_without_a_note(tmp_path: Path) -> None:
    assert header_of(9, 7, tmp_path) == "\n\n30\n1\n0\n0\n0\n"


def test_names_as_they_were_before_the_journal_escaped_them(tmp_path: Path) -> None:
    (tmp_path / "9:8").write_text("IDENTIFIER=caf\\303\\251\nUNIT=a\\\\x2db.service\n")
    assert header_of(9, 8, tmp_path).startswith("café\na\\x2db.service\n30\n")
