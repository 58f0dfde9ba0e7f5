"""Debian root file systems for guests: a slow base layer, a quick layer per package list."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rekernel_lab import cache
from rekernel_lab.errors import LabError
from rekernel_lab.images import guestfiles
from rekernel_lab.images.kernels import Kernel, matches, version_of
from rekernel_lab.run import run, text

# Raise this when the way an image is made changes in a manner the ingredients do not show.
LAYOUT = 1

DISK_SIZE = "8G"

BASE_PACKAGES = (
    "ca-certificates",
    "dbus",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "less",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "python3-rich",
    "systemd",
    "systemd-sysv",
    "udev",
    "zstd",
)

# CRIU before 4.2.1 cannot dump inet sockets on kernels >= 6.16, so it comes from forky, with
# the libraries that it needs in a newer version; nothing else does. Split kernel packages
# need the linux-base of their own suite.
PREFERENCES = """\
Package: *
Pin: release n=forky
Pin-Priority: 100

Package: {criu_packages}
Pin: {criu_pin}
Pin-Priority: 990

Package: linux-*
Pin: release n=trixie-backports
Pin-Priority: 990
"""

_INITRAMFS_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")


@dataclass(frozen=True, slots=True)
class Keys:
    """The ssh keys of the lab: one for the client, one that every guest has as host key."""

    directory: Path

    @property
    def client(self) -> Path:
        """Private key that may log in as root."""
        return self.directory / "client"

    @property
    def host(self) -> Path:
        """Private host key of the guests."""
        return self.directory / "host"

    @property
    def known_hosts(self) -> Path:
        """known_hosts file that names the guests' host key."""
        return self.directory / "known_hosts"


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system ready to boot: `disk` is a raw ext4 image, `boot` its /boot."""

    directory: Path

    @property
    def disk(self) -> Path:
        """The clean disk; never boot it, copy it."""
        return self.directory / "disk.raw"

    @property
    def boot(self) -> Path:
        """Copies of the guest's kernels."""
        return self.directory / "boot"

    def releases(self) -> list[str]:
        """Return the installed kernels, oldest first."""
        names = (path.name.removeprefix("vmlinuz-") for path in self.boot.glob("vmlinuz-*"))
        return sorted(names, key=version_of)

    def release(self, prefix: str) -> str:
        """Return the newest installed kernel that `prefix` names, or raise LabError."""
        fitting = [release for release in self.releases() if matches(release, prefix)]
        if not fitting:
            raise LabError(
                f"kernel {prefix!r} is not in this image",
                hint=f"installed: {', '.join(self.releases())}",
            )
        return fitting[-1]

    def kernel(self, release: str) -> Path:
        """Return the kernel image of `release`."""
        return self.boot / f"vmlinuz-{release}"


def ssh_keys() -> Keys:
    """Return the lab's ssh keys, made on first use."""
    with cache.building("keys", "ssh") as scratch:
        if scratch:
            for name in ("client", "host"):
                run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f",
                     scratch / name])  # fmt: skip
            public = (scratch / "host.pub").read_text()
            (scratch / "known_hosts").write_text(f"{guestfiles.GUEST_ADDRESS} {public}")
    return Keys(cache.root() / "keys" / "ssh")


def preferences(criu: str) -> str:
    """Return the apt preferences for CRIU version `criu` ("" = forky's)."""
    pin = f"version {criu}*" if criu else "release n=forky"
    libraries = "criu libcompel1 libcriu2 python3-pycriu"
    return PREFERENCES.format(
        criu_packages=libraries if criu else f"{libraries} libnl-3-200", criu_pin=pin
    )


def base(mirror: str, kernels: Sequence[Kernel], criu: str = "") -> Path:
    """Return the directory with `root.tar`: Debian 13, CRIU and `kernels`; build it if needed."""
    packages = [*BASE_PACKAGES, "criu", *(kernel.package for kernel in kernels)]
    pins = preferences(criu)
    name = cache.key(LAYOUT, mirror, packages, pins, _INITRAMFS_MODULES)
    with cache.building("base", name) as scratch:
        if scratch:
            _debootstrap(mirror, packages, pins, scratch)
    return cache.root() / "base" / name


def _debootstrap(mirror: str, packages: Sequence[str], pins: str, scratch: Path) -> None:
    files = scratch / "files"
    for path, content in (
        ("etc/apt/preferences.d/lab", pins),
        # Only what this machine needs: a quick boot, as with MODULES=dep on a real one.
        ("etc/initramfs-tools/conf.d/lab", "MODULES=list\n"),
        ("etc/initramfs-tools/modules", "".join(f"{name}\n" for name in _INITRAMFS_MODULES)),
    ):
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        (files / path).write_text(content)
    suites = [f"deb {mirror} {suite} main" for suite in ("trixie", "trixie-backports", "forky")]
    log = cache.root() / "base" / "mmdebstrap.log"
    log.unlink(missing_ok=True)
    run(
        [
            "mmdebstrap", "--mode=root", "--variant=apt", "--format=tar",
            # The layer on top installs more packages: it needs the lists.
            "--skip=cleanup/apt/lists",
            f"--setup-hook=cp -r '{files}/.' \"$1/\"",
            # A mirror frozen in time is fine for a lab.
            '--aptopt=Acquire::Check-Valid-Until "false"',
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=force-unsafe-io",
            f"--include={','.join(packages)}",
            "trixie", scratch / "root.tar", *suites,
        ],
        log_to=log,
        timeout=1800,
    )  # fmt: skip
    shutil.rmtree(files)


