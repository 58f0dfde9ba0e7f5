"""Docker beside what is carried: its containers are stopped, and started again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from vm.support import NEW, Guest, opened

pytestmark = pytest.mark.slow

_PREPARE = """\
root=$(mktemp -d)
mkdir "$root/bin"
cp /bin/busybox "$root/bin/"
for name in cat nc sh sleep; do ln -s busybox "$root/bin/$name"; done
tar --directory="$root" -c . | docker import - tiny
docker network create apart
docker run --detach --name echo --publish 7000:7000 --network apart tiny nc -ll -p 7000 -e cat
docker run --detach --name plain --volume kept:/kept tiny sh -c 'echo >> /kept/starts; sleep 1d'
docker run --detach --rm --name gone tiny sleep 1d
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with opened(
        "docker",
        "demo",
        limit_s=1200,
        memory_mib=3072,
        packages=("busybox-static", "docker-cli", "docker.io", "iptables"),
    ) as running:
        running.session.set_up(1024)
        running.write("/root/prepare", _PREPARE)
        code, output = running.run("sh -e /root/prepare", timeout=300)
        assert code == 0, output
        yield running


def running_containers(guest: Guest) -> list[str]:
    return sorted(guest.text("docker ps --format '{{.Names}}'").split())


def ask(guest: Guest) -> bytes:
    """What the container behind a published port answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with guest.connect(7000) as connection:
                connection.settimeout(10)
                connection.sendall(b"hallo\n")
                return connection.recv(6)
        except (TimeoutError, OSError):
            assert time.monotonic() < deadline
            time.sleep(1)


def test_containers_of_docker_start_again(guest: Guest) -> None:
    assert running_containers(guest) == ["echo", "gone", "plain"]
    assert ask(guest) == b"hallo\n"
    redis = guest.main_pid("redis-server")
    outcome = guest.upgrade(NEW)
    assert outcome.passed, guest.explain(outcome)
    assert guest.main_pid("redis-server") == redis
    verdicts = {
        unit["reason"].partition(":")[0]: unit["verdict"]
        for unit in outcome.report["units"]
        if unit["unit"].startswith("docker-")
    }
    assert verdicts == {
        "container echo": "restarted",
        "container gone": "ends",
        "container plain": "restarted",
    }
    assert running_containers(guest) == ["echo", "plain"]
    assert ask(guest) == b"hallo\n"
    # Stopped once, started once.
    assert guest.text("docker exec plain cat /kept/starts | wc -l") == "2"
    assert guest.text("docker inspect --format '{{.State.ExitCode}}' plain") == "0"
    assert guest.text("systemctl is-system-running") == "running"
    assert guest.text("docker run --rm tiny sh -c 'echo new'") == "new"


def test_undone(guest: Guest) -> None:
    """Everything before the kexec is undone: they run again."""
    guest.install_faults()
    guest.fault("freeze", "term")
    code, output = guest.run(["rekernel", "upgrade", "--yes", guest.releases["6.12"]], 240)
    assert code == 5, output
    assert running_containers(guest) == ["echo", "plain"]
    assert ask(guest) == b"hallo\n"
