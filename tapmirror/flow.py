# SPDX-License-Identifier: Apache-2.0
"""One production connection: what is known of it, and the states that it goes through.

The states and what moves between them are the table `TRANSITIONS`; a pair that is not in it changes nothing.
"""

from __future__ import annotations

import enum
from typing import Any, Final

from tapmirror.events import FlowKey
from tapmirror.tcp import ANY, Receiver


class State(enum.Enum):
    """The state of a flow."""

    __hash__ = object.__hash__  # by identity, in C: Enum's own is Python code

    TENTATIVE = enum.auto()
    OPEN = enum.auto()
    CLIENT_DONE = enum.auto()
    SERVER_DONE = enum.auto()
    CLOSED = enum.auto()
    LEFT_OUT = enum.auto()


class Move(enum.Enum):
    """What can happen to a flow as a whole."""

    __hash__ = object.__hash__

    CONFIRMED = enum.auto()
    CLIENT_FIN = enum.auto()
    REQUESTS_END = enum.auto()
    """The client's FIN where nothing that comes after it matters (`Flow.ends_with_client`)."""
    SERVER_FIN = enum.auto()
    RESET = enum.auto()


TRANSITIONS: Final = {
    (State.TENTATIVE, Move.CONFIRMED): State.OPEN,
    (State.TENTATIVE, Move.RESET): State.CLOSED,
    (State.OPEN, Move.CLIENT_FIN): State.CLIENT_DONE,
    (State.OPEN, Move.REQUESTS_END): State.CLOSED,
    (State.OPEN, Move.SERVER_FIN): State.SERVER_DONE,
    (State.OPEN, Move.RESET): State.CLOSED,
    (State.CLIENT_DONE, Move.SERVER_FIN): State.CLOSED,
    (State.CLIENT_DONE, Move.RESET): State.CLOSED,
    (State.SERVER_DONE, Move.CLIENT_FIN): State.CLOSED,
    (State.SERVER_DONE, Move.REQUESTS_END): State.CLOSED,
    (State.SERVER_DONE, Move.RESET): State.CLOSED,
    (State.LEFT_OUT, Move.RESET): State.CLOSED,
}


class Flow:
    """One production connection.  `framer`, `opened`, `prefix`, `before_fin` and `ends_with_client` are set by the
    pipeline.
    """

    __slots__ = (
        "ack",
        "answered",
        "asking",
        "before_fin",
        "ends_with_client",
        "first",
        "followed_to",
        "framer",
        "hash",
        "heard",
        "id",
        "key",
        "last",
        "midstream",
        "opened",
        "pipelines",
        "prefix",
        "reach",
        "rx",
        "said",
        "server_first",
        "server_next",
        "since",
        "state",
    )

    def __init__(self, ident: int, key: FlowKey, seq: int, rx: Receiver, now: float, midstream: bool) -> None:
        self.id = ident
        self.key = key
        self.first = seq
        """Sequence number of the first byte: tells a new connection on the same tuple from a repeated SYN-ACK."""
        self.rx = rx
        self.state = State.TENTATIVE if midstream else State.OPEN
        self.midstream = midstream
        self.reach = seq
        """Sequence number behind the client's last data, while the flow is tentative."""
        self.last = now
        """When the flow's last segment came."""
        self.since: float
        """Since when the flow has waited for production's acknowledgement; set only while `asking`."""
        self.asking = False
        self.heard: int | None = None
        """Sequence number behind what production sent last, since a hole made the table ask for its
        acknowledgements; None: it has sent nothing since then."""
        self.ack = ANY
        """The acknowledgement number of the client's last data; `ANY`, `UNKNOWN`."""
        self.server_first: int | None = None
        """Sequence number of production's first byte; None: the handshake was not seen."""
        self.server_next: int | None = None
        self.answered = 0
        """Bytes that production sent since the pipeline last took note, if they are captured."""
        self.followed_to: int | None = None
        """Sequence number up to which production's stream is followed, if it is (`answered`); None: not yet."""
        self.said = ANY
        """Like `ack`, if `answered` follows production's stream; also changed by data in front of a hole."""
        self.pipelines = False
        """Whether the client sent a request before it had the response to the previous one (`answered`)."""
        self.ends_with_client = False
        """Whether the flow is over when the client's stream is: what production sends after that adds nothing."""
        self.opened = False
        self.framer: Any = None
        self.prefix = b""
        self.before_fin: int | None = None
        """How many bytes of `prefix` came before production's FIN; None: it did not come before there was a framer."""
        self.hash: int | None = None
        """Hash of the key; None: not computed yet."""
