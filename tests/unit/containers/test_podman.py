"""Containers as podman 5.4 shows them, and what it could not restore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rekernel.containers import podman
from rekernel.run import CommandNotFoundError

RECORDED = Path(__file__).parents[2] / "fixtures" / "podman" / "inspect.json"
ID = "ffa7b6df955b5b0e09d331776ca3ad66120319970e9d5439ed6ef5beea49b5dd"
SCOPE = f"libpod-{ID}.scope"


@pytest.fixture
def raw() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text())[0]
    return found


def test_one_that_can_be_carried(raw: dict[str, Any]) -> None:
    found = podman.parse(raw)
    assert (found.name, found.unit, found.pid, found.monitor) == ("web", SCOPE, 577, 574)
    assert found.directory.name == "userdata"
    assert found.addresses == ("10.88.0.2",)
    assert (found.ports, found.fleeting) == ((("tcp", 8080),), False)
    assert found.obstacle == ""
    # As podman itself writes network.status.
    assert found.status == {
        "podman": {
            "interfaces": {
                "eth0": {
                    "mac_address": "12:46:cb:13:47:80",
                    "subnets": [{"ipnet": "10.88.0.2/16", "gateway": "10.88.0.1"}],
                }
            }
        }
    }


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("State", "Status"), "paused", "it is paused"),
        (("OCIRuntime",), "/usr/bin/runc", "its runtime is /usr/bin/runc, and only crun's are"),
        (("Pod",), "abc", "it is part of a pod"),
        (("HostConfig", "AutoRemove"), True, "started with --rm"),
        (("Config", "Tty"), True, "it has a terminal (--tty)"),
        (("ExecIDs",), ["abc"], "somebody executes something in it"),
        (("HostConfig", "NetworkMode"), "host", "it has not just one network of its own"),
        (("NetworkSettings", "Networks"), {}, ""),
        (("HostConfig", "PidMode"), "host", "shares a name space with others (processes)"),
        (("HostConfig", "IpcMode"), "container:abc", "shares a name space with others (IPC)"),
        (("HostConfig", "UsernsMode"), "private", "user namespace of its own"),
    ],
)
def test_why_not(raw: dict[str, Any], place: tuple[str, ...], value: object, words: str) -> None:
    *path, last = place
    inner = raw
    for name in path:
        inner = inner[name]
    inner[last] = value
    found = podman.parse(raw)
    assert words in found.obstacle
    assert bool(found.obstacle) == bool(found.remedy) == bool(words)


def test_a_checkpoint_of_podman_itself(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["StaticDir"] = str(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    assert podman.parse(raw).obstacle == "podman has a checkpoint of it"
    # What an attempt of ours has left stands in nobody's way.
    monkeypatch.setattr(podman, "left_behind", lambda: [str(tmp_path / "checkpoint")])
    assert podman.parse(raw).obstacle == ""


def test_only_what_runs_is_asked_for(monkeypatch: pytest.MonkeyPatch, raw: dict[str, Any]) -> None:
    asked: list[list[str]] = []

    def run_json(argv: list[str]) -> Any:
        asked.append(argv)
        return [raw]

    monkeypatch.setattr(podman, "run_json", run_json)
    monkeypatch.setattr(podman, "run", lambda argv: f"{ID}\n{'0' * 64}\n")
    units = ["ssh.service", SCOPE, f"libpod-{'1' * 64}.scope", f"libpod-conmon-{ID}.scope"]
    assert [*podman.observe(units)] == [SCOPE]
    assert asked == [["podman", "inspect", "--type", "container", ID]]
    asked.clear()
    assert podman.observe(["ssh.service"]) == {}
    assert asked == []


def test_without_podman(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(argv: list[str]) -> str:
        raise CommandNotFoundError(argv[0])

    monkeypatch.setattr(podman, "run", missing)
    assert podman.observe([SCOPE]) == {}
    assert podman.runtime_obstacle() == ("crun is not installed", "apt install crun")


@pytest.mark.parametrize(
    ("version", "libraries", "why"),
    [
        ("crun 1.21\n+SECCOMP +CRIU +YAJL", "libcriu.so.2 (libc6) => /usr/lib/libcriu.so.2", ""),
        ("crun 1.21\n+SECCOMP +YAJL", "", "this crun was built without criu"),
        ("crun 1.21\n+CRIU", "libc.so.6", "crun does not find criu's library"),
    ],
)
def test_the_runtime(
    monkeypatch: pytest.MonkeyPatch, version: str, libraries: str, why: str
) -> None:
    answers = {"crun": version, "ldconfig": libraries}
    monkeypatch.setattr(podman, "run", lambda argv: answers[argv[0]])
    assert podman.runtime_obstacle()[0] == why


@pytest.mark.parametrize(
    ("target", "own"),
    [
        ("/var/lib/containers/storage/overlay/abc/merged", True),
        ("/run/netns/netns-1c4ab884-b9a2-a182-be30-46e3a1a8182f", True),
        ("/run/netns/blue", False),
        ("/run/netns", True),
        ("/var/lib/containers", False),
    ],
)
def test_mounts_of_podman(target: str, own: bool) -> None:
    assert podman.is_own_mount(target) is own
