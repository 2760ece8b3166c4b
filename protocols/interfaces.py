"""The IP addresses of this machine, without libp2p: for invites that are made before a node runs, and for mDNS."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import Any

import psutil


def machine_addresses(*, loopback: bool = True) -> list[str]:
    """Addresses of the interfaces that are up, without link-local ones; loopback last, or not at all."""
    states, found = dict[str, Any](), list[str]()
    with contextlib.suppress(OSError):  # where /proc is hidden it does not say which are up
        states = psutil.net_if_stats()
    for name, entries in psutil.net_if_addrs().items():
        if name in states and not states[name].isup:
            continue
        for entry in entries:
            try:
                address = ipaddress.ip_address(entry.address.partition("%")[0])
            except ValueError:
                continue  # a hardware address
            if not (address.is_link_local or address.is_unspecified or address.is_multicast):
                found.append(str(address))
    found.sort(key=lambda text: (ipaddress.ip_address(text).is_loopback, ":" in text))
    return [text for text in found if loopback or not ipaddress.ip_address(text).is_loopback]