def image(base_directory: Path, packages: Iterable[str], kernels: Iterable[Kernel] = ()) -> Image:
    """Return the disk image of a base plus Debian packages and further kernels."""
    keys = ssh_keys()
    wanted = sorted({*packages, *(kernel.package for kernel in kernels)})
    ingredients = (
        [(file.path, file.content, file.mode) for file in guestfiles.FILES],
        guestfiles.MASKED_UNITS,
        keys.client.with_suffix(".pub").read_text(),
    )
    name = cache.key(LAYOUT, base_directory.name, wanted, DISK_SIZE, ingredients)
    with cache.building("images", name) as scratch:
        if scratch:
            tree = scratch / "root"
            unpack(base_directory, tree)
            if wanted:
                install(tree, wanted)
            _customise(tree, keys)
            _make_disk(tree, scratch)
            shutil.rmtree(tree)
    return Image(cache.root() / "images" / name)


def unpack(base_directory: Path, tree: Path) -> None:
    """Unpack a base into the new directory `tree`."""
    tree.mkdir()
    run(["tar", "-C", tree, "--numeric-owner", "--xattrs", "--xattrs-include=*",
         "-xf", base_directory / "root.tar"])  # fmt: skip


def in_tree(
    tree: Path, command: Sequence[str], timeout: float = 900, log: Path | None = None
) -> None:
    """Run `command` with `tree` as its root; its output is added to `log` (install.log if None).

    Raises LabError if it fails.
    """
    # Mounts live in a namespace that ends with the command: nothing can be left behind.
    script = 'mount -t proc proc "$0/proc"; mount -t sysfs sysfs "$0/sys"; exec chroot "$0" "$@"'
    run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, tree,
         *command],
        log_to=log or cache.root() / "images" / "install.log",
        timeout=timeout,
    )  # fmt: skip


def install(tree: Path, packages: Sequence[str]) -> None:
    """Install Debian packages in `tree`, without starting anything."""
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text(guestfiles.POLICY_RC_D)
    policy.chmod(0o755)
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    # Left out with the manual pages, but some packages put symbolic links there themselves.
    for section in range(1, 9):
        (tree / f"usr/share/man/man{section}").mkdir(parents=True, exist_ok=True)
    in_tree(tree, ["apt-get", "install", "--yes", "--no-install-recommends", *packages])
    policy.unlink()


def _customise(tree: Path, keys: Keys) -> None:
    for file in guestfiles.FILES:
        path = tree / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(file.content)
        path.chmod(file.mode)
    for old in (tree / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    shutil.copy(keys.host, tree / "etc/ssh/ssh_host_ed25519_key")
    shutil.copy(keys.host.with_suffix(".pub"), tree / "etc/ssh/ssh_host_ed25519_key.pub")
    authorized = tree / "root/.ssh/authorized_keys"
    authorized.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(keys.client.with_suffix(".pub"), authorized)
    (tree / "var/log/journal").mkdir(exist_ok=True)
    # An empty one would make every boot a first boot, with its presets and questions.
    (tree / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    in_tree(tree, ["/usr/sbin/update-grub"])
    in_tree(tree, ["systemctl", "--quiet", "mask", *guestfiles.MASKED_UNITS])
    in_tree(tree, ["systemctl", "--quiet", "enable", "systemd-networkd.service", "ssh.service"])
    shutil.rmtree(tree / "var/lib/apt/lists")
    (tree / "var/lib/apt/lists/partial").mkdir(parents=True)
    for archive in (tree / "var/cache/apt").rglob("*.deb"):
        archive.unlink()


def _make_disk(tree: Path, scratch: Path) -> None:
    boot = scratch / "boot"
    boot.mkdir()
    for path in (tree / "boot").iterdir():
        if path.name.startswith("vmlinuz-") and path.is_file():
            shutil.copy(path, boot / path.name)
    run(
        ["mkfs.ext4", "-q", "-F", "-L", guestfiles.ROOT_LABEL, "-m", "1",
         # Nothing left for the guest's ext4lazyinit to do in the background.
         "-E", "lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard",
         "-d", tree, scratch / "disk.raw", DISK_SIZE]
    )  # fmt: skip


def criu_version(image_: Image) -> str:
    """Return the version of CRIU inside the image, as its package says."""
    status = text(["debugfs", "-R", "cat /var/lib/dpkg/status", image_.disk])
    for paragraph in status.split("\n\n"):
        if paragraph.startswith("Package: criu\n"):
            return paragraph.split("\nVersion: ", 1)[1].splitlines()[0]
    raise LabError("CRIU is not in this image")
