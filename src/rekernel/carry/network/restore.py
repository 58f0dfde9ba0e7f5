"""Links, addresses and routes, behind a table that drops everything until the commit."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress

from rekernel import smallfiles, syscalls
from rekernel.carry.network.entry import FILTER, Link, Network, Tunnel
from rekernel.pid1 import processes
from rekernel.pid1.console import Tolerated, miss, say

_LOG = "/run/rekernel/network.log"

_CLASS = "/sys/class/net"
# include/uapi/linux/if.h
_IFF_UP = 1
# include/uapi/linux/sockios.h
_SIOCSIFNAME = 0x8923


def _addresses() -> dict[str, str]:
    """MAC address -> interface name."""
    found = {}
    for name in os.listdir("/sys/class/net"):
        try:
            with open(f"/sys/class/net/{name}/address") as file:
                mac = file.read().strip()
        except OSError:
            continue
        # A bridge or VLAN has the address of what it stands on; a device is the real one.
        if name == "lo" or os.path.exists(f"/sys/class/net/{name}/device"):
            found[mac] = name
    return found


def _rename(links: Sequence[Link], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    for link in links:
        while link.mac not in _addresses():
            if time.monotonic() > deadline:
                miss(f"no network interface has the address {link.mac} ({link.name})")
                break
            time.sleep(0.005)
        name = _addresses().get(link.mac)
        if name is None or name == link.name:
            continue
        with Tolerated(f"interface {link.name} is called {name}"):
            if os.path.exists(f"/sys/class/net/{link.name}"):
                # Another one has that name now, and gets its own when it is its turn.
                _rename_one(link.name, f"other{links.index(link)}")
            _rename_one(name, link.name)


def _rename_one(name: str, wanted: str) -> None:
    request = struct.pack("16s16s", name.encode(), wanted.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFNAME, request)


def _set_ipv6(links: Sequence[Link], conf: str = "/proc/sys/net/ipv6/conf") -> None:
    """Before they are up."""
    for link in links:
        for name, value in link.ipv6.items():
            try:
                smallfiles.write(f"{conf}/{link.name}/{name}", value.encode())
            except OSError as error:
                say(f"{name} of {link.name} is not {value}: {error.strerror}")


def set_up(network: Network) -> None:
    """Lock first, then bring everything up. Raises ProgramFailedError if there is no lock."""
    _feed(["nft", "-f", "-"], network.lock_rules)
    syscalls.set_link_up("lo")
    _rename(network.links)
    _set_ipv6(network.links)
    for name, tunnel in network.tunnels.items():
        with Tolerated(f"the tunnel {name}"):
            _make(name, tunnel)
            continue
        _give_up(network, name)
    for family, text in (("", network.batch), *network.rules.items()):
        if not text:
            continue
        options = [family] if family else []
        # -force: one refused line (an IPv6 link-local route, say) must not keep the rest out.
        argv = ["ip", *options, "-force", "-batch", "-"]
        try:
            processes.wait(processes.feed(argv, text.encode(), log=_LOG), "ip")
        except processes.ProgramFailedError:
            say(f"some network settings were refused, see {_LOG}")
    for name, tunnel in network.tunnels.items():
        if tunnel.up and name not in given_up and not _is_up(name):
            miss(f"the tunnel {name} does not come up")
            _give_up(network, name)
    # Rules may name interfaces that must exist.
    if not _load(network):
        _leave_to_init(network, FILTER)


def _make(name: str, tunnel: Tunnel) -> None:
    """Before it is up, so that it takes its own port and no other."""
    _feed(["ip", "link", "add", name, "type", "wireguard"], "")
    _feed(["wg", "setconf", name, "/proc/self/fd/0"], tunnel.config)


def _remove(name: str) -> None:
    with suppress(OSError, processes.ProgramFailedError):
        _feed(["ip", "link", "delete", name], "")


def remove_tunnels(network: Network) -> None:
    """Remove tunnels for a normal boot: who sets them up would find them there."""
    for name in network.tunnels:
        _remove(name)


def wake_tunnels(network: Network) -> None:
    """After the commit: agree on keys with all peers that can be reached."""
    for name, tunnel in network.tunnels.items():
        if name not in given_up:
            with Tolerated(f"keepalives of the tunnel {name}"):
                for words in (tunnel.wake, tunnel.settle):
                    if words:
                        _feed(["wg", "set", name, *words], "")


# Units of systemd that start as at any boot, as what they had set up is not there; and tunnels that
# are not.
afresh: set[str] = set()
given_up: set[str] = set()


def _is_up(name: str) -> bool:
    try:
        return bool(int(smallfiles.read(f"{_CLASS}/{name}/flags"), 16) & _IFF_UP)
    except OSError:
        return False


def _give_up(network: Network, name: str) -> None:
    """With no keys it is worse than none: wg-quick would write that into its configuration."""
    given_up.add(name)
    _remove(name)
    _leave_to_init(network, name)


def _leave_to_init(network: Network, part: str) -> None:
    afresh.update(unit for unit, its_part in network.settled.items() if its_part == part)


def _load(network: Network) -> bool:
    """The packet filter, or all of it that this kernel takes; whether that is all there is."""
    refused = 0
    try:
        if network.tables:
            _feed(["nft", "-f", "-"], "".join(network.tables.values()))
    except processes.ProgramFailedError:
        for name, text in network.tables.items():
            with Tolerated(f"table {name} of the packet filter"):
                _feed(["nft", "-f", "-"], text)
                continue
            refused += 1
    for name, text in network.saved.items():
        program, _, table = name.partition(" ")
        with Tolerated(f"table {table} of the packet filter"):
            _feed([program], text)
            continue
        refused += 1
    return not refused


def _feed(argv: list[str], text: str) -> None:
    processes.wait(processes.feed(argv, text.encode(), log=_LOG), argv[0])


def unlock(network: Network) -> None:
    """Let packets through, whatever else the rules for that want and the kernel may not have."""
    try:
        _feed(["nft", "-f", "-"], network.unlock_rules)
    except processes.ProgramFailedError:
        say(f"containers are not protected until they are back, see {_LOG}")
        give_up()


def give_up() -> None:
    """Take the lock away, if it is there: the machine boots normally."""
    argv = ["nft", "delete", "table", "inet", "rekernel_lock"]
    try:
        processes.wait(processes.start(argv, log=_LOG), "nft")
    except (OSError, processes.ProgramFailedError) as error:
        say(f"no network lock was taken away: {error}")
