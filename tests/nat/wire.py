"""A switch that delays, for kernels without sch_netem.

wire.py MS IF IF IF...    every frame leaves MS milliseconds after it came (AF_PACKET), until the process is ended
wire.py off IF            switch off the offloads of an interface: a frame must come with its checksum and in its size
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import selectors
import socket
import struct
import sys
import time

SIOCETHTOOL = 0x8946
OFFLOADS_OFF = (0x17, 0x1F, 0x24, 0x21, 0x2C)  # ETHTOOL_S*: tx checksums, TSO, GSO, UFO, GRO
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
PACKET_OUTGOING = 4


def switch_offloads_off(interface: str) -> None:
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for command in OFFLOADS_OFF:
        value = ctypes.create_string_buffer(struct.pack("II", command, 0))
        with contextlib.suppress(OSError):  # an interface may lack one
            fcntl.ioctl(asking, SIOCETHTOOL, struct.pack("16sP", interface.encode(), ctypes.addressof(value)))


def switch(delay_s: float, interfaces: list[str]) -> None:
    selector, sockets = selectors.DefaultSelector(), dict[str, socket.socket]()
    for interface in interfaces:
        switch_offloads_off(interface)
        line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        line.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        line.bind((interface, 0))
        line.setblocking(False)
        sockets[interface] = line
        selector.register(line, selectors.EVENT_READ, interface)
    behind: dict[bytes, str] = {}  # which interface a hardware address is seen on
    waiting: collections.deque[tuple[float, str, bytes]] = collections.deque()
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for key, _ in selector.select(timeout):
            for _ in range(64):
                try:
                    frame, origin = sockets[key.data].recvfrom(70_000)
                except BlockingIOError:
                    break
                if origin[2] != PACKET_OUTGOING:
                    behind[frame[6:12]] = key.data
                    waiting.append((time.monotonic() + delay_s, key.data, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, came_by, frame = waiting.popleft()
            known = behind.get(frame[:6])
            for interface in [known] if known else [other for other in interfaces if other != came_by]:
                if interface != came_by:
                    try:
                        sockets[interface].send(frame)
                    except OSError as error:
                        print(interface, len(frame), error, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "off":
        switch_offloads_off(sys.argv[2])
    else:
        switch(float(sys.argv[1]) / 1e3, sys.argv[2:])
