# SPDX-License-Identifier: Apache-2.0
"""The classic BPF program by which a packet socket takes only what may concern a tap.

It rather takes too much than too little: what it lets through is judged again.  Not so by its interface, which may be
gone when a packet is read, or another have its number.  Of what production sends it takes the first bytes (what it
returns is how many are copied), for that is judged by its headers, and seldom needed.  Offsets are relative to the
network header (SKF_NET_OFF), so that it serves every link; the kernel has taken the outer VLAN tag out of the frame by
then, unless that is one from before IEEE 802.1ad.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from typing import Final, TypeAlias

from tapmirror.packet.link import VLAN_TYPES

MAX_LINKS: Final = 512
"""Interfaces that are compared at most.  Two such programs, of which one takes the other's place, have room in the 20
KiB that a socket has before Linux 6.7 (net.core.optmem_max)."""
_FAR: Final = 200
"""Interfaces that are compared before one jump to what comes behind them all: a conditional one reaches 255 far."""
MAX_PORTS: Final = 50
"""More are not compared: a jump reaches 255 instructions far."""
HEADERS: Final = 160
"""Bytes that a packet's headers have at most: Ethernet with a tag, IPv4 and TCP with all options (18 + 60 + 60); IPv6
with extension headers is taken whole."""
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
"""(code, operand, label if true, label if false); a label of "" is the next instruction.  Of `_JA` the first counts."""


def tcp_filter(ports: Iterable[int] | None, links: Collection[int] = (), answer_bytes: int = 0) -> bytes:
    """A program that takes TCP packets with one of these ports on either side, and what it cannot judge.

    `ports` of None: it takes every packet.  `links`: numbers of the interfaces whose packets it takes, `MAX_LINKS` at
    most; none: it does not look.  Of packets that only come from one of the ports it takes the headers and
    `answer_bytes`, but all where it does not compare the ports or does not look so far.
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
        (_RET, HEADERS + answer_bytes, "", ""),
        "take",
        (_RET, _ALL, "", ""),
    ]
    return _assembled(program)


def _of_links(links: Collection[int]) -> list[Instruction | str]:
    """Go on only with packets of these interfaces; none: with all."""
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
