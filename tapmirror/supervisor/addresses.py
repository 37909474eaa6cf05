# SPDX-License-Identifier: Apache-2.0
"""Addresses that the supervisor asks the system for: of a shadow's name, of this host, of an interface."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from pyroute2 import IPRoute, NetlinkError

from tapmirror.safety import plain
from tapmirror.spawn import unsignalled

ADDRESSES: Final = 16
"""Most addresses of a shadow's name that are used."""

Address: TypeAlias = tuple[int, tuple[Any, ...]]
"""(address family, socket address)."""


def packed(address: str) -> bytes:
    """An address in the 16 bytes of a flow key (IPv4 as ::ffff:a.b.c.d)."""
    found = plain(address)
    if isinstance(found, ipaddress.IPv4Address):
        return bytes(10) + b"\xff\xff" + found.packed
    return found.packed


def port(address: tuple[Any, ...]) -> int:
    """The port of a socket address."""
    return int(address[1])


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    """What asks the kernel.  Raises OSError, also where the kernel refuses: that has an error class of its own.

    pyroute2 may run an asyncio loop for it, which logs an exception that a signal's handler raises, and goes on or
    waits for ever: a signal comes afterwards.
    """
    try:
        with unsignalled(), IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from None


def largest_packet(iface: str) -> int:
    """The largest packet that the interface hands to the kernel or takes from it: 64 KiB, more with BIG TCP.

    Raises OSError.
    """
    with _netlink() as netlink:
        (link,) = netlink.link("get", ifname=iface)
    return max(65_536, *(link.get_attr(name) or 0 for name in ("IFLA_GSO_MAX_SIZE", "IFLA_GRO_MAX_SIZE")))


def local_addresses() -> tuple[list[str], set[str]]:
    """All addresses of this host (of this network namespace), and the broadcast addresses of its links.

    Raises OSError.
    """
    with _netlink() as netlink:
        found = [
            (str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")), int(message["prefixlen"]))
            for message in netlink.get_addr()
        ]
    networks = [ipaddress.ip_interface(f"{address}/{length}").network for address, length in found]
    broadcasts = {str(net.broadcast_address) for net in networks if net.version == 4 and net.prefixlen < 31}
    return [address for address, _ in found], broadcasts
