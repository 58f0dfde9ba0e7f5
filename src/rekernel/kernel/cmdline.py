"""The next kernel's command line: this one's, but for what belongs to one boot."""

from __future__ import annotations

# After a panic it reboots in 30 s by way of the firmware, as nobody may be there to do it. Spelt as
# no administrator would, so that it is known for ours.
PANIC = "panic=0x1e"
_OF_ONE_BOOT = ("BOOT_IMAGE=", "initrd=", "rdinit=")


def lasting(current: str) -> list[str]:
    """The words of a running kernel that whoever boots the machine gave it for good."""
    return [word for word in current.split() if not word.startswith(_OF_ONE_BOOT) and word != PANIC]


def for_next(current: str) -> str:
    """What a kernel gets that this one jumps into."""
    words = lasting(current)
    # What follows is init's.
    own = words[: words.index("--")] if "--" in words else words
    if not any(word.startswith("panic=") for word in own):
        words.insert(0, PANIC)
    return " ".join(words)
