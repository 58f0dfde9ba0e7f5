"""What the packet filter remembers, taken from a real kernel and set again in the same one."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekernel import netlink
from rekernel.carry.conntrack import observe as conntrack
from rekernel.carry.conntrack import restore as agent

SOURCE = Path(__file__).parents[4] / "src"

# A connection over translated addresses, whose rule goes and whose entry is forgotten: then the
# server's bytes find no way to the client, until the entry is set again.
_PROGRAM = r"""
import os, socket, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from rekernel import syscalls
from rekernel.carry.conntrack import restore as agent
from rekernel import netlink
from rekernel.carry.conntrack import observe as conntrack

RULES = '''table ip nat {
    chain out { type nat hook output priority -100; policy accept;
        ip daddr 127.0.0.9 tcp dport 7000 dnat to 127.0.0.1:7001
        ip daddr 127.0.0.9 udp dport 7000 dnat to 127.0.0.1:7001
    }
    chain post { type nat hook postrouting priority 100; policy accept;
        tcp dport 7001 snat to 127.0.0.5:9000
    }
}'''

syscalls.unshare(syscalls.CLONE_NEWNET)
syscalls.set_link_up("lo")
assert conntrack.observe() == []
subprocess.run(["nft", "-f", "-"], input=RULES.encode(), check=True)

listener = socket.create_server(("127.0.0.1", 7001))
client = socket.create_connection(("127.0.0.9", 7000), 10)
server, peer = listener.accept()
assert peer == ("127.0.0.5", 9000), peer
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 7001))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.settimeout(10)
sender.connect(("127.0.0.9", 7000))
sender.send(b"x")
asker = datagrams.recvfrom(10)[1]
# Without any rule that needs it the kernel would not track at all.
RULE = "ip daddr 127.0.0.77 tcp dport 1 dnat to 127.0.0.1:1"
subprocess.run(["nft", "flush table ip nat; add rule ip nat out " + RULE], check=True)

def entries():
    # Without what counts down, what is another number each time, and an empty CTA_SYNPROXY that
    # the kernel adds to what is set.
    volatile = {7, 11, 12, 24}
    found = []
    for reply in conntrack.observe():
        known = netlink.attributes(reply, netlink.HEADER.size + 4)
        info = netlink.attributes(netlink.attributes(known.pop(4, b"")).get(1, b""))
        flags = [info.pop(kind, b"")[:1] for kind in (4, 5)]
        left = {kind: value for kind, value in known.items() if kind not in volatile}
        found.append((sorted(left.items()), sorted(info.items())))
    return sorted(found)

before = entries()
assert len(before) == 2, before
requests = conntrack.requests(conntrack.observe())
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
    # IPCTNL_MSG_CT_DELETE of all, acknowledged.
    sock.send(netlink.message(0x102, 5, bytes(4)))
    sock.recv(4096)
assert conntrack.observe() == []
agent.restore(requests, 0)
after = entries()
assert after == before, (before, after)
agent.miss = print
agent.restore(netlink.message(0x100, 0x401, bytes(4)) * 3, 0)

server.settimeout(10)
for number in range(20):
    text = b"%d" % number
    server.sendall(text)
    assert client.recv(100) == text
    client.sendall(text)
    assert server.recv(100) == text
    datagrams.sendto(text, asker)
    assert sender.recv(100) == text
"""


@pytest.mark.skipif(
    os.geteuid() != 0
    or shutil.which("nft") is None
    or not Path("/proc/sys/net/netfilter").exists(),
    reason="needs root, nft and a kernel with connection tracking",
)
def test_translated_connections_go_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(SOURCE)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "connection tracking: 3 entries refused, error 22\n"


def entry(original: bytes, reply: bytes, *more: bytes) -> bytes:
    """A message as the kernel sends it."""
    parts = [netlink.attribute(1, original), netlink.attribute(2, reply), *more]
    return netlink.message(0x100, 0, struct.pack("=BBH", socket.AF_INET, 0, 0) + b"".join(parts))


def endpoints(source: str, target: str, protocol: int, *rest: bytes) -> bytes:
    """One direction."""
    address = netlink.attribute(1, socket.inet_aton(source)) + netlink.attribute(
        2, socket.inet_aton(target)
    )
    own = netlink.attribute(1, bytes([protocol])) + b"".join(rest)
    return netlink.attribute(1, address) + netlink.attribute(2, own)


TIMEOUT = netlink.attribute(7, (60).to_bytes(4, "big"))


def test_what_cannot_be_set_is_left_out() -> None:
    there, back = endpoints("10.0.0.1", "10.0.0.2", 1), endpoints("10.0.0.2", "10.0.0.1", 1)
    plain = entry(there, back, TIMEOUT)
    translated = entry(there, endpoints("10.0.0.2", "10.0.0.3", 1), TIMEOUT)
    dying = entry(there, back)
    made = conntrack.requests([dying, translated, plain])
    assert [kind for kind, _, _ in netlink.messages(made)] == [0x100]


@given(st.binary(max_size=200))
def test_odd_messages_do_no_harm(body: bytes) -> None:
    reply = netlink.message(0x100, 0, bytes(4) + body)
    made = conntrack.requests([reply])
    assert len(list(netlink.messages(made))) <= 1


@given(st.integers(0, 200))
def test_requests_go_in_chunks(count: int) -> None:
    data = netlink.message(0x100, 5, b"abcd") * count
    chunks = list(agent._chunks(data))
    assert b"".join(chunks) == data
    assert all(len(list(netlink.messages(chunk))) <= 64 for chunk in chunks)
