"""Containers as docker 26.1 shows them: they are stopped and started again."""

from __future__ import annotations

from typing import Any

import pytest

from rekernel.containers import docker
from rekernel.containers.model import is_container
from rekernel.run import CommandNotFoundError

ID = "4f9d" * 16
SCOPE = f"docker-{ID}.scope"


def shown(*, remove: bool = False) -> dict[str, Any]:
    """What is used of ``docker inspect``."""
    return {
        "Id": ID,
        "Name": "/web",
        "State": {"Status": "running", "Running": True, "Pid": 4711},
        "HostConfig": {"AutoRemove": remove, "NetworkMode": "bridge"},
    }


def test_none_is_carried() -> None:
    found = docker.parse(shown())
    assert (found.engine, found.name, found.unit, found.pid) == ("docker", "web", SCOPE, 4711)
    assert found.obstacle == "docker's containers cannot be carried yet"
    assert not found.fleeting
    assert docker.parse(shown(remove=True)).fleeting
    assert is_container(SCOPE)


def test_only_what_runs_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run_json(argv: list[str]) -> Any:
        asked.append(argv)
        return [shown()]

    monkeypatch.setattr(docker, "run_json", run_json)
    monkeypatch.setattr(docker, "run", lambda argv: f"{ID}\n{'0' * 64}\n")
    units = ["docker.service", SCOPE, f"docker-{'1' * 64}.scope"]
    assert [*docker.observe(units)] == [SCOPE]
    assert asked == [["docker", "inspect", "--type", "container", ID]]
    assert docker.observe(["docker.service"]) == {}


def test_without_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(argv: list[str]) -> str:
        raise CommandNotFoundError(argv[0])

    monkeypatch.setattr(docker, "run", missing)
    assert docker.observe([SCOPE]) == {}


@pytest.mark.parametrize(
    ("name", "own"),
    [("docker0", True), ("br-0123456789ab", True), ("br0", False), ("br-lan", False), ("", False)],
)
def test_bridges(name: str, own: bool) -> None:
    assert docker.is_bridge(name) is own


@pytest.mark.parametrize(
    ("target", "own"),
    [
        ("/var/lib/docker/overlay2/abc/merged", True),
        ("/run/docker/netns/0123", True),
        # A disk of its own.
        ("/var/lib/docker", False),
    ],
)
def test_mounts(target: str, own: bool) -> None:
    assert docker.is_own_mount(target) is own
