# SPDX-License-Identifier: Apache-2.0
"""Traffic that a tap sees and cannot mirror: one direction of the connections without the other, or TLS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

ENOUGH: Final = 8
"""Packets of one side, or connections with TLS, before anything is said: more than a tap sees that began in the middle
of a few handshakes, and more than a scanner makes at once."""
FEW: Final = 0.1
"""Share of the connections that speak TLS by mistake: a public port without TLS gets no more, scanners included."""


def ciphered(events: Mapping[str, int]) -> str:
    """What to do about connections that begin with TLS, in a line; "": there are none, or hardly any.

    `events`: of the ledger.
    """
    connections = events.get("flows_tls", 0)
    if connections < ENOUGH or connections <= FEW * events.get("flows", 0):
        return ""
    return (
        "clients speak TLS here: the shadow gets bytes that it cannot decrypt, whatever certificate it has; tap behind "
        "what ends TLS (a proxy on this host: --iface lo and the port behind it)"
    )


def missing(events: Mapping[str, int], links: Sequence[str]) -> str:
    """Which side never shows at these interfaces, and what to do, in a line; "": both do, or too little is known.

    `events`: of the ledger.  A client whose acknowledgements come in talks to somebody; SYNs alone may be refused.
    """
    clients, production, acks = (events.get(f"kernel_{name}", 0) for name in ("syn", "syn_ack", "bare_ack"))
    names = ", ".join(links)
    marked = events.get("kernel_loop_syn", 0)  # of another tap, whose shadow this host is: `loop` tells of it
    if production >= ENOUGH and not clients + acks + marked:
        return (
            f"{names}: only production's side is seen, and nothing of its clients: what they send comes in elsewhere, "
            "or is for another station (a bridge's port, a macvlan's parent); name the interfaces of both: --iface A,B"
        )
    if acks >= ENOUGH and clients >= ENOUGH and not production + events.get("kernel_egress", 0):
        return (
            f"{names}: only the clients' side is seen, and nothing of production: what it sends leaves elsewhere; name "
            "the interfaces of both: --iface A,B"
        )
    return ""
