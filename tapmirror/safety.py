# SPDX-License-Identifier: Apache-2.0
"""Whether a tap would harm production: a shadow that is production itself is refused.

Pure: addresses in, a sentence out.  What cannot be known from addresses (address
translation) is found by the loop mark at run time; see `events.LOOP_DSCP`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def plain(text: str) -> Address:
    """The address that `text` means: without a zone, ::ffff:a.b.c.d as a.b.c.d.

    Raises ValueError if it is none.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def refusal(
    ports: Collection[int], addrs: Collection[str], shadow: str, shadow_port: int, local: Collection[str]
) -> str | None:
    """Why a tap on `ports` (of `addrs`; empty: of any address) must not mirror to this shadow.

    `shadow` is one of its addresses, `local` are this host's.  None: nothing is known against it.
    """
    target = plain(shadow)
    if target.is_multicast or target.is_unspecified or str(target) == "255.255.255.255":
        return f"{target} is not the address of one host"
    if shadow_port not in ports:
        return None
    here = target.is_loopback or target in {plain(a) for a in local}
    if addrs:
        if target in {plain(a) for a in addrs}:
            return f"{target} port {shadow_port} is production itself"
        return None
    if here:
        return (
            f"{target} port {shadow_port} is this host's own address and port, which is tapped: "
            "name production's address with --addr if the shadow listens on another one"
        )
    return None
