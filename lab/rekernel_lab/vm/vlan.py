"""The other end of a guest's VLAN (802.1Q), as this host's kernel may have none.

    python -m rekernel_lab.vm.vlan TAP NUMBER ADDRESS/PREFIX

Run inside of the guest's network namespace: makes a device with this address, and hands on what is
tagged. What the guest sends arrives on the tap with its tag beside the frame; what this kernel
sends by way of the device gets one. Prints a line when it is ready, and goes on until it is ended.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import struct
import sys

from rekernel_lab.run import run

# linux/if_tun.h: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
_TUNSETIFF, _FLAGS = 0x400454CA, 0x0002 | 0x1000 | 0x4000
# linux/if_packet.h: struct tpacket_auxdata, and that it has a tag.
_SOL_PACKET, _AUXDATA, _HAS_TAG = 263, 8, 1 << 4
_AUX = struct.Struct("IIIHHHH")
_ETH_P_ALL, _TAG = 0x0003, 0x8100
# Of an Ethernet frame: both addresses. The tag follows.
_ADDRESSES = 12
# linux/virtio_net.h: before each frame; the first byte: its checksum is still to be made. Where it
# begins and where it goes are the last two numbers.
_HEADER = struct.Struct("<BBHHHH")
_NEEDS_CHECKSUM = 1
# Of IPv4: the protocol, and where in that one the checksum is.
_ETHERNET, _PROTOCOL, _CHECKSUMS = 14, 9, {socket.IPPROTO_TCP: 16, socket.IPPROTO_UDP: 6}
_IPV4 = b"\x08\x00"
_LARGEST = 1 << 17


def tagged(frame: bytes, number: int) -> bytes:
    """The frame as it goes over a trunk."""
    return frame[:_ADDRESSES] + struct.pack(">HH", _TAG, number) + frame[_ADDRESSES:]


def with_header(frame: bytes) -> bytes:
    """The frame as this kernel takes it. The guest leaves checksums to a network card, and its
    frames never were on a wire: none has been made.
    """
    packet = frame[_ETHERNET:]
    at = None
    if frame[_ADDRESSES:_ETHERNET] == _IPV4 and len(packet) > _PROTOCOL:
        at = _CHECKSUMS.get(packet[_PROTOCOL])
    if at is None:
        return bytes(_HEADER.size) + frame
    begin = _ETHERNET + (packet[0] & 0xF) * 4
    return _HEADER.pack(_NEEDS_CHECKSUM, 0, 0, 0, begin, at) + frame


def _receive(trunk: socket.socket) -> tuple[bytes, int]:
    """A frame from the guest and its VLAN, 0 if it has none or comes from this kernel."""
    frame, extras, _, sender = trunk.recvmsg(_LARGEST, socket.CMSG_SPACE(_AUX.size))
    if sender[2] == socket.PACKET_OUTGOING:
        return frame, 0
    for level, kind, data in extras:
        if (level, kind) == (_SOL_PACKET, _AUXDATA):
            status, *_, tag, _ = _AUX.unpack(data[: _AUX.size])
            if status & _HAS_TAG:
                return frame, tag & 0xFFF
    return frame, 0


def _open_device(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _FLAGS))
    return device


def serve(tap: str, number: int, address: str) -> None:
    """Hand on until the process is ended. Raises OSError."""
    name = f"vlan{number}"
    device = _open_device(name)
    run(["ip", "address", "add", address, "dev", name])
    run(["ip", "link", "set", name, "up"])
    trunk = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    trunk.setsockopt(_SOL_PACKET, _AUXDATA, 1)
    trunk.bind((tap, _ETH_P_ALL))
    selector = selectors.DefaultSelector()
    selector.register(trunk, selectors.EVENT_READ)
    selector.register(device, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is trunk:
                frame, found = _receive(trunk)
                if found == number:
                    os.write(device, with_header(frame))
            else:
                trunk.send(tagged(os.read(device, _LARGEST)[_HEADER.size :], number))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
