# SPDX-License-Identifier: Apache-2.0
"""The values of comparison: a request, what production and each shadow answered, and why some were not paired.

An exchange is one request with production's response and each shadow's.  Loss is a value here as everywhere: what
cannot be paired with certainty is `Unpaired` with its reason, and never a guess.

Nothing here has behaviour.  Times are in nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import enum

import msgspec


class Failure(enum.Enum):
    """Why a shadow gave no response.  This is the shadow's fault, and counts as its error."""

    CLOSED = "closed"
    """It closed or reset the connection before its response was complete."""
    INVALID = "invalid"
    """What it sent is not HTTP/1, or its head is too long."""
    TIMEOUT = "timeout"
    """It gave none within `Compare.answer_time`."""


class Unpaired(enum.Enum):
    """Why a request cannot be compared.  It says nothing about the shadow."""

    NOT_SENT = "not_sent"
    """The shadow did not get it: sampled out, filtered, dropped, or made invalid by redaction."""
    GAP = "gap"
    """The tap did not see all of production's responses while this request was in progress."""
    CUT = "cut"
    """More of production's response was needed than this level captures of a packet: its head is longer, or it is
    chunked and the client pipelines."""
    ORDER = "order"
    """After one of these two, until it is certain again which response belongs to which request."""
    UNPARSED = "unparsed"
    """What production sent is not HTTP/1, or its head is too long."""
    UNANSWERED = "unanswered"
    """Production's connection ended, or the time ran out, before its response was complete."""
    RECONNECT = "reconnect"
    """The shadow closed its kept connection while the request was on its way (RFC 9112, 9.3.1), or before its turn."""
    BROKEN = "broken"
    """The request was not seen whole."""
    TUNNEL = "tunnel"
    """After an upgrade, so not HTTP/1 any more."""
    LIMIT = "limit"
    """More requests without a response on one connection than `Compare.pending`, or no room in `Compare.held_bytes`."""
    THINNED = "thinned"
    """There are more requests a second than `Compare.max_exchanges`, and it was outside its connection's time slice."""
    SHUTDOWN = "shutdown"
    """Still in progress when the tap ended."""


class Calls(enum.Enum):
    """What names a request's operation, where many share a path."""

    GRAPHQL = "graphql"
    JSON = "json"
    """JSON that may be JSON-RPC, or GraphQL at a path that does not tell."""
    SOAP = "soap"


class Response(msgspec.Struct, gc=False):
    """The response of one side: a final response (1xx are skipped), or the fact that none came."""

    status: int
    """0: none came, for the reason `failure`."""
    head: bytes = b""
    """Status line and fields as they came, up to the empty line."""
    body: bytes = b""
    """The first bytes of the body, without the framing of chunks, still encoded."""
    length: int = 0
    """Bytes of the whole body."""
    digest: bytes = b""
    """Hash of the whole body, where `body` is not all of it; empty: not every byte was seen."""
    whole: bool = True
    """Every byte of the body was seen."""
    first_ns: int = 0
    """When the first byte was seen."""
    last_ns: int = 0
    """When the last byte was seen."""
    since_ns: int = 0
    """When the previous response on this connection was complete; 0: there was none.  A server answers requests one
    after the other."""
    failure: Failure | None = None


class Asked(msgspec.Struct, gc=False):
    """A request: what comparison needs to know of it."""

    number: int
    """Number of the request on its connection."""
    method: bytes
    target: bytes
    head: bytes
    """The head as it came from the client; for a sample's `curl` line."""
    bodies: bool = False
    """Whether bodies are kept to be compared."""
    probed: bool = False
    """A safe request that the shadow gets twice, so that its responses can be compared with each other."""
    timed: bool = True
    """Whether its times count, and the kernel is asked for stamps."""
    body: bytes = b""
    """The body as it came, with the framing of chunks; for a sample."""
    longer: bool = False
    """The body is too long for a sample: `body` is empty, or with `calls` has its beginning."""
    calls: Calls | None = None
    """What in its body or query may name an operation; None: nothing."""
    operation: str = ""
    """The operation that it calls, among those that share its path, once known."""
    flow: int = 0
    """Number of its connection (`Open.flow`)."""
    checks: tuple[str, ...] = ()
    """Of a request that the shadow got again as a check: the fields that had differed.  In its exchange, the shadow's
    first response is in place of production's."""
    ended_ns: int = 0
    """When its last byte was seen; 0: not yet."""
    late: bool = False
    """It waited for the tap, or was sent among others that had (`thinning.Backlog`), so it is not timed."""
    marked: bool = False
    """A copy has a mark (`tracer`), which the response may contain, so only status and times are compared."""


class Delivery(msgspec.Struct, gc=False):
    """A request as a shadow got it, the shadow's response, and the moments from which its times are measured."""

    response: Response
    sent_ns: int
    """When the last byte of the request left for the shadow."""
    rtt_ns: int = 0
    """Smoothed round-trip time to the shadow (tcp_info); 0: not known."""
    least_ns: int = 0
    """Least round-trip time to the shadow: the network's part of the times; 0: not known."""
    request: bytes = b""
    """What was sent, if it may be sent again; otherwise empty."""
    begun: bool = False
    """Whether the request began to be sent."""
    flags: int = 0
    """Flags of that request (as of `Conversation.asked`)."""


class Exchange(msgspec.Struct, gc=False):
    """A request, with production's response and the shadows'."""

    asked: Asked
    production: Response
    deliveries: dict[int, Delivery]
    """By the shadow's number.  Those of second copies are at `shadow + PROBE`."""
    left_out: dict[int, Unpaired] = {}
    """By the shadow's number: why it did not get the request, as far as known."""
    size: int = 0
    """Bytes of heads and bodies in the exchange."""


PROBE = 1 << 16
"""Added to a shadow's number: the second response to a request that was sent twice."""
