"""The smallest user space there is: an init that prints a marker and restarts the machine.

It needs no compiler and no library, so that a kernel can be booted on any host to see
whether that works at all.
"""

from __future__ import annotations

import struct

MARKER = "rekernel-lab: user space runs"

_LOAD_ADDRESS = 0x400000
_EHDR_SIZE = 64
_PHDR_SIZE = 56

_SYS_WRITE = 1
_SYS_REBOOT = 169
# linux/reboot.h
_LINUX_REBOOT_MAGIC1 = 0xFEE1DEAD
_LINUX_REBOOT_MAGIC2 = 0x28121969
_LINUX_REBOOT_CMD_RESTART = 0x01234567


def elf() -> bytes:
    """Return a static x86-64 ELF executable (one read-and-execute segment)."""
    message = f"\n{MARKER}\n".encode()
    tail = b"".join(
        (
            b"\xba" + struct.pack("<I", len(message)),  # mov edx, length
            b"\x0f\x05",  # syscall
            b"\xb8" + struct.pack("<I", _SYS_REBOOT),  # mov eax, SYS_reboot
            b"\xbf" + struct.pack("<I", _LINUX_REBOOT_MAGIC1),  # mov edi, magic1
            b"\xbe" + struct.pack("<I", _LINUX_REBOOT_MAGIC2),  # mov esi, magic2
            b"\xba" + struct.pack("<I", _LINUX_REBOOT_CMD_RESTART),  # mov edx, command
            b"\x0f\x05",  # syscall
            b"\xeb\xfe",  # jmp to itself
        )
    )
    code = b"".join(
        (
            b"\xb8" + struct.pack("<I", _SYS_WRITE),  # mov eax, SYS_write
            b"\xbf" + struct.pack("<I", 1),  # mov edi, standard output
            b"\x48\x8d\x35" + struct.pack("<i", len(tail)),  # lea rsi, [rip + tail]
            tail,
        )
    )
    size = _EHDR_SIZE + _PHDR_SIZE + len(code) + len(message)
    entry = _LOAD_ADDRESS + _EHDR_SIZE + _PHDR_SIZE
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, entry, _EHDR_SIZE, 0, 0,
        _EHDR_SIZE, _PHDR_SIZE, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)
    return header + segment + code + message


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """Return a newc archive (initramfs buffer-format.rst) of {path: (st_mode, content)}."""
    archive = bytearray()
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + "".join(f"{field:08x}" for field in fields).encode()
        archive += name.encode() + b"\0"
        archive += b"\0" * (-len(archive) % 4)
        archive += content
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)


def initrd() -> bytes:
    """Return an initrd with nothing but that init."""
    return cpio({"init": (0o100755, elf())})
