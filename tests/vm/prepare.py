"""Makes the guest that several VM test files begin with: beside what needs no guest, as it takes
minutes where nothing is cached. Whatever fails here fails in the first test, too, and is told
there.
"""

from __future__ import annotations

from rekernel_lab.progress import Progress
from rekernel_lab.scenario import assemble, prepared, runner
from vm.support import shared_guest


def main() -> None:
    """Make it, unless it is there."""
    options, progress, base = assemble.Options(), Progress(terminal=False), shared_guest()
    deb = runner.package(progress, None)
    assembly = runner.assemble_for(base, progress, options, deb)
    output = runner.output_directory("prepare")
    prepared.prepare(assembly, deb, base, options.cpus, progress, output)


if __name__ == "__main__":
    main()
