"""rekernel-lab: the only place of the lab that prints and exits."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rekernel_lab import hostsetup
from rekernel_lab.bench import registry as bench
from rekernel_lab.errors import LabError
from rekernel_lab.images import rootfs
from rekernel_lab.progress import Progress
from rekernel_lab.scenario import scenario
from rekernel_lab.scenario.assemble import Options, assemble
from rekernel_lab.scenario.runner import Runner
from rekernel_lab.vm import leftovers, state, vm
from rekernel_lab.vm.qemu import Machine
from rekernel_lab.zdtm import command as zdtm

_DEFAULT_NAME = "default"
_BEFORE_QUICKER_VERBS = "47a3c62"


def _split(value: str) -> list[str]:
    return [word for word in value.replace(",", " ").split() if word]


def _numbers(value: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _split(value))


_numbers.__name__ = "list of numbers"


def _options(arguments: argparse.Namespace) -> Options:
    return Options(arguments.mirror, arguments.criu, arguments.accel, arguments.cpus)


def _setup_host(arguments: argparse.Namespace, progress: Progress) -> int:
    if not hostsetup.setup(progress.line, arguments.mirror):
        progress.line("Everything that the lab needs is installed.")
    return 0


def _up(arguments: argparse.Namespace, progress: Progress) -> int:
    made = assemble(progress, _options(arguments), [arguments.kernel], _split(arguments.packages))
    machine = Machine(
        made.accelerator, arguments.memory, arguments.cpus, arguments.disk, arguments.uefi
    )
    name, release = arguments.name, made.releases[0]
    with progress.step(f"Booting {release}"):
        new = vm.start(name, machine, made.image, release, cmdline=arguments.cmdline)
        try:
            new.wait_ready()
        except BaseException:
            new.close()
            raise
    progress.line(f"VM {name} runs. rekernel-lab shell {name}, logs {name}, down {name}")
    return 0


def _shell(arguments: argparse.Namespace, progress: Progress) -> int:
    machine = vm.VM(arguments.name)
    machine.check_running()
    guest = machine.guest
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return guest.interactive(arguments.command, terminal=terminal)


def _put(arguments: argparse.Namespace, progress: Progress) -> int:
    vm.VM(arguments.name).guest.push(arguments.source, arguments.target)
    return 0


def _get(arguments: argparse.Namespace, progress: Progress) -> int:
    vm.VM(arguments.name).guest.pull(arguments.source, arguments.directory)
    return 0


def _logs(arguments: argparse.Namespace, progress: Progress) -> int:
    sys.stdout.write(state.load(arguments.name).serial_log.read_text(errors="replace"))
    return 0


def _list(arguments: argparse.Namespace, progress: Progress) -> int:
    for one in state.load_all():
        # Its keeper would have noted the end, had it not been killed.
        gone = one.phase in ("starting", "running") and not one.keeper.alive()
        phase = "gone" if gone else one.phase
        print(f"{one.name:16} {phase:9} {one.release}  {one.machine.memory_mib} MiB")
    return 0


def _down(arguments: argparse.Namespace, progress: Progress) -> int:
    vm.VM(arguments.name).close()
    return 0


def _reset(arguments: argparse.Namespace, progress: Progress) -> int:
    old = state.load(arguments.name)
    with progress.step(f"Starting {old.name} again with a clean disk"):
        vm.VM(old.name).close()
        image = rootfs.Image(old.image)
        new = vm.start(old.name, old.machine, image, old.release, cmdline=old.cmdline)
        new.wait_ready()
    return 0


def _reboot(arguments: argparse.Namespace, progress: Progress) -> int:
    machine = vm.VM(arguments.name)
    release = None
    if arguments.kernel:
        release = rootfs.Image(machine.state.image).release(arguments.kernel)
    with progress.step(f"Rebooting {arguments.name}"):
        machine.reboot(release=release, cmdline=arguments.cmdline)
    return 0


def _wait(arguments: argparse.Namespace, progress: Progress) -> int:
    with progress.step(f"Waiting for {arguments.name}"):
        vm.VM(arguments.name).wait_ready(arguments.timeout)
    return 0


def _run(arguments: argparse.Namespace, progress: Progress) -> int:
    one = scenario.load(arguments.scenario).override(
        kernel_from=arguments.kernel_from,
        upgrades=_split(arguments.upgrades),
        memory_mib=arguments.memory,
    )
    result = Runner(one, progress, _options(arguments), arguments.deb).run()
    if arguments.json:
        arguments.json.write_text(json.dumps(result.to_json(), indent=2) + "\n")
    for shortcoming in result.shortcomings():
        progress.error(shortcoming)
    for name, script in result.scripts.items():
        progress.line(f"{name}: exit code {script.exit_code}, {script.log}")
    progress.line(f"{one.name}: {'passed' if result.passed else 'FAILED'}, logs in {result.output}")
    return 0 if result.passed else 1


def _bench(arguments: argparse.Namespace, progress: Progress) -> int:
    request = bench.Request(
        progress,
        _options(arguments),
        arguments.deb,
        arguments.json,
        arguments.kernel,
        arguments.sizes,
        arguments.rounds,
        arguments.smoke,
        arguments.against,
    )
    return bench.find(arguments.benchmark)(request)


def _zdtm(arguments: argparse.Namespace, progress: Progress) -> int:
    request = zdtm.Request(
        progress,
        _options(arguments),
        arguments.deb,
        arguments.json,
        arguments.kernel_from,
        tuple(_split(arguments.upgrades)),
        tuple(_split(arguments.only)),
        tuple(_split(arguments.without)),
        arguments.limit,
        arguments.memory,
        arguments.again,
    )
    return zdtm.zdtm(request)


def _clean(arguments: argparse.Namespace, progress: Progress) -> int:
    leftovers.clean(progress.line, everything=arguments.all)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="rekernel-lab",
        description="Virtual machines with real Debian kernels, to try out rekernel.",
    )
    top.add_argument("--verbose", action="store_true", help="show every command that is run")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    guest = argparse.ArgumentParser(add_help=False)
    guest.add_argument("--mirror", default="", help="Debian mirror (default: this host's own)")
    guest.add_argument("--criu", default="", metavar="VERSION", help="CRIU (default: forky's)")
    guest.add_argument("--accel", default="", metavar="NAME", help="kvm or tcg (default: probed)")
    guest.add_argument("--cpus", type=int, default=2, metavar="N")
    package = argparse.ArgumentParser(add_help=False)
    package.add_argument("--deb", type=Path, metavar="FILE", help="package (default: build it)")
    package.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("name", nargs="?", default=_DEFAULT_NAME, help="the VM")

    verb = verbs.add_parser("setup-host", help="install what the lab needs")
    verb.add_argument("--mirror", default="", help="Debian mirror (default: this host's own)")
    verb.set_defaults(function=_setup_host)

    verb = verbs.add_parser("up", parents=[guest], help="start a VM in the background")
    verb.add_argument("--name", default=_DEFAULT_NAME)
    verb.add_argument("--kernel", default="6.12", metavar="PREFIX")
    verb.add_argument("--memory", type=int, default=6144, metavar="MIB")
    verb.add_argument("--disk", type=int, default=0, metavar="MIB", help="a second, empty disk")
    verb.add_argument("--uefi", action="store_true", help="instead of a BIOS")
    verb.add_argument("--packages", default="", metavar="A,B", help="more Debian packages")
    verb.add_argument("--cmdline", default="", metavar="ARGS", help="more kernel arguments")
    verb.set_defaults(function=_up)

    verb = verbs.add_parser("shell", parents=[named], help="a shell, or a command, in a guest")
    verb.add_argument("command", nargs="*", metavar="COMMAND")
    verb.set_defaults(function=_shell)

    verb = verbs.add_parser("put", help="copy a file or directory into a guest")
    verb.add_argument("name")
    verb.add_argument("source", type=Path)
    verb.add_argument("target", help="full path in the guest")
    verb.set_defaults(function=_put)

    verb = verbs.add_parser("get", help="copy a file or directory out of a guest")
    verb.add_argument("name")
    verb.add_argument("source")
    verb.add_argument("directory", type=Path, help="directory on the host")
    verb.set_defaults(function=_get)

    for name, function, words in (
        ("logs", _logs, "print the serial log"),
        ("down", _down, "end a VM; its logs stay"),
        ("reset", _reset, "start a VM again with a clean disk"),
    ):
        verb = verbs.add_parser(name, parents=[named], help=words)
        verb.set_defaults(function=function)

    verb = verbs.add_parser("wait", parents=[named], help="wait until a guest answers")
    verb.add_argument("--timeout", type=float, default=vm.BOOT_TIMEOUT_S, metavar="SECONDS")
    verb.set_defaults(function=_wait)

    verb = verbs.add_parser("list", help="list the VMs")
    verb.set_defaults(function=_list)

    verb = verbs.add_parser("reboot", parents=[named], help="reboot through the boot loader")
    verb.add_argument("--kernel", default="", metavar="PREFIX", help="another kernel")
    verb.add_argument("--cmdline", metavar="ARGS", help="other kernel arguments")
    verb.set_defaults(function=_reboot)

    verb = verbs.add_parser("run", parents=[guest, package], help="run a scenario directory")
    verb.add_argument("scenario", type=Path, metavar="DIRECTORY")
    verb.add_argument("--from", default="", dest="kernel_from", metavar="PREFIX")
    verb.add_argument("--upgrades", default="", metavar="PREFIX,PREFIX")
    verb.add_argument("--memory", type=int, default=0, metavar="MIB")
    verb.set_defaults(function=_run)

    verb = verbs.add_parser("bench", parents=[guest, package], help="run a benchmark")
    verb.add_argument("benchmark", metavar="NAME")
    verb.add_argument("--kernel", default="7", metavar="PREFIX")
    verb.add_argument(
        "--sizes", type=_numbers, default=(), metavar="MIB,MIB", help="sizes of the data (blackout)"
    )
    verb.add_argument(
        "--rounds",
        type=int,
        default=2,
        metavar="N",
        help="how often: up and down the sizes (blackout), or the loads in turn (scale)",
    )
    verb.add_argument(
        "--smoke", action="store_true", help="only see that it works: the smallest load, once"
    )
    verb.add_argument(
        "--against",
        default=_BEFORE_QUICKER_VERBS,
        metavar="COMMIT|FILE.deb",
        help="the version to compare with (verbs; default: the one before they became quicker)",
    )
    verb.set_defaults(function=_bench)

    verb = verbs.add_parser("zdtm", parents=[guest, package], help="CRIU's own tests, carried")
    verb.add_argument("--only", default="", metavar="PATTERN,PATTERN", help="tests by name")
    verb.add_argument("--without", default="", metavar="PATTERN,PATTERN", help="leave these out")
    verb.add_argument("--limit", type=int, default=0, metavar="N", help="at most so many")
    verb.add_argument("--again", action="store_true", help="with criu alone anew, too")
    verb.add_argument("--from", default="6.12", dest="kernel_from", metavar="PREFIX")
    verb.add_argument("--upgrades", default="7", metavar="PREFIX,PREFIX")
    verb.add_argument("--memory", type=int, default=6144, metavar="MIB")
    verb.set_defaults(function=_zdtm)

    verb = verbs.add_parser("clean", help="end all VMs and remove what they left")
    verb.add_argument("--all", action="store_true", help="empty the cache, too")
    verb.set_defaults(function=_clean)
    return top


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> None:
    """Run the lab and exit."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.WARNING, format="%(message)s"
    )
    # Ended by a supervisor is ended by hand: the same way out, through every `finally`.
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress()
    try:
        code = int(arguments.function(arguments, progress))
    except LabError as error:
        progress.error(f"error: {error}")
        if error.hint:
            progress.line(f"  {error.hint}")
        code = error.exit_code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read us has seen enough; keep Python from complaining at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)
