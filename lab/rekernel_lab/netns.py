"""A network namespace per VM: its tap device makes this host's kernel the guest's TCP peer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rekernel_lab.guestfiles import HOST_ADDRESS, PREFIX_LENGTH
from rekernel_lab.run import run

TAP = "tap0"
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
        run([*inside, "address", "add", f"{HOST_ADDRESS}/{PREFIX_LENGTH}", "dev", TAP])
        run([*inside, "link", "set", TAP, "up"])

    def delete(self) -> None:
        """Remove the namespace if it exists; QEMU must have ended for the tap to go."""
        if self.exists():
            run(["ip", "netns", "delete", self.name])
