"""A network namespace per VM: its tap device makes this host's kernel the guest's TCP peer."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab.errors import LabError
from rekernel_lab.images.guestfiles import GUEST_ADDRESS, HOST_ADDRESS, PREFIX_LENGTH
from rekernel_lab.run import run

TAP = "tap0"
_TAP_MAC = "52:54:00:4c:41:01"
# Of this host, once it lends addresses: on the guest's network, and behind the router.
ROUTER_ADDRESS, FAR_ADDRESS = "fd77::1/64", "fd88::1"
# linux/sched.h
_CLONE_NEWNET = 0x40000000
_NAMED = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A named network namespace. The tap lives and dies with it."""

    name: str

    def wrap(self, *command: str) -> list[str]:
        """Return `command` as it is run inside the namespace."""
        return ["ip", "netns", "exec", self.name, *command]

    def exists(self) -> bool:
        """Tell whether the namespace is there."""
        return (_NAMED / self.name).exists()

    def create(self) -> None:
        """Make the namespace with its tap device and address."""
        self.delete()
        run(["ip", "netns", "add", self.name])
        inside = ["ip", "-n", self.name]
        run([*inside, "link", "set", "lo", "up"])
        run([*inside, "tuntap", "add", TAP, "mode", "tap"])
        # A guest that goes on from a saved state knows this end by its address.
        run([*inside, "link", "set", TAP, "address", _TAP_MAC])
        run([*inside, "address", "add", f"{HOST_ADDRESS}/{PREFIX_LENGTH}", "dev", TAP])
        run([*inside, "link", "set", TAP, "up"])

    def delete(self) -> None:
        """Remove the namespace if it exists; QEMU must have ended for the tap to go."""
        if self.exists():
            run(["ip", "netns", "delete", self.name])

    @contextmanager
    def vlan(self, number: int, address: str) -> Iterator[None]:
        """Have the other end of the guest's VLAN, with this address and prefix length."""
        words = self.wrap(sys.executable, "-m", "rekernel_lab.vm.vlan", TAP, str(number), address)
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as peer:
            assert peer.stdout is not None
            try:
                if peer.stdout.readline() != "ready\n":
                    raise LabError(f"VLAN {number}: its other end did not start")
                yield
            finally:
                peer.kill()

    @contextmanager
    def wireguard(self, config: str, address: str) -> Iterator[None]:
        """Have an end of a tunnel, with this configuration (wg(8)), address and prefix length."""
        # Its socket is in a directory that all namespaces share.
        name = f"wg{os.getpid()}"
        words = self.wrap("wireguard-go", "--foreground", name)
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as end:
            try:
                self._wait_for(name, end)
                run(self.wrap("wg", "setconf", name, "/dev/stdin"), stdin=config.encode())
                run(["ip", "-n", self.name, "address", "add", address, "dev", name])
                run(["ip", "-n", self.name, "link", "set", name, "up"])
                yield
            finally:
                end.terminate()

    def _wait_for(self, name: str, end: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 10
        while run(self.wrap("wg", "show", name), check=False).returncode:
            if end.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"{name}: the end of a tunnel did not start")
            time.sleep(0.1)

    @contextmanager
    def dhcp(self) -> Iterator[None]:
        """Lend the guest its address, as a router does, for two minutes at a time; and announce an
        IPv6 network, and the way to FAR_ADDRESS.
        """
        run(["ip", "-n", self.name, "address", "add", ROUTER_ADDRESS, "dev", TAP, "nodad"])
        run(["ip", "-n", self.name, "address", "add", FAR_ADDRESS, "dev", "lo"])
        # Else it says of itself that it is no router, to whoever asks whether it is there still;
        # systemd-networkd forgets the way by it then.
        run(self.wrap("sysctl", "--quiet", "--write", "net.ipv6.conf.all.forwarding=1"))
        words = self.wrap(
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=",
            "--user=root", "--log-facility=-", "--port=0", f"--interface={TAP}",
            "--bind-interfaces", "--dhcp-authoritative", "--leasefile-ro",
            f"--dhcp-range={GUEST_ADDRESS},{GUEST_ADDRESS},2m",
            f"--dhcp-option=option:router,{HOST_ADDRESS}",
            "--enable-ra", f"--dhcp-range=::,constructor:{TAP},ra-only,10m",
        )  # fmt: skip
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as server:
            try:
                yield
            finally:
                server.kill()

    def connect(self, address: tuple[str, int], timeout: float, source: str = "") -> socket.socket:
        """Return a TCP connection made inside the namespace, from ``source``; raises OSError."""

        def inside() -> socket.socket:
            libc = ctypes.CDLL(None, use_errno=True)
            descriptor = os.open(_NAMED / self.name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(descriptor, _CLONE_NEWNET):
                    error = ctypes.get_errno()
                    raise OSError(error, os.strerror(error), self.name)
            finally:
                os.close(descriptor)
            return socket.create_connection(address, timeout, (source, 0) if source else None)

        # A namespace is a property of a thread, and a socket stays where it was made.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(inside).result()
