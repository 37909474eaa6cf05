# SPDX-License-Identifier: Apache-2.0
"""The one place that knows the order of the stages: flows, framing, policy, and the commands for replay.

A segment goes in, commands for replay come out.  The pipeline also enters in the ledger what framing gives up, and
decides the protocol of each connection.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias, TypeVar

from tapmirror.events import (
    START,
    TRACED,
    WHOLE,
    Abort,
    Buffer,
    Command,
    Cut,
    Dismissed,
    DropReason,
    End,
    Excuse,
    FilterReason,
    Finish,
    Gap,
    LeftOut,
    Message,
    Open,
    Part,
    Segment,
    Send,
    ServerFin,
    Turn,
)
from tapmirror.flow import Flow
from tapmirror.flows import BEGINS, Event, FlowTable
from tapmirror.framing import HeadMemory, RawFramer, RequestFramer, detect
from tapmirror.ledger import Ledger
from tapmirror.policy import Policy, constant_host
from tapmirror.spec import Pacing, Protocol, TapSpec
from tapmirror.tracer import Tracer

Framer: TypeAlias = RawFramer | RequestFramer
AnyEvent = TypeVar("AnyEvent", bound=tuple[Flow, Any, Any])

_NOTHING: Final[tuple[Command, ...]] = ()
TLS_HANDSHAKE: Final = b"\x16\x03"
"""How the first record of a TLS connection begins: its type, and the first byte of the version (RFC 8446, 5.1)."""
AT_ONCE: Final = 1 << 17
"""Bytes of a connection that are framed in one go, rounded up to the end of a segment.  What waited behind a hole comes
all at once, up to 6 MiB by default: 220,000 small requests, or a million chunks of one byte, take some seconds."""


class Pipeline:
    """Turns segments into commands, for one worker of one tap.

    Without a `policy` all commands are for target 0.  A `tracer` marks requests, and is shown those that are marked.
    While there is a `rest`, do not call `feed` or `expire`, but `work`.
    """

    __slots__ = (
        "_flows",
        "_head_bytes",
        "_heads",
        "_host",
        "_ledger",
        "_policy",
        "_protocol",
        "_raw",
        "_tracer",
        "_trailers",
        "_turns",
        "rest",
    )

    def __init__(
        self,
        spec: TapSpec,
        ledger: Ledger,
        policy: Policy | None = None,
        flows: FlowTable | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._ledger = ledger
        self._policy = policy
        self._tracer = tracer
        self._turns = spec.pacing is Pacing.WAIT
        self._flows = FlowTable(spec.limits, spec.seed, ledger) if flows is None else flows
        self._protocol = spec.protocol
        self._raw = spec.protocol is Protocol.RAW
        self._head_bytes = spec.limits.head_bytes
        self._heads = HeadMemory(spec.limits.heads_bytes)
        self._host = constant_host(spec) if policy is None else None
        self._trailers = spec.redact is None
        """Whether trailer fields are passed on.  They are like fields of the head, so not if anything is redacted."""
        self.rest: deque[tuple[Flow, Any, Any]] = deque()
        """Events that were too many to be done at once; `work` does some.  Their data is not a view of a segment."""

    @property
    def flows(self) -> FlowTable:
        """The flow table: for what it asks the capture for, and its size."""
        return self._flows

    def feed(self, segment: Segment, now: float) -> Sequence[Command]:
        """Take one captured segment.  The data of the commands is valid as long as that of the segment."""
        if segment[1] & BEGINS:
            return self._begin(segment, now)
        events = self._flows.feed(segment, now)
        if not events:
            return _NOTHING
        if len(events) > 1:
            events = self._some(events)
        commands: list[Command] = []
        for event in events:
            flow, chunk, after_response = event
            framer = flow.framer
            if framer is None or self._turns or type(chunk) is not memoryview:
                self._step(event, commands)
            elif framer.transparent:  # what `framer.feed` and `_pass_on` would come to
                commands.append(Send(flow.id, chunk, len(chunk), 0))
            else:
                self._pass_on(flow, framer.feed(chunk, after_response), commands)
        if self._policy is not None or (self._tracer is not None and now >= self._tracer.due):
            return self._routed(commands, now)
        return commands

    def _begin(self, segment: Segment, now: float) -> Sequence[Command]:
        """Take a segment that reports an accepted connection, and what was held for it; returns all their commands."""
        events, waited = self._flows.accept(segment, now)
        commands: list[Command] = []
        if events:
            self._do(self._some(events), commands)
        if self._raw:
            self._accept(segment, commands)
        if commands:
            commands = self._routed(commands, now)
        for held in waited:
            if self.rest:  # of this connection, if it had been joined in mid-stream
                self.rest += [(flow, _lasting(chunk), after) for flow, chunk, after in self._flows.feed(held, now)]
            else:
                commands += self.feed(held, now)
        return commands

    def _routed(self, commands: list[Command], now: float) -> list[Command]:
        """Pass commands through policy, and mark a request when it is time."""
        if self._policy is not None:
            commands = self._policy.route(commands, now)
        if self._tracer is not None and now >= self._tracer.due:
            commands = self._tracer.marked(commands, now)
        return commands

    def expire(self, now: float) -> list[Command]:
        """Act on time-outs; call it a few times a second."""
        commands: list[Command] = []
        self._do(self._flows.expire(now), commands)
        return commands if self._policy is None else self._policy.route(commands, now)

    def work(self, now: float) -> Sequence[Command]:
        """Do some of the `rest`."""
        commands: list[Command] = []
        self._do(self._next(), commands)
        return commands if self._policy is None else self._policy.route(commands, now)

    def drop_above(self, threshold: int, now: float) -> Sequence[Command]:
        """From now on take only flows whose hash is below `threshold`.  Give up the others, each with its incomplete
        request, and with whatever still comes of them.

        If a part of such a request went to the shadow, a reset cuts it off there.  Whole requests that are queued are
        still sent.  Nothing of the `rest` is done here: that may take seconds, and the supervisor waits for this call.
        """
        commands: list[Command] = []
        gone = self._flows.drop_above(threshold, now)
        if gone and self.rest:
            without = set(gone)
            for event in self._taken():
                if event[0] in without:
                    self._ledger.bytes.dropped[DropReason.SHARE] += _size(event)
                else:
                    self.rest.append(event)
        for flow in gone:
            self._give_up_prefix(flow, DropReason.SHARE)
            if flow.framer is not None:
                self._ledger.bytes.dropped[DropReason.SHARE] += sum(each.size for each in flow.framer.end())
            if flow.opened:
                commands.append(Abort(flow.id, DropReason.SHARE, True))
            self._gone(flow)
        return commands if self._policy is None else self._policy.route(commands, now)

    def held(self) -> tuple[int, int]:
        """(segments, bytes) in flight in reassembly and framing."""
        segments, size = self._flows.held()
        size += sum(map(_size, self.rest))
        ended = {flow for flow, _, _ in self.rest if self._flows.get(flow.key) is not flow}  # not in the table
        for flow in chain(self._flows, ended):
            size += len(flow.prefix) if flow.framer is None else flow.framer.held
        return segments, size

    def close(self, now: float) -> list[Command]:
        """The capture is over: give up the `rest` and incomplete requests, and end every stream that is still open."""
        commands: list[Command] = []
        for event in self._taken():
            self._ledger.bytes.dropped[DropReason.SHUTDOWN] += _size(event)
            if type(event[1]) is End and event[2] is not None:
                self._step(event, commands)
        self._flows.close()
        for flow in self._flows:
            self._give_up_prefix(flow, DropReason.SHUTDOWN)
            if flow.framer is not None:
                self._pass_on(flow, flow.framer.end(), commands)
            if flow.opened:
                commands.append(Finish(flow.id))
        return commands if self._policy is None else self._policy.route(commands, now) + self._policy.close()

    def _some(self, events: Iterable[AnyEvent]) -> Sequence[AnyEvent]:
        """As many of these events as may be done at once.  The others become the `rest`, which was empty."""
        some: list[AnyEvent] = []
        size = 0
        for event in events:
            flow, chunk, after_response = event
            if size < AT_ONCE:
                some.append(event)
                size += _length(chunk)
            else:
                self.rest.append((flow, _lasting(chunk), after_response))
        return some

    def _next(self) -> list[tuple[Flow, Any, Any]]:
        """As many events of the `rest` as may be done at once."""
        some = []
        size = 0
        while self.rest and size < AT_ONCE:
            event = self.rest.popleft()
            some.append(event)
            size += _length(event[1])
        return some

    def _taken(self) -> list[tuple[Flow, Any, Any]]:
        """The whole `rest`, which is empty afterwards."""
        rest = list(self.rest)
        self.rest.clear()
        return rest

    def _do(self, events: Iterable[Event], commands: list[Command]) -> None:
        for event in events:
            self._step(event, commands)

    def _step(self, event: Event, commands: list[Command]) -> None:
        flow, chunk, after_response = event
        kind = type(chunk)
        if kind is End:
            self._end(flow, chunk.reset, after_response, commands)  # type: ignore[union-attr]
            return
        framer: Framer | None = flow.framer
        if kind is Dismissed:
            # A response that comes before an upload is complete is acknowledged by the rest of the upload.
            if flow.opened and isinstance(framer, RequestFramer) and not framer.answered_early:
                commands.append(Excuse(flow.id))
            return
        if kind is ServerFin:
            if framer is not None:
                self._pass_on(flow, framer.no_more(), commands)
            elif flow.before_fin is None:
                flow.before_fin = len(flow.prefix)
            return
        if kind is Gap:
            if framer is None:
                framer = self._frame(flow, self._protocol is not Protocol.RAW, commands)
                prefix: Buffer = self._take_prefix(flow)
                if flow.before_fin is not None:
                    prefix = self._up_to_fin(flow, framer, prefix, True, commands)
                if prefix:
                    self._pass_on(flow, framer.feed(prefix, True), commands)
            self._pass_on(flow, framer.gap(chunk.length), commands)  # type: ignore[union-attr]
            return
        data: Buffer = chunk  # type: ignore[assignment]
        split = False
        if framer is None:
            if flow.prefix:
                data, after_response = self._take_prefix(flow) + data, True
            framer = self._decide(flow, data, commands)
            if framer is None:
                flow.prefix = bytes(data)
                return
            split = flow.before_fin is not None
        if self._turns and flow.answered:
            commands.append(Turn(flow.id, flow.answered))
            flow.answered = 0
        if split:
            data = self._up_to_fin(flow, framer, data, after_response, commands)
        self._pass_on(flow, framer.feed(data, after_response), commands)

    def _up_to_fin(
        self, flow: Flow, framer: Framer, data: Buffer, after_response: bool, commands: list[Command]
    ) -> Buffer:
        """Feed a new framer what came of the first bytes before production's FIN, and tell it of that; returns the
        rest.
        """
        begun, rest = data[: flow.before_fin], data[flow.before_fin :]
        if begun:
            self._pass_on(flow, framer.feed(begun, after_response), commands)
        self._pass_on(flow, framer.no_more(), commands)
        return rest

    def _pass_on(self, flow: Flow, messages: Sequence[Message], commands: list[Command]) -> None:
        for message in messages:
            if isinstance(message, Part):
                flags = message.flags
                if flags == WHOLE:
                    self._ledger.requests.seen += 1
                elif flags and flags & START:
                    self._ledger.requests.seen += 1
                    if flags & TRACED:
                        flags = self._look(flow, message)
                commands.append(Send(flow.id, message.data, message.size, flags))
            elif isinstance(message, LeftOut):
                self._ledger.filter(FilterReason.OUTSIDE, message.size)
            else:
                self._ledger.bytes.dropped[message.reason] += message.size
                if message.broken and flow.opened:
                    commands.append(Abort(flow.id, message.reason, False))

    def _look(self, flow: Flow, message: Part) -> int:
        """Show the tracer a request that has the field of marked ones; returns the flags without `TRACED`."""
        if self._tracer is not None:
            self._tracer.look(message.data, flow.key)
        return message.flags & ~TRACED

    def _end(self, flow: Flow, reset: bool, answered: bool, commands: list[Command]) -> None:
        if flow.prefix:
            self._give_up_prefix(flow, DropReason.INCOMPLETE)
        if flow.framer is not None and (messages := flow.framer.end()):
            self._pass_on(flow, messages, commands)
        if flow.opened:
            if reset:
                commands.append(Abort(flow.id, DropReason.INCOMPLETE, True, answered=answered))
            else:
                commands.append(Finish(flow.id, answered=answered))

    def _gone(self, flow: Flow) -> None:
        """A flow that has not ended was given up."""

    def _give_up_prefix(self, flow: Flow, reason: DropReason) -> None:
        if flow.prefix:
            self._ledger.drop(reason, len(self._take_prefix(flow)))

    def _take_prefix(self, flow: Flow) -> bytes:
        prefix, flow.prefix = flow.prefix, b""
        self._heads.resize(len(prefix), 0)
        return prefix

    # --- the protocol of a connection

    def _decide(self, flow: Flow, data: Buffer, commands: list[Command]) -> Framer | None:
        """Choose the framer by the first bytes; None while they do not tell enough."""
        if data[0] == TLS_HANDSHAKE[0] and data[:2] == TLS_HANDSHAKE:
            self._ledger.events["flows_tls"] += 1
        if self._protocol is Protocol.AUTO and not flow.midstream:
            found = detect(data)
            if found is None and self._heads.resize(0, len(data)):
                return None
            if found is None:  # no room: the framer finds none either, and gives up what there is
                self._heads.resize(len(data), 0)
            return self._frame(flow, found != "raw", commands)
        return self._frame(flow, self._protocol is not Protocol.RAW, commands)

    def _frame(self, flow: Flow, http: bool, commands: list[Command]) -> Framer:
        midstream = flow.midstream
        framer: Framer = (
            RequestFramer(self._head_bytes, self._host, midstream, self._heads, self._trailers)
            if http
            else RawFramer(midstream)
        )
        flow.framer = framer
        self._flows.framed(flow)
        flow.ends_with_client = http
        if not flow.opened and (http or not flow.midstream):
            self._open(flow, http, commands)
        return framer

    def _open(self, flow: Flow, http: bool, commands: list[Command]) -> None:
        flow.opened = True
        commands.append(Open(flow.id, http, flow.key))

    def _accept(self, segment: Segment, commands: list[Command]) -> None:
        """Open a raw connection at once, since its server may speak first.  Its framer is made with the first bytes."""
        flow = self._flows.get(segment[0])
        if flow is not None and not flow.opened and not flow.midstream:
            self._flows.framed(flow)
            self._open(flow, False, commands)


def _size(event: tuple[Flow, Any, Any]) -> int:
    """Bytes of the client's stream in an event that waits.  If `after_response` is None, they are production's
    (`answered`), which are not accounted for.
    """
    _, chunk, after_response = event
    return 0 if after_response is None else _length(chunk)


def _length(chunk: Any) -> int:
    return len(chunk) if isinstance(chunk, (bytes, memoryview)) else 0


def _lasting(chunk: Any) -> Any:
    """The same data, but not as a view of a segment's payload."""
    if isinstance(chunk, memoryview):
        return bytes(chunk)
    return Cut(bytes(chunk.data), chunk.length) if isinstance(chunk, Cut) else chunk
