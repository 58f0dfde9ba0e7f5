"""The host around the services: LVM on RAID below the root, a bridge on a bond, AppArmor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rekernel_lab.images.guestfiles import GUEST_ADDRESS, HOST_ADDRESS, PREFIX_LENGTH
from rekernel_lab.run import run
from vm.support import NEW, OLD, Guest, get, opened

pytestmark = pytest.mark.slow

_NETDEVS = {
    "bond0": "Kind=bond\n[Bond]\nMode=active-backup\nMIIMonitorSec=100ms\nUpDelaySec=200ms\n",
    "br0": "Kind=bridge\n[Bridge]\nSTP=no\nAgeingTimeSec=100\nMulticastSnooping=no\n",
    "vlan5": "Kind=vlan\n[VLAN]\nId=5\n",
    "dummy5": "Kind=dummy\n",
}
_ON_VLAN, _VLAN_PEER = "198.51.100.2", "198.51.100.1/28"
_NETWORKS = {
    # Instead of the lab's own.
    "10-lab": "[Match]\nName=en* eth*\n[Network]\nBond=bond0\n",
    "20-bond0": "[Match]\nName=bond0\n[Network]\nBridge=br0\n[Bridge]\nHairPin=yes\n",
    "20-br0": f"[Match]\nName=br0\n[Network]\nAddress={GUEST_ADDRESS}/{PREFIX_LENGTH}\n"
    f"Gateway={HOST_ADDRESS}\nLinkLocalAddressing=no\nVLAN=vlan5\n",
    "20-vlan5": f"[Match]\nName=vlan5\n[Network]\nAddress={_ON_VLAN}/28\n",
    "20-others": "[Match]\nName=dummy5\n[Network]\nAddress=192.0.2.0/28\n",
}
# What the kernel counts down, or finds out for itself.
_STATE = (
    "hello_timer", "tcn_timer", "topology_change_timer", "gc_timer", "ad_info", "fdb_n_learned",
)  # fmt: skip


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with opened(
        "host",
        "demo",
        limit_s=1200,
        memory_mib=3072,
        disk_mib=5120,
        packages=(
            "apparmor",
            "chrony",
            "e2fsprogs",
            "fdisk",
            "lvm2",
            "mdadm",
            "xfsprogs",
            "wireguard-tools",
        ),
    ) as running:
        script = Path(__file__).with_name("root-on-lvm").read_text()
        running.write("/root/root-on-lvm", script)
        code, output = running.run("sh /root/root-on-lvm", timeout=400)
        assert code == 0, output
        running.session.reboot()
        mac = running.text("cat /sys/class/net/en*/address")
        for name, text in _NETDEVS.items():
            address = "" if name in ("vlan5", "dummy5") else f"MACAddress={mac}\n"
            running.write(
                f"/etc/systemd/network/20-{name}.netdev",
                f"[NetDev]\nName={name}\n{address}{text}",
            )
        for name, text in _NETWORKS.items():
            running.write(f"/etc/systemd/network/{name}.network", text)
        # However long it takes: an idle connection stays.
        running.text(
            "sed -i '/listen 80 /a keepalive_timeout 1h;' /etc/nginx/sites-available/default"
        )
        running.text("mkdir -p /etc/systemd/system/redis-server.service.d")
        running.write(
            "/etc/systemd/system/redis-server.service.d/credential.conf",
            "[Service]\nLoadCredential=note:/etc/machine-id\n",
        )
        running.session.set_up(1024)
        # It flushes all rules when it starts, also those of others.
        running.text("systemctl enable --quiet --now nftables.service")
        yield running


def links(guest: Guest) -> dict[str, Any]:
    """Everything that is set on each interface, and its addresses."""
    found: dict[str, Any] = {}
    for link in guest.json("ip -json -details link show"):
        info = link.get("linkinfo", {})
        for name in _STATE:
            info.get("info_data", {}).pop(name, None)
        port = info.get("info_slave_data", {})
        found[link["ifname"]] = (
            link.get("link"), link.get("master"), link["mtu"], link.get("address"),
            "UP" in link["flags"], info.get("info_kind"), info.get("info_data"),
            port.get("hairpin"),
        )  # fmt: skip
    for entry in guest.json("ip -json address show"):
        addresses = [item["local"] for item in entry["addr_info"]]
        found[entry["ifname"]] = (*found[entry["ifname"]], addresses)
    return found


def mounted(guest: Guest) -> list[list[str]]:
    """Every file system on a disk, and every part of one: where it lies, how it is mounted."""
    words = "findmnt --list --noheadings --output SOURCE,TARGET,FSTYPE,OPTIONS"
    # Of XFS not every kernel has attr2: it cannot be turned off any more.
    text = guest.text(words).replace(",attr2", "")
    lines = (line.split() for line in text.splitlines())
    return sorted(line for line in lines if line[0].startswith("/dev/"))


# Not mounted for the restore: by init when it wants it, with each kernel, or not at all (tracing:
# criu leaves it out).
_OF_INIT = ("/proc/sys/fs/binfmt_misc", "/sys/kernel/tracing", "/run/credentials/systemd-")


def redis_sees(guest: Guest) -> list[tuple[str, ...]]:
    """Where, what, and how it is mounted: in the namespace that systemd made for it."""
    pid = guest.main_pid("redis-server")
    found = []
    for line in guest.text(f"cat /proc/{pid}/mountinfo").splitlines():
        words = line.split()
        if words[4].startswith(_OF_INIT):
            continue
        peers = [word.partition(":")[0] for word in words[6 : words.index("-")]]
        found.append((words[4], words[3], words[5], *peers))
    return sorted(found)


def volumes(guest: Guest) -> list[list[str]]:
    """Devices of the device mapper, and what udev and systemd make of them."""
    found = []
    for name in guest.text("ls /dev/mapper").split():
        if name != "control":
            words = f"udevadm info --query=property --name=/dev/mapper/{name}"
            known = guest.text(words).splitlines()
            wanted = ("DM_NAME=", "DM_UUID=", "DM_UDEV_", "DM_VG_", "SYSTEMD_", "ID_FS_UUID=")
            found.append([name, *(line for line in known if line.startswith(wanted))])
    return found


def arrays(guest: Guest) -> list[str]:
    """Arrays of md, which disks are in them and how they do; and what udev makes of them."""
    told = guest.text("cat /proc/mdstat").splitlines()
    # Those that come with each: its disks, and how many of them there are.
    found = sorted(
        " ".join(sorted(line.split())) for line in told if " : active" in line or " blocks " in line
    )
    for name in ("most", "small"):
        known = guest.text(f"udevadm info --query=property --name=/dev/md/{name}").splitlines()
        wanted = ("DEVNAME=", "ID_FS_UUID=", "LVM_MD_", "MD_", "SYSTEMD_")
        found += [line for line in known if line.startswith(wanted)]
    return found


# Lets in what begins properly, and what it remembers to have begun.
_FIREWALL = """
table inet filter
delete table inet filter
table ip nat
delete table ip nat
table inet filter {
    chain input {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        udp dport 51820 accept
        ip protocol icmp accept
        tcp flags & (syn|ack) == syn tcp dport { 22, 80, 8080, 9090 } accept
    }
}
table ip nat {
    chain in {
        type nat hook prerouting priority -100
        tcp dport %d redirect to :80
    }
}
"""


def redirect(guest: Guest, port: int) -> None:
    """New connections to this port end at nginx."""
    guest.write("/root/firewall", _FIREWALL % port)
    guest.text("nft -f /root/firewall")


_TICK = "[Timer]\nOnCalendar=*-*-* 03:00:00\nUnit=by-hand.service\n"


def start_by_hand(guest: Guest) -> None:
    """What no target of a boot asks for."""
    guest.write("/etc/systemd/system/by-hand.service", "[Service]\nExecStart=/bin/sleep 1d\n")
    guest.write("/etc/systemd/system/tick.timer", _TICK)
    guest.text("systemctl daemon-reload && systemctl start by-hand.service tick.timer")
    guest.text("systemd-run --quiet --unit=week --property=MemoryMax=64M sleep 7d")
    guest.text("systemctl set-property --runtime week.service CPUWeight=50")
    guest.text("systemd-run --quiet --unit=later --on-active=1h touch /root/later")


_TUNNEL_PORT, _IN_TUNNEL, _TUNNEL_PEER = 51820, "203.0.113.2", "203.0.113.1/28"


def start_tunnel(guest: Guest) -> str:
    """Let wg-quick set up a tunnel to the host; returns the configuration of the other end."""
    ours, theirs = (run(["wg", "genkey"]).stdout.decode().strip() for _ in range(2))
    shared = run(["wg", "genpsk"]).stdout.decode().strip()
    our_public, their_public = (
        run(["wg", "pubkey"], stdin=key.encode()).stdout.decode().strip() for key in (ours, theirs)
    )
    guest.write(
        "/etc/wireguard/wg0.conf",
        f"[Interface]\nPrivateKey = {ours}\nAddress = {_IN_TUNNEL}/28\n"
        f"ListenPort = {_TUNNEL_PORT}\n"
        f"[Peer]\nPublicKey = {their_public}\nPresharedKey = {shared}\n"
        # All that has no other way: by rules, and with a filter of wg-quick's own.
        "AllowedIPs = 0.0.0.0/0\n",
    )
    guest.text("systemctl start wg-quick@wg0.service")
    return (
        f"[Interface]\nPrivateKey = {theirs}\n[Peer]\nPublicKey = {our_public}\n"
        f"PresharedKey = {shared}\nEndpoint = {GUEST_ADDRESS}:{_TUNNEL_PORT}\n"
        f"AllowedIPs = {_IN_TUNNEL}/32\n"
    )


def tunnel(guest: Guest) -> list[str]:
    """How it is set up with all that leads to it, and what systemd says of who did it."""
    words = "wg-quick@wg0.service nftables.service"
    commands = (
        "wg showconf wg0", "ip rule", "ip -6 rule", "ip route show table all",
        "nft -s list ruleset",
        f"systemctl show --property=Id,ActiveState,SubState,InvocationID {words}",
    )  # fmt: skip
    # Routes of one kind come in any order.
    return sorted(line for command in commands for line in guest.text(command).splitlines())


def by_hand(guest: Guest) -> tuple[list[str], dict[str, float]]:
    """What systemd says of it, and when the timers are due (UNIX time)."""
    words = "Id,ActiveState,MainPID,MemoryMax,CPUWeight,ControlGroup,NeedDaemonReload"
    units = "by-hand.service week.service tick.timer later.timer later.service"
    timers = guest.json("systemctl list-timers --output=json tick.timer later.timer")
    due = {timer["unit"]: timer["next"] / 1_000_000 for timer in timers}
    return guest.text(f"systemctl show --property={words} {units}").splitlines(), due


def test_root_on_lvm_network_on_a_bridge(guest: Guest) -> None:
    their_end = start_tunnel(guest)
    before, mounts_before, volumes_before = links(guest), mounted(guest), volumes(guest)
    arrays_before = arrays(guest)
    small = guest.text("realpath /dev/md/small")
    assert {*_NETDEVS} <= {*before}
    root, data = "/dev/mapper/some--vg-the--root", "/dev/mapper/some--vg-data"
    assert [line[:3] for line in mounts_before] == [
        [data, "/data", "xfs"],
        [f"{data}[/redis]", "/var/lib/redis", "xfs"],
        [root, "/", "xfs"],
        [f"{root}[/etc/hostname]", "/srv/name", "xfs"],
        [f"{root}[/var/log]", "/srv/logs", "xfs"],
        [small, "/small", "ext4"],
        ["/dev/vda", "/disk", "ext4"],
    ]
    guest.text("dd if=/dev/urandom of=/data/random bs=1M count=50 status=none")
    kept = guest.text("sha256sum /data/random")
    sees = redis_sees(guest)
    chrony = guest.main_pid("chrony")
    confined = guest.text(f"cat /proc/{chrony}/attr/current")
    assert confined == "/usr/sbin/chronyd (enforce)"
    guest.text("echo 17 > /proc/sys/vm/swappiness")
    start_by_hand(guest)
    started, due = by_hand(guest)
    assert sorted(due) == ["later.timer", "tick.timer"]
    redirect(guest, 8080)
    namespace = guest.session.machine.state.namespace
    with (
        namespace.vlan(5, _VLAN_PEER),
        namespace.wireguard(their_end, _TUNNEL_PEER),
        guest.connect(80) as connection,
        guest.connect(8080) as translated,
        namespace.connect((_ON_VLAN, 80), 120) as tagged,
        namespace.connect((_IN_TUNNEL, 80), 120) as tunnelled,
    ):
        for each in (connection, translated, tagged, tunnelled):
            get(each)
        # From here on only that connection itself is remembered.
        redirect(guest, 9090)
        tunnel_before = tunnel(guest)
        outcome = guest.upgrade(NEW)
        assert outcome.passed, guest.explain(outcome)
        for each in (connection, translated, tagged, tunnelled):
            get(each)
        assert tunnel(guest) == tunnel_before
    assert outcome.report["connections"]["lost"] == []
    assert guest.text("cat /proc/sys/vm/swappiness") == "17"
    assert guest.main_pid("chrony") == chrony
    assert guest.text(f"cat /proc/{chrony}/attr/current") == confined
    goes_on, still_due = by_hand(guest)
    assert goes_on == started
    assert guest.text("systemctl show --value --property=Transient week.service") == "yes"
    # Started again a while later, and systemd may choose a moment within a minute.
    assert still_due == pytest.approx(due, abs=180)
    assert links(guest) == before
    assert mounted(guest) == mounts_before
    assert volumes(guest) == volumes_before
    assert arrays(guest) == arrays_before
    assert redis_sees(guest) == sees
    # Its own mounts still follow those of the host, as systemd set them up.
    guest.text("mkdir -p /mnt/later && mount -t tmpfs later /mnt/later && touch /mnt/later/x")
    pid = guest.main_pid("redis-server")
    # There it may execute nothing but itself.
    guest.text(f"test -e /proc/{pid}/root/mnt/later/x")
    note = f"/proc/{pid}/root/run/credentials/redis-server.service/note"
    assert guest.text(f"cat {note}") == guest.text("cat /etc/machine-id")
    assert guest.text("redis-cli save") == "OK"
    guest.text("test -s /data/redis/dump.rdb")
    assert guest.text("sha256sum /data/random") == kept
    # Nothing of this failed, and LVM may do with its volumes what it likes.
    assert guest.text("systemctl is-system-running") == "running"
    guest.text("lvextend --quiet --size +20M --resizefs /dev/some-vg/the-root")
    # Nothing was left for whoever configures the network afterwards.
    assert guest.text("cat /run/rekernel/network.log") == ""


def test_back_with_an_array_that_lacks_a_disk(guest: Guest) -> None:
    chrony = guest.main_pid("chrony")
    confined = guest.text(f"cat /proc/{chrony}/attr/current")
    tunnel_before = tunnel(guest)
    guest.text("mdadm --quiet /dev/md/small --fail /dev/vdb5")
    guest.text("cp /etc/machine-id /small/ && udevadm settle")
    redis = guest.main_pid("redis-server")
    outcome = guest.upgrade(OLD)
    assert outcome.passed, guest.explain(outcome)
    assert (guest.main_pid("redis-server"), guest.main_pid("chrony")) == (redis, chrony)
    assert guest.text(f"cat /proc/{chrony}/attr/current") == confined
    assert tunnel(guest) == tunnel_before
    guest.text("mdadm --quiet /dev/md/small --remove failed || true")
    assert "[2/1]" in guest.text("cat /proc/mdstat")
    guest.text("cmp /etc/machine-id /small/machine-id")
    guest.text("mdadm --quiet /dev/md/small --re-add /dev/vdb5")
    guest.text("mdadm --wait /dev/md/small || true")
    assert "[2/1]" not in guest.text("cat /proc/mdstat")
    # Who has set up what is there still handles it.
    guest.text("systemctl reload nftables.service && systemctl restart wg-quick@wg0.service")
    assert guest.text("wg show wg0 listen-port") == str(_TUNNEL_PORT)
    guest.text("systemctl stop wg-quick@wg0.service && ! ip link show wg0")
