"""What of a container's dump and restore is decided by us."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from rekernel.containers import checkpoint, podman, restore
from rekernel.containers.model import Container
from rekernel.errors import RekernelError
from rekernel.records import replace
from rekernel.run import CommandFailedError


def container(directory: Path, name: str = "web") -> Container:
    return Container("0" * 64, name, f"libpod-{'0' * 64}.scope", 7, 6, directory, ("10.88.0.2",))


def test_the_dump(tmp_path: Path) -> None:
    words = checkpoint.argv(container(tmp_path), tmp_path / "work")
    assert words[:2] == ["crun", "checkpoint"]
    assert words[-1] == "0" * 64
    assert {"--leave-running", "--tcp-established", "--file-locks"} <= set(words)
    environment = checkpoint.configure(tmp_path / "home")
    assert environment == {"HOME": str(tmp_path / "home")}
    text = (tmp_path / "home/.criu/default.conf").read_text()
    assert "action-script /usr/lib/rekernel/rekernel-hook\n" in text
    assert "network-lock nftables\n" in text


def test_what_is_in_shared_memory(tmp_path: Path) -> None:
    own = container(tmp_path)
    (tmp_path / "shm").mkdir()
    checkpoint.add_shared_memory(own)
    assert [*tmp_path.iterdir()] == [tmp_path / "shm"]
    (tmp_path / "shm/note").write_text("kept")
    checkpoint.add_shared_memory(own)
    with tarfile.open(tmp_path / "devshm-checkpoint.tar") as tar:
        assert tar.getnames() == [".", "./note"]
    assert tmp_path / "devshm-checkpoint.tar" in checkpoint.leftovers(own)


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft")
def test_nft_takes_the_locks() -> None:
    both = replace(
        container(Path("/x")),
        addresses=("10.88.0.2", "fd00::2"),
        ports=(("tcp", 8080), ("udp", 53)),
    )
    rules = checkpoint.lock_rules([both]) + checkpoint.bridge_rules([both])
    words = ["unshare", "--net", "sh", "-c", "nft -f - && nft list ruleset"]
    shown = subprocess.run(words, input=rules, capture_output=True, text=True, check=True).stdout
    # Of what is forwarded, sent by the machine, and sent from one to the other.
    assert shown.count("ip daddr 10.88.0.2 drop") == 3
    assert shown.count("ip6 saddr fd00::2 drop") == 3
    # Where nobody listens yet.
    assert shown.count("fib daddr type local tcp dport 8080 drop") == 2
    assert shown.count("fib daddr type local udp dport 53 drop") == 2
    assert "table bridge rekernel_containers" in shown
    assert checkpoint.lock_rules([]) == ""


class Podman:
    """Notes what is asked of it; fails for one verb."""

    def __init__(self, failing: str = "") -> None:
        self.asked: list[list[str]] = []
        self.given: list[str] = []
        self._failing = failing

    def run(self, argv: list[str], **more: Any) -> str:
        self.asked.append(argv)
        self.given.append(more.get("stdin", ""))
        if self._failing and self._failing in argv:
            raise RekernelError("podman failed (125)")
        return ""


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(restore, "_pid_of", lambda name: 42)
    monkeypatch.setattr(restore, "_LOGS", tmp_path / "logs")
    monkeypatch.setattr(restore, "LEFT", tmp_path / "left")
    monkeypatch.setattr(restore, "STOPPED", tmp_path / "stopped")
    monkeypatch.setattr(restore, "start_stopped", list)
    path = tmp_path / "containers.json"
    path.write_text(checkpoint.wanted([container(tmp_path)]))
    return path


def test_all_come_back(wanted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    podman = Podman()
    monkeypatch.setattr(restore, "run", podman.run)
    assert restore.run_all(wanted, tmp_path / "result") == 0
    (tree,) = json.loads((tmp_path / "result").read_text())["trees"]
    assert (tree["name"], tree["root_pid"], tree["failure"]) == ("web", 42, "")
    verbs = [" ".join(words[:3]) for words in podman.asked]
    assert verbs == [
        "nft -f -",
        "podman container restore",
        "nft -f -",
        "nft -f -",
    ]
    assert not wanted.exists()


def test_one_that_cannot_be_restored(
    wanted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    podman = Podman("restore")
    monkeypatch.setattr(restore, "run", podman.run)
    (tmp_path / "restore.log").write_text(
        "(00.1) 7: Error (criu/x.c:1): it went wrong\n(00.2) Error (y): no\n"
    )
    assert restore.run_all(wanted, tmp_path / "result") == 1
    (tree,) = json.loads((tmp_path / "result").read_text())["trees"]
    assert tree["failure"] == "podman could not restore it: it went wrong"
    assert (Path(tree["log"]) / "restore.log").exists()
    # Never later either: without its checkpoint it starts afresh.
    assert ["rm", "-rf", "--", *map(str, checkpoint.leftovers(container(tmp_path)))] in podman.asked
    assert ["podman", "start", "0" * 64] in podman.asked
    # Whatever comes of it, nobody is locked out.
    assert podman.given[-2:] == [
        f"table {family} rekernel_containers\ndelete table {family} rekernel_containers\n"
        for family in ("inet", "bridge")
    ]


def test_a_lock_that_stays_is_missing(
    wanted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a table that is not there is no failure: nft makes and deletes it in one go."""
    podman = Podman("nft")
    monkeypatch.setattr(restore, "run", podman.run)
    assert [restore.unlock()[0], len(restore.unlock())] == [
        "nobody may get to containers yet: table inet rekernel_containers: podman failed (125)",
        2,
    ]


