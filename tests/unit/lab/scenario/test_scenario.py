"""scenario.toml: what it may say, and every complaint about it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekernel_lab.errors import UsageError
from rekernel_lab.scenario.scenario import load, parse

HERE = Path("/scenarios/redis")


def test_everything_has_a_default() -> None:
    scenario = parse("", HERE)
    assert scenario.name == "redis"
    assert scenario.carry is None
    assert scenario.kernel_from == "6.12"
    assert scenario.upgrades


def test_all_keys() -> None:
    scenario = parse(
        """
        packages = ["redis-server", "nginx-light"]
        memory_mib = 8192
        region_mib = 4096
        carry = ["redis-server.service"]
        from = "7.1"
        upgrades = ["7.3", "6.12"]
        timeout_s = 60
        """,
        HERE,
    )
    assert scenario.packages == ("redis-server", "nginx-light")
    assert (scenario.memory_mib, scenario.region_mib, scenario.timeout_s) == (8192, 4096, 60)
    assert scenario.carry == ("redis-server.service",)
    assert (scenario.kernel_from, scenario.upgrades) == ("7.1", ("7.3", "6.12"))


def test_carry_nothing_is_not_the_default_policy() -> None:
    assert parse("carry = []", HERE).carry == ()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("packages = 1", "packages must be a list of strings"),
        ("packages = [1]", "packages must be a list of strings"),
        ('upgrades = "7.3"', "upgrades must be a list of strings"),
        ("upgrades = []", "upgrades is empty"),
        ("from = 6.12", "from must be a string"),
        ("memory_mib = 0", "memory_mib must be a positive whole number"),
        ("memory_mib = true", "memory_mib must be a positive whole number"),
        ("timeout_s = 1.5", "timeout_s must be a positive whole number"),
        ("memory_mib = 1024\nregion_mib = 1024", "region_mib must be less than memory_mib"),
        ('kernel = "7.3"', "unknown key 'kernel'"),
        ("packages = [", "not TOML"),
    ],
)
def test_complaints(content: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse(content, HERE)


@given(st.text())
def test_any_text_is_a_scenario_or_a_usage_error(content: str) -> None:
    with contextlib.suppress(UsageError):
        parse(content, HERE)


def test_missing_directory_says_what_a_scenario_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load(tmp_path / "none")


def test_script_that_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "scenario.toml").write_text("")
    script = tmp_path / "host-client"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(UsageError, match="not executable"):
        load(tmp_path)
    script.chmod(0o755)
    assert load(tmp_path).script("host-client") == script
    assert load(tmp_path).script("guest-verify") is None


def test_command_line_overrides() -> None:
    scenario = parse('upgrades = ["7.3"]', HERE)
    assert scenario.override(upgrades=["6.12", "7.3"]).upgrades == ("6.12", "7.3")
    assert scenario.override() == scenario
