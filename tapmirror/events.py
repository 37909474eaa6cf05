# SPDX-License-Identifier: Apache-2.0
"""Every value that one stage of the pipeline hands to the next.

This is the only language between the stages: sources yield `Segment`s, reassembly yields stream chunks, framing yields
messages, and the pipeline yields commands for replay.  Loss is a value too (`Gap`, `DropReason`), so a stage that gives
something up has to say what and why.

Nothing here has behaviour: no I/O, no clock, no state.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

import msgspec

Buffer: TypeAlias = bytes | memoryview
"""Bytes of the network.  A `memoryview` may point into a capture ring: it is valid only until the call that received it
returns.  Copy it to keep it."""

# --- capture -> reassembly ----------------------------------------------------

FlowKey: TypeAlias = bytes
"""40 bytes, laid out as `struct tap_key` in bpf/tap.h: client address (16 bytes; IPv4 as ::ffff:a.b.c.d), server
address (16), client port and server port (2 each, big endian), VLAN ids (4, native order: outer << 16 | inner, or
the only one, or 0)."""

Segment: TypeAlias = tuple[FlowKey, int, int, int, int, Buffer, int]
"""(key, flags, seq, ack, length, payload, time_ns): one captured TCP segment.

`length` is the payload's length on the wire, in bytes.  `payload` is what was captured of it: less if the capture
cut it, and nothing for a record of headers only.  `seq` and `ack` are the 32-bit numbers of the header.  `time_ns`
is CLOCK_MONOTONIC.  This is a tuple and not a class, because one is made for every packet."""

# Segment flags: the low byte is the TCP header's (RFC 9293, 3.1).
FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
"""The header's urgent pointer is then in bits 16 to 31 of the flags."""
FROM_SERVER: Final = 0x100
"""The segment travels from production to the client."""
ACCEPTED: Final = 0x200
"""Not a packet: production's SYN-ACK was seen, and after it something that only an accepted connection sends.  `seq`
and `ack` are the numbers of the first byte of the client and of the server (initial sequence number + 1); `length`
is 0."""
MULTIPATH: Final = 0x400
"""In place of `ACCEPTED`: the connection uses Multipath TCP (RFC 8684).  Its bytes may also travel on other
connections, and may come again as new bytes of this one.  Only options in each segment show that."""
UNACCEPTED: Final = 0x800
"""On a client's segment: the handshake is complete, but production has not shown that it accepted the connection."""

# --- reassembly -> framing ----------------------------------------------------


class Gap(msgspec.Struct, frozen=True, gc=False):
    """`length` bytes of the stream are missing: production received them and the tap did not."""

    length: int


class End(msgspec.Struct, frozen=True, gc=False):
    """The stream is over, because the client's FIN was taken in order or, if `reset`, because of an RST from either
    side or of a time-out.
    """

    reset: bool


class Dismissed(msgspec.Struct, frozen=True, gc=False):
    """Production ended the connection and sent nothing after the client's last data."""


class ServerFin(msgspec.Struct, frozen=True, gc=False):
    """Production has sent its FIN: a request that the client begins from here on gets no response."""


class Cut(msgspec.Struct, frozen=True, gc=False):
    """`length` bytes of production's stream, of which the capture copied only the first ones, `data`.

    This is not a gap: it is known that there are exactly that many bytes.
    """

    data: Buffer
    length: int


Chunk: TypeAlias = Buffer | Gap | End
"""One of the pieces that a reassembled stream consists of, in its order."""

# --- framing -> pipeline ------------------------------------------------------

# Flags of a Message or Send part.
START: Final = 0x1
"""The first byte of a request is the first byte of this part."""
END: Final = 0x2
"""The last byte of a request is the last byte of this part."""
WHOLE: Final = START | END
"""The flags of nearly all parts.  The data path checks for exactly this first: `==` takes a third of the time of
`&`."""
NO_BODY: Final = 0x4
"""The response to this request has no body whatever its headers say (HEAD)."""
TUNNEL: Final = 0x8
"""If the response accepts (2xx to CONNECT, or 101), what follows is no longer HTTP."""
CONNECT: Final = 0x10
"""With TUNNEL: the method is CONNECT, so a 2xx response accepts, and has no body.  Otherwise only 101 accepts."""
KEEPING: Final = 0x40
"""The request is HTTP/1.0 and asks to keep the connection, which lasts only if the response says so too."""
TRACED: Final = 0x20
"""Only in a Message: the head has the field by which taps recognise their own copies (`tracer`)."""