def test_goes_on_where_it_was_killed(
    wanted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    podman = Podman("restore")
    state = {"Running": True, "Restored": True}
    monkeypatch.setattr(restore, "_state_of", lambda name: state)
    monkeypatch.setattr(restore, "run", podman.run)
    # Podman had gone on by itself.
    assert restore.run_all(wanted, tmp_path / "result") == 0
    (tree,) = json.loads((tmp_path / "result").read_text())["trees"]
    assert tree["failure"] == ""
    # Killed between the two.
    wanted.write_text(checkpoint.wanted([container(tmp_path)]))
    podman.asked.clear()
    assert restore.run_all(wanted, tmp_path / "result") == 0
    assert json.loads((tmp_path / "result").read_text())["trees"] == [tree]
    assert "restore" not in [word for words in podman.asked for word in words]
    assert not wanted.exists()


def test_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list").write_text("{")
    with pytest.raises(RekernelError, match="list") as error:
        restore.run_all(tmp_path / "list")
    assert error.value.hint == "podman start --all"
    # Nothing to restore, but perhaps to start.
    stopped = tmp_path / "stopped"
    stopped.touch()
    monkeypatch.setattr(restore, "LEFT", tmp_path / "left")
    monkeypatch.setattr(restore, "STOPPED", stopped)
    monkeypatch.setattr(restore, "start_stopped", lambda: ["one was not started again"])
    # Nor would anybody come for what was written for those that were to be carried.
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    monkeypatch.setattr(restore, "left_behind", lambda: [str(checkpoint)])
    removed: list[list[str]] = []
    monkeypatch.setattr(restore, "run", lambda argv, **_: removed.append(argv))
    assert restore.run_all(tmp_path / "nowhere", tmp_path / "result") == 0
    assert ["rm", "-rf", "--", str(checkpoint)] in removed
    result = json.loads((tmp_path / "result").read_text())
    assert result["problems"] == ["one was not started again"]
    assert not stopped.exists()


def test_what_was_stopped_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = tmp_path / "stopped"
    restore.start_stopped(stopped)
    stopped.write_text(json.dumps([["docker", "a" * 64], ["podman", "b" * 64]]))
    asked: list[list[str]] = []

    def run(argv: list[str], timeout: float) -> str:
        asked.append(argv)
        if argv[0] == "docker" and len(asked) < 4:
            raise RekernelError("docker failed (1): is the daemon running?")
        return ""

    monkeypatch.setattr(restore, "run", run)
    monkeypatch.setattr(restore, "_AGAIN_S", 0)
    assert restore.start_stopped(stopped) == []
    docker, podman = ["docker", "start", "a" * 64], ["podman", "start", "b" * 64]
    assert asked == [docker, podman, docker, docker]
    # One that does not start at all keeps nobody waiting for ever.
    stopped.write_text(json.dumps([["docker", "a" * 64]]))
    asked.clear()
    monkeypatch.setattr(restore, "_ENGINE_S", 0)
    assert restore.start_stopped(stopped) == [
        "container aaaaaaaaaaaa was not started again: docker start"
    ]
    assert len(asked) == 1


def test_what_nothing_came_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "left"
    monkeypatch.setattr(restore, "LEFT", left)
    monkeypatch.setattr(restore, "left_behind", lambda: podman.left_behind(left))
    restore.forget()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "other").mkdir()
    left.write_text(json.dumps([str(tmp_path / "checkpoint"), str(tmp_path / "gone")]))
    restore.forget()
    assert [*tmp_path.iterdir()] == [tmp_path / "other"]


def test_what_a_killed_criu_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(argv: list[str], **more: Any) -> str:
        asked.append(argv)
        return "table inet CRIU-7\ntable inet own\n" if argv[-1] == "tables" else ""

    monkeypatch.setattr(checkpoint, "run", run)
    checkpoint.free(7, "/machine.slice/libpod-x.scope")
    inside = ["nsenter", "--net=/proc/7/ns/net", "nft"]
    assert asked == [[*inside, "list", "tables"], [*inside, "delete", "table", "inet", "CRIU-7"]]


def test_a_lock_of_criu_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **more: Any) -> str:
        raise CommandFailedError(argv, 1, "Cannot allocate memory")

    monkeypatch.setattr(checkpoint, "run", run)
    with pytest.raises(CommandFailedError, match="Cannot allocate memory"):
        checkpoint.free(os.getpid(), "/machine.slice/libpod-x.scope")
    # With the container its network has gone.
    checkpoint.free(1 << 30, "/machine.slice/libpod-x.scope")
