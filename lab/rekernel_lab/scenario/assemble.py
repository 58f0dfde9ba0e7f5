"""From a wish (kernels, packages, CRIU) to an image that can be booted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab.images import kernels, rootfs
from rekernel_lab.images.aptsources import host_mirror
from rekernel_lab.images.rootfs import Image
from rekernel_lab.progress import Progress
from rekernel_lab.vm import accel


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line may say about how a guest is made."""

    mirror: str = ""
    criu: str = ""
    accelerator: str = ""
    cpus: int = 2


@dataclass(frozen=True, slots=True)
class Assembly:
    """An image, the kernels that were asked for (in that order), and what runs it.

    `base` is the directory of the root file system that the image is made from.
    """

    base: Path
    image: Image
    releases: tuple[str, ...]
    accelerator: str


def assemble(
    progress: Progress, options: Options, prefixes: Sequence[str], packages: Iterable[str]
) -> Assembly:
    """Return an image with the kernels that `prefixes` name, and `packages`."""
    mirror = options.mirror or host_mirror()
    with progress.step("Looking up kernels"):
        offered = kernels.available(mirror)
        common = [kernels.pick(offered, prefix) for prefix in kernels.DEFAULT_PREFIXES]
        wanted = [kernels.pick(offered, prefix) for prefix in prefixes]
    with progress.step("Root file system: Debian 13, CRIU, kernels"):
        base = rootfs.base(mirror, common, options.criu)
    with progress.step("Disk image"):
        further = [kernel for kernel in wanted if kernel not in common]
        image = rootfs.image(base, packages, further)
    with progress.step("Accelerator"):
        name = accel.pick(image.kernel(image.releases()[0]), options.accelerator)
    return Assembly(base, image, tuple(kernel.release for kernel in wanted), name)