class Part(msgspec.Struct, frozen=True, gc=False):
    """Consecutive bytes of a request, or of a raw stream, that are to be passed on.

    `size` is the number of captured bytes that it stands for; `data` may be longer or shorter if something was
    rewritten.
    """

    data: Buffer
    size: int
    flags: int


class Lost(msgspec.Struct, frozen=True, gc=False):
    """`size` captured bytes that will not be mirrored, because of `reason`.

    `broken`: a request was in progress and is given up, so the part of it that was already passed on must not be taken
    for a whole request.
    """

    size: int
    reason: DropReason
    broken: bool = False


class LeftOut(msgspec.Struct, frozen=True, gc=False):
    """`size` captured bytes of requests that began behind production's FIN (`ServerFin`)."""

    size: int


Message: TypeAlias = Part | Lost | LeftOut

# --- pipeline -> replay -------------------------------------------------------


# Every command is for one shadow, `target`: its number among the copies of all shadows of the tap.


class Open(msgspec.Struct, frozen=True, gc=False):
    """A production connection is mirrored; `flow` is its number in the following commands."""

    flow: int
    http: bool
    """Whether it is framed as HTTP/1 requests; otherwise its bytes are passed on as they are."""
    key: FlowKey = b""
    """The flow's key, for policy."""
    target: int = 0


class Send(msgspec.Struct, frozen=True, gc=False):
    """Pass on `data`, which stands for `size` captured bytes; `flags` as in `Part`.

    `data` is valid only during the call that received it.  `number`: with START, the number of this request on its
    connection (from 1) if responses are compared; otherwise 0.
    """

    flow: int
    data: Buffer
    size: int
    flags: int
    target: int = 0
    number: int = 0


class Turn(msgspec.Struct, frozen=True, gc=False):
    """At this point of the stream, production had sent `answered` bytes since the last `Turn`.  This is used only with
    pacing `wait`: what follows is sent after the shadow has answered, too.
    """

    flow: int
    answered: int
    target: int = 0


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The client closed its side (FIN): half-close the shadow connection after what is queued.

    `answered`: the client had received something from production since its last data.
    """

    flow: int
    target: int = 0
    answered: bool = False


class Excuse(msgspec.Struct, frozen=True, gc=False):
    """Production left the flow's last request unanswered, so it is no error if the shadow does the same."""

    flow: int
    target: int = 0


class Abort(msgspec.Struct, frozen=True, gc=False):
    """Give up what is in progress on this flow, now.

    `reset`: production's connection is gone (RST, time-out), and the shadow's is reset too.  Otherwise only the request
    in progress is given up (of a raw stream, the rest), and the shadow must not be left with a part that it could take
    for the whole.  `answered`: as in `Finish`.
    """

    flow: int
    reason: DropReason
    reset: bool
    target: int = 0
    answered: bool = False


Command: TypeAlias = Open | Send | Turn | Finish | Excuse | Abort

# --- reasons ------------------------------------------------------------------


