"""Whether a kernel takes the network as it was written out: this one, in a namespace of its own.

What the next kernel refuses is found out in the blackout, and a service whose connection has no way
any more is lost. Most of what can be wrong with it is wrong here as well.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from rekernel import syscalls
from rekernel.carry.network import wireguard
from rekernel.carry.network.entry import Network
from rekernel.errors import RekernelError
from rekernel.run import CommandFailedError, run

# ip -batch: what the kernel or ip itself says, and the number of the line.
_REFUSED = re.compile(r"(?:RTNETLINK answers: |Error: )?([^\n]*)\nCommand failed -:(\d+)")


def refused(network: Network) -> list[str]:
    """Lines that would not be taken, each with the reason; and why, if that could not be tried."""
    # A namespace is a property of a thread, and goes with it.
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(_refused, network).result()
        except (OSError, RekernelError) as error:
            return [f"none of it could be tried: {error}"]


def _refused(network: Network) -> list[str]:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    syscalls.set_link_up("lo")
    # In place of the machine's devices, so that they are up if they are there.
    for number, link in enumerate(network.links):
        ours = ["ip", "link", "add", link.name, "address", link.mac]
        run([*ours, "type", "veth", "peer", "name", f"rekernel{number}"])
        run(["ip", "link", "set", f"rekernel{number}", "up"])
    for name in network.tunnels:
        run(["ip", "link", "add", name, "type", wireguard.KIND])
    found = []
    for family, text in (("", network.batch), *network.rules.items()):
        words = ["ip", *([family] if family else []), "-force", "-batch", "-"]
        try:
            run(words, stdin=text)
        except CommandFailedError as error:
            lines = text.splitlines()
            found += [
                f"{lines[int(number) - 1]} ({reason.rstrip('.')})"
                for reason, number in _REFUSED.findall(error.output)
                # The kernel has made it by itself.
                if reason != "File exists"
            ]
            # What ip does not understand is the end of all.
            last = error.output.strip().splitlines()[-1:]
            if not (last and last[0].startswith("Command failed -:")):
                found.append("".join(last))
    return found
