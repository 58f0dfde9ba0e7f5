"""rekernel-lab: the only place of the lab that prints and exits."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rekernel_lab import kernels, rootfs, state, vm
from rekernel_lab.aptsources import host_mirror
from rekernel_lab.errors import LabError
from rekernel_lab.qemu import Machine

console = Console(stderr=True, highlight=False)


def _split(value: str) -> list[str]:
    return [word for word in value.replace(",", " ").split() if word]


def _up(arguments: argparse.Namespace) -> int:
    mirror = arguments.mirror or host_mirror()
    with console.status("Looking up kernels"):
        wanted = kernels.resolve(mirror, kernels.DEFAULT_PREFIXES)
    with console.status("Building the root file system (about a minute, then cached)"):
        base = rootfs.base(mirror, wanted, arguments.criu)
    with console.status("Building the disk image"):
        image = rootfs.image(base, _split(arguments.packages))
    release = image.release(arguments.kernel)
    machine = Machine("tcg", arguments.memory, arguments.cpus)
    began = time.monotonic()
    with console.status(f"Booting {release}"):
        new = vm.start(arguments.name, machine, image, release, cmdline=arguments.cmdline)
        new.wait_ready()
    console.print(f"{arguments.name}: {release}, up after {time.monotonic() - began:.0f} s")
    console.print(f"  rekernel-lab shell {arguments.name}")
    return 0


def _shell(arguments: argparse.Namespace) -> int:
    guest = vm.VM(arguments.name).guest
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return guest.interactive(arguments.command, terminal=terminal)


def _put(arguments: argparse.Namespace) -> int:
    vm.VM(arguments.name).guest.push(arguments.source, arguments.target)
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    sys.stdout.write(state.load(arguments.name).serial_log.read_text(errors="replace"))
    return 0


def _down(arguments: argparse.Namespace) -> int:
    vm.VM(arguments.name).close()
    return 0


def _reboot(arguments: argparse.Namespace) -> int:
    machine = vm.VM(arguments.name)
    release = None
    if arguments.kernel:
        release = rootfs.Image(machine.state.image).release(arguments.kernel)
    with console.status("Rebooting"):
        machine.reboot(release=release, cmdline=arguments.cmdline)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rekernel-lab", description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="show every command")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start a VM in the background")
    up.add_argument("--name", default="default")
    up.add_argument("--kernel", default="6.12")
    up.add_argument("--memory", type=int, default=6144)
    up.add_argument("--cpus", type=int, default=2)
    up.add_argument("--packages", default="")
    up.add_argument("--cmdline", default="")
    up.add_argument("--criu", default="")
    up.add_argument("--mirror", default="")
    up.set_defaults(function=_up)
    shell = verbs.add_parser("shell", help="a shell or a command in the guest")
    shell.add_argument("name", nargs="?", default="default")
    shell.add_argument("command", nargs="*")
    shell.set_defaults(function=_shell)
    put = verbs.add_parser("put", help="copy into the guest")
    put.add_argument("name")
    put.add_argument("source", type=Path)
    put.add_argument("target")
    put.set_defaults(function=_put)
    for verb, function in (("logs", _logs), ("down", _down)):
        simple = verbs.add_parser(verb)
        simple.add_argument("name", nargs="?", default="default")
        simple.set_defaults(function=function)
    reboot = verbs.add_parser("reboot")
    reboot.add_argument("name", nargs="?", default="default")
    reboot.add_argument("--kernel", default="")
    reboot.add_argument("--cmdline", default=None)
    reboot.set_defaults(function=_reboot)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the lab and exit."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.WARNING, format="%(message)s"
    )
    try:
        code = arguments.function(arguments)
    except LabError as error:
        console.print(f"error: {error}", style="red", markup=False)
        if error.hint:
            console.print(f"  {error.hint}", markup=False)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
