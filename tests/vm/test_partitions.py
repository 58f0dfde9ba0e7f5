"""A hardened server: /usr and /var on partitions of their own, the root read-only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.support import NEW, OLD, Guest, get, opened

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with opened(
        "partitions",
        "demo",
        limit_s=1200,
        memory_mib=3072,
        disk_mib=3072,
        packages=("e2fsprogs", "fdisk", "xfsprogs"),
    ) as running:
        # However long it takes: an idle connection stays.
        running.text(
            "sed -i '/listen 80 /a keepalive_timeout 1h;' /etc/nginx/sites-available/default"
        )
        script = Path(__file__).with_name("partitioned").read_text()
        running.write("/root/partitioned", script)
        code, output = running.run("sh /root/partitioned", timeout=400)
        assert code == 0, output
        running.session.reboot()
        running.text(
            # What lies below must not be taken for what is mounted.
            "mount -o remount,rw / && mount --bind / /mnt && rm -r /mnt/usr/* /mnt/var/* &&"
            " umount /mnt && mount -o remount,rw /usr"
        )
        running.session.set_up(1024)
        yield running


def mounted(guest: Guest) -> str:
    """What lies on disks, and how it is mounted."""
    words = "findmnt --real --list --noheadings --output TARGET,SOURCE,FSTYPE,OPTIONS"
    # Of XFS not every kernel has attr2: it cannot be turned off any more.
    return guest.text(words).replace(",attr2", "")


@pytest.mark.parametrize("kernel, memory", [(NEW, "region"), (OLD, "image")])
def test_upgrade(guest: Guest, kernel: str, memory: str) -> None:
    before = mounted(guest)
    assert [line.split()[0] for line in before.splitlines()] == ["/", "/usr", "/var", "/var/log"]
    code, output = guest.run("touch /etc/written /usr/written")
    assert (code, output.count("Read-only file system")) == (1, 2)
    redis, nginx = guest.main_pid("redis-server"), guest.main_pid("nginx")
    guest.text(f"redis-cli set kept {memory}")
    with guest.connect(80) as connection:
        get(connection)
        outcome = guest.upgrade(kernel, f"--memory={memory}")
        assert outcome.passed, guest.explain(outcome)
        get(connection)
    assert (guest.main_pid("redis-server"), guest.main_pid("nginx")) == (redis, nginx)
    assert guest.text("redis-cli get kept") == memory
    assert guest.text("redis-cli save") == "OK"
    assert mounted(guest) == before
    assert guest.text("systemctl is-system-running") == "running"
    # Each mount was as it was from the first moment on.
    log = guest.serial_log.read_text(errors="replace")
    assert "rekernel: /" not in log


def test_a_rule_that_the_next_kernel_does_not_take(guest: Guest) -> None:
    """Nobody is lost for it, and it is reported."""
    release = guest.releases[NEW]
    guest.text(
        "mount -o remount,rw /usr &&"
        f" rm $(find /usr/lib/modules/{release} -name 'nft_limit.ko*') && depmod {release}"
    )
    table = "chain input {{ type filter hook input priority 0; tcp dport 99 {} drop; }};"
    guest.text(f"nft 'table inet good {{ {table.format('')} }}'")
    guest.text(f"nft 'table inet strange {{ {table.format('limit rate 1/second')} }}'")
    redis = guest.main_pid("redis-server")
    outcome = guest.upgrade(NEW)
    assert outcome.exit_code == 4, guest.explain(outcome)
    assert "table inet strange of the packet filter" in outcome.report["error"]
    assert guest.main_pid("redis-server") == redis
    assert guest.text("nft list tables") == "table inet good"