class FilterReason(enum.Enum):
    """Why something that was seen should not be mirrored.  It is no loss."""

    LOOP = "loop"
    """Sent by tapmirror: it carries the loop mark (`LOOP_DSCP`)."""
    CLIENT = "client"
    """The client is in none of the networks that are mirrored."""
    DUPLICATE = "duplicate"
    """Retransmitted or overlapping bytes, which production's TCP discarded as well."""
    NOT_ACCEPTED = "not_accepted"
    """Production never accepted the connection (no SYN-ACK, no acknowledgement, or an RST)."""
    OUTSIDE = "outside"
    """Not accepted by production's TCP: after FIN or RST, far from the window, without an acknowledgement or with a
    wrong one.  Or HTTP requests that the client begins after production's FIN."""
    URGENT = "urgent"
    """The byte that an urgent pointer marks, which an application does not read in order."""
    METHOD = "method"
    """Only safe methods are mirrored, and this is not one."""
    NO_RULE = "no_rule"
    """None of the tap's rules matches."""
    RULE = "rule"
    """The rule that matches mirrors nothing, or nothing to this shadow."""
    NO_MATCH = "no_match"
    """It is not among the requests that this shadow is to get."""
    BODY_LIMIT = "body_limit"
    """The body is longer than its rule allows."""
    CAP = "cap"
    """A cap on requests or bytes a second is reached."""
    TURN = "turn"
    """It is another shadow's turn (`spread: round-robin`)."""
    HOOK = "hook"
    """The hook returned nothing."""
    TUNNEL = "tunnel"
    """The request asks to leave HTTP (CONNECT, Upgrade), which redaction cannot follow and a pooled connection
    cannot carry."""


class DropReason(enum.Enum):
    """Why something that should have been mirrored was not."""

    RING_FULL = "ring_full"
    """The capture ring had no room: the worker was too slow or stopped."""
    FRAGMENT = "fragment"
    """An IP fragment; fragments are not reassembled at the interface."""
    CUT = "cut"
    """The capture holds only the first bytes of the packet."""
    MIDSTREAM = "midstream"
    """The connection existed when the tap began: everything up to the first request boundary is skipped."""
    GAP = "gap"
    """Part of a request that a hole broke, or between a hole and the next certain request boundary."""
    MULTIPATH = "multipath"
    """The connection uses Multipath TCP, which cannot be followed."""
    UNPARSED = "unparsed"
    """Not valid HTTP/1, up to the next certain request boundary."""
    OVERSIZE = "oversize"
    """A request head longer than `Limits.head_bytes`."""
    FLOW_LIMIT = "flow_limit"
    """More out-of-order data on one flow than `Limits.flow_bytes` or `Limits.flow_segments`."""
    MEMORY_LIMIT = "memory_limit"
    """More held in all flows than `Limits.reassembly_bytes`, or of heads than `Limits.heads_bytes`."""
    TABLE_FULL = "table_full"
    """More flows than `Limits.flows`."""
    IDLE = "idle"
    """It was held for a flow that was silent for too long."""
    INCOMPLETE = "incomplete"
    """The connection ended in the middle of a request."""
    SHADOW_DOWN = "shadow_down"
    """The shadow could not be connected to."""
    SHADOW_SLOW = "shadow_slow"
    """The queue to the shadow was full."""
    SHADOW_CLOSED = "shadow_closed"
    """The shadow closed or reset the connection before everything was sent."""
    TUNNEL_REFUSED = "tunnel_refused"
    """It came after a CONNECT or Upgrade that the shadow did not accept, and is not HTTP."""
    NO_RESOURCES = "no_resources"
    """There was no descriptor, local port or memory for a connection to the shadow."""
    UNREDACTED = "unredacted"
    """The body cannot be inspected, and so not be redacted: it is too long, compressed, or not what it claims to be."""
    HOLD_LIMIT = "hold_limit"
    """Bodies that must be complete need more than `Limits.held_bytes`, or one is longer than can be held."""
    REWRITE = "rewrite"
    """The rewritten request would not be valid HTTP/1."""
    HOOK_ERROR = "hook_error"
    """The hook raised an error, or returned something that is not a valid request."""
    WORKER_LOST = "worker_lost"
    """A worker that died had read it, and held it or had not reported it yet."""
    SHARE = "share"
    """The connection left the share while it was mirrored: this is what was held, and the request in progress."""
    SHUTDOWN = "shutdown"
    """It was still queued when the tap's drain time was over."""


LOOP_DSCP: Final = 0x2B
"""The differentiated-services codepoint of every packet that tapmirror sends to a shadow.  Any tap recognises such a
packet by it: in other processes, on other hosts, on loopback and behind address translation, and without privilege.
0b101011 lies in pool 2 of RFC 2474 (xxxx11), which is kept for experimental and local use."""
