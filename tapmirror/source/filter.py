# SPDX-License-Identifier: Apache-2.0
"""The classic BPF program by which a packet socket takes only packets that may concern a tap.

In doubt it takes a packet, since what it lets through is judged again.  The interface is the exception: only this
program checks it, because the interface may be gone by the time a packet is read, or its number may belong to another
one.  Of what production sends it takes only the first bytes (its return value is the number of bytes to copy), because
only the headers are judged, and the payload is rarely needed.

Offsets are relative to the network header (SKF_NET_OFF), so that the program serves every link.  By then the kernel has
taken the outer VLAN tag out of the frame, unless the tag is of a kind from before IEEE 802.1ad.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from typing import Final, TypeAlias

from tapmirror.packet.link import VLAN_TYPES

MAX_LINKS: Final = 512
"""Most interfaces that are compared.  When one such program replaces another, both must have room in the 20 KiB that
a socket has before Linux 6.7 (net.core.optmem_max)."""
_FAR: Final = 200
"""How many interfaces are compared before there is a jump to the code behind all of them: a conditional jump reaches
255 instructions."""
MAX_PORTS: Final = 50
"""Most ports that are compared: a conditional jump reaches 255 instructions."""
HEADERS: Final = 160
"""Most bytes of a packet's headers: Ethernet with a tag, IPv4 and TCP with all options (18 + 60 + 60).  IPv6 packets
with extension headers are taken whole."""
REFUSE_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, 0)

_NET: Final = 0x100000000 - 0x100000
"""SKF_NET_OFF"""
_PROTOCOL: Final = 0x100000000 - 0x1000
"""SKF_AD_OFF + SKF_AD_PROTOCOL: the EtherType."""
_IFINDEX: Final = 0x100000000 - 0x1000 + 8
"""SKF_AD_OFF + SKF_AD_IFINDEX"""
_LDW_ABS: Final = 0x20
_LDB_ABS: Final = 0x30
_LDH_ABS: Final = 0x28
_LDH_IND: Final = 0x48
_LDX_MSH: Final = 0xB1
_JA: Final = 0x05
_JEQ: Final = 0x15
_JSET: Final = 0x45
_RET: Final = 0x06
_ALL: Final = 0xFFFFFFFF
_TCP: Final = 6
_EXTENSIONS: Final = (0, 43, 44, 60)

Instruction: TypeAlias = tuple[int, int, str, str]
"""(code, operand, label if true, label if false).  An empty label is the next instruction.  `_JA` uses only the
first label."""


def tcp_filter(ports: Iterable[int] | None, links: Collection[int] = (), response_bytes: int = 0) -> bytes:
    """A program that takes TCP packets with one of these ports on either side, and packets that it cannot judge.

    `ports`: None takes every packet.  `links`: the numbers of the interfaces whose packets are taken, at most
    `MAX_LINKS`; empty: those of all interfaces.  If only the source port of a packet is one of these, the program takes
    its headers and `response_bytes`.  It takes the whole packet if it does not compare ports, or cannot look that far.
    """
    if ports is None:
        return _assembled([*_of_links(links), (_RET, _ALL, "", "")])
    wanted = sorted(set(ports))
    to: list[Instruction | str] = [(_JSET, 0, "take", "take")]
    from_: list[Instruction | str] = []
    if len(wanted) <= MAX_PORTS:
        to = [(_JEQ, port, "take", "") for port in wanted]
        from_ = [(_JEQ, port, "cut", "") for port in wanted]
    program: list[Instruction | str] = [
        *_of_links(links),
        (_LDH_ABS, _PROTOCOL, "", ""),
        (_JEQ, 0x0800, "four", ""),
        (_JEQ, 0x86DD, "six", ""),
        *((_JEQ, kind, "take", "") for kind in sorted(VLAN_TYPES)),  # a tag that is still in the frame
        (_RET, 0, "", ""),
        "four",
        (_LDB_ABS, _NET + 9, "", ""),
        (_JEQ, _TCP, "", "leave"),
        (_LDH_ABS, _NET + 6, "", ""),
        (_JSET, 0x1FFF, "leave", ""),  # a later fragment has no TCP header
        (_LDX_MSH, _NET, "", ""),
        (_LDH_IND, _NET + 2, "", ""),
        *to,
        (_LDH_IND, _NET, "", ""),
        *from_,
        (_RET, 0, "", ""),
        "six",
        (_LDB_ABS, _NET + 6, "", ""),
        *((_JEQ, kind, "take", "") for kind in _EXTENSIONS),
        (_JEQ, _TCP, "", "leave"),
        (_LDH_ABS, _NET + 42, "", ""),
        *to,
        (_LDH_ABS, _NET + 40, "", ""),
        *from_,
        "leave",
        (_RET, 0, "", ""),
        "cut",
        (_RET, HEADERS + response_bytes, "", ""),
        "take",
        (_RET, _ALL, "", ""),
    ]
    return _assembled(program)


def _of_links(links: Collection[int]) -> list[Instruction | str]:
    """Continue only with packets of these interfaces; empty: with all packets."""
    if not links:
        return []
    wanted = sorted(links)
    program: list[Instruction | str] = [(_LDW_ABS, _IFINDEX, "", "")]
    for first in range(0, len(wanted), _FAR):
        here, others = f"of {first}", f"not of {first}"
        program += [(_JEQ, number, here, "") for number in wanted[first : first + _FAR]]
        program += [(_JA, 0, others, ""), here, (_JA, 0, "there", ""), others]
    return [*program, (_RET, 0, "", ""), "there"]


def _assembled(program: list[Instruction | str]) -> bytes:
    places: dict[str, int] = {}
    instructions: list[Instruction] = []
    for item in program:
        if isinstance(item, str):
            places[item] = len(instructions)
        else:
            instructions.append(item)
    code = b""
    for at, (kind, operand, true, false) in enumerate(instructions):
        jumps = [places[label] - at - 1 if label else 0 for label in (true, false)]
        if kind == _JA:
            operand, jumps = jumps[0], [0, 0]
        code += struct.pack("=HBBI", kind, *jumps, operand)
    return code
