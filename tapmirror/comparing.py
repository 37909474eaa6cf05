# SPDX-License-Identifier: Apache-2.0
"""The pipeline of a tap that compares: in addition to the commands for replay, it feeds each request to its
conversation.

The order of what a conversation is fed makes the pairs: what production had sent before a request, the request when its
head is known, the shadows that get it once policy has decided, and its end.  Replay feeds the shadows' responses
(`Conversation`).

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tapmirror.answered import RESPONSE, AnsweredTable, EitherEvent
from tapmirror.compare.comparison import BEGINNINGS, Comparison
from tapmirror.compare.pairing import Conversation
from tapmirror.compare.thinning import Backlog, Rotation
from tapmirror.events import (
    END,
    FROM_SERVER,
    START,
    TRACED,
    TUNNEL,
    WHOLE,
    Abort,
    Buffer,
    Command,
    Cut,
    End,
    FilterReason,
    Finish,
    Gap,
    LeftOut,
    Message,
    Open,
    Part,
    Segment,
    Send,
)
from tapmirror.exchange import PROBE, Unpaired
from tapmirror.flow import Flow
from tapmirror.flows import BEGINS
from tapmirror.framing.head import is_safe
from tapmirror.framing.response_content import NOTHING
from tapmirror.ledger import Ledger
from tapmirror.packet import BUCKETS, flow_hash
from tapmirror.pipeline import Framer, Pipeline
from tapmirror.policy import Policy
from tapmirror.spec import TapSpec
from tapmirror.tcp import ANY
from tapmirror.tracer import Tracer
from tapmirror.wants import Wants

NEVER: Final = 1 << 63
"""Nanoseconds of CLOCK_MONOTONIC."""
TICK: Final = 1.0
"""Seconds between two checks for requests that wait too long for a response."""
TARGET_BYTES: Final = 4096
"""Most bytes that are kept of the target of a longer head."""
HEAD_BYTES: Final = 8192
"""Most bytes of a request's head that are kept for a sample."""


PROBE_DELAY: Final = 1.5
"""Seconds after which a shadow gets a request the second time: a time of day in seconds has changed by then."""
PROBES: Final = 1024
"""Most second copies that wait at one time: three times those of 1 % of 20,000 requests a second."""
PROBE_BYTES: Final = 16_384
"""Most bytes of a request that is sent twice; heads are shorter, and safe requests usually have no body."""


class Talk:
    """A connection whose responses are compared."""

    __slots__ = ("ack", "bucket", "conversation", "current", "flow", "follows", "number", "over", "probes")

    def __init__(self, flow: Flow, bucket: int, conversation: Conversation) -> None:
        self.flow = flow
        self.bucket = bucket
        self.ack = ANY
        """How much of production's stream the client had when it sent its last request."""
        self.conversation = conversation
        self.follows = False
        """Whether everything that production sends is fed."""
        self.number = 0
        """Number of its last request that is compared."""
        self.current = 0
        """Number of its last request; 0: that one is not compared."""
        self.probes: set[int] = set()
        """Shadows that have a second connection for second copies of requests."""
        self.over = False
        """Whether the client's side has ended."""


class ComparingPipeline(Pipeline):
    """As `Pipeline`, for a tap that compares responses.

    Second copies of requests have targets after those of the shadows, in the same order.

    Beyond `Compare.max_exchanges`, connections take turns (`Rotation`).  The source must know whose responses to
    capture: after each batch pass it what `response_wants` says about single flows, then set its window to `window`, if
    that is not None, and call `opened`.
    """

    __slots__ = (
        "_active",
        "_backlog",
        "_checks",
        "_comparison",
        "_counts",
        "_ends",
        "_late",
        "_next_tick",
        "_now",
        "_probed",
        "_probes",
        "_rotation",
        "_seed",
        "_since_ns",
        "_table",
        "_talks",
        "_targets",
        "_time_ns",
        "_undecided",
        "_wants",
        "response_wants",
        "window",
    )

    def __init__(
        self,
        spec: TapSpec,
        ledger: Ledger,
        policy: Policy | None,
        comparison: Comparison,
        tracer: Tracer | None = None,
    ) -> None:
        self._counts: Counter[str] = Counter()
        self._table = AnsweredTable(spec.limits, spec.seed, ledger, self._counts)
        super().__init__(spec, ledger, policy, self._table, tracer)
        self._comparison = comparison
        self._checks = spec.compare.probes
        self._targets = sum(shadow.copies for shadow in spec.shadows)
        self._now = 0.0
        self._time_ns = 0
        self._next_tick = 0.0
        self._undecided: list[tuple[int, Talk, int]] = []
        """Requests for which policy has not chosen the shadows yet."""
        self._probes: deque[tuple[float, Talk, int, bytes, Send]] = deque()
        """What has to be sent a second time, with when and where."""
        self._ends: list[Finish] = []
        """Ends of second connections that have to be sent; policy does not know these connections."""
        self._probed: set[tuple[int, int]] = set()
        """(flow, number) of requests that the shadows should get twice and have not got yet."""
        self._talks: dict[int, Talk] = {}
        self._seed = spec.seed
        self._backlog = Backlog()
        self._rotation = Rotation(spec.compare.max_exchanges)
        self._since_ns = 0
        """Since when production's responses are captured, for connections whose time slice it is."""
        self._active: dict[int, Talk] = {}
        """Connections with a request in this time slice, by flow; not kept while all connections are compared."""
        self._late: dict[int, Talk] = {}
        """Connections whose time slice is over, but which still wait for responses of production, by flow."""
        self._wants = Wants()
        """How many connections of `_late` are in each bucket, for which the kernel has one bit."""
        self.response_wants = self._wants.requests
        self.window: tuple[int, int] | None = None

    def opened(self, time_ns: int) -> None:
        """The source has the window since this time; it need not be set again."""
        self.window = None
        self._since_ns = time_ns

    def feed(self, segment: Segment, now: float) -> Sequence[Command]:
        """Take one captured segment of either side."""
        self._time_ns = segment[6]
        self._now = now
        if segment[1] >= FROM_SERVER and (flow := self._table.goes_on(segment, now)) is not None:
            talk = self._talks.get(flow.id)
            if talk is not None:
                if talk.follows:
                    talk.conversation.production_data(segment[5], self._time_ns)
                else:
                    flow.followed_to = None
            return ()
        if segment[1] & BEGINS:
            return self._begin(segment, now)
        events = self._table.feed_both(segment, now)
        if len(events) > 1:
            events = self._some(events)
        commands: list[Command] = []
        self._do(events, commands)
        return self._routed(commands, now) if commands else commands

    def work(self, now: float) -> Sequence[Command]:
        """As in `Pipeline`; the time is that of what was fed last."""
        self._now = now
        commands: list[Command] = []
        self._do(self._next(), commands)
        return self._routed(commands, now)

    def _do(self, events: Iterable[EitherEvent], commands: list[Command]) -> None:
        for event in events:
            flow, chunk, after_response = event
            if after_response is RESPONSE:
                self._take_response(event)
            elif type(chunk) is memoryview and flow.framer is not None and not self._turns:
                self._pass_on(flow, flow.framer.feed(chunk, after_response), commands)
            else:
                self._step(event, commands)  # type: ignore[arg-type]
                if type(chunk) is Gap:
                    self._gap(flow)

    def expire(self, now: float) -> list[Command]:
        """Act on time-outs; call it a few times a second."""
        self._at(now)
        commands: list[Command] = []
        self._do(self._flows.expire(now), commands)
        if now >= self._next_tick:
            self._next_tick = now + TICK
            if now >= self._rotation.due:
                self._turn()
            self._let_rest()
            self._comparison.tick(now, self._time_ns)
            for flow, talk in [each for each in self._talks.items() if each[1].over]:
                self._let_go(flow, talk)
        out = self._routed(commands, now)
        self._comparison.settle()
        if self._comparison.checks:
            self._take_checks()
        return [*out, *self._due_probes(), *self._taken_ends()] if self._probes else out

    def drop_above(self, threshold: int, now: float) -> Sequence[Command]:
        """As in `Pipeline`; connections that are given up are not compared any more."""
        self._at(now)
        commands = super().drop_above(threshold, now)
        return [*commands, *self._taken_ends()] if self._ends else commands

    def close(self, now: float) -> list[Command]:
        """The capture is over."""
        self._at(now)
        commands = super().close(now)
        for _, talk, _, _, command in self._probes:
            talk.conversation.left_out(command.target + PROBE, command.number, Unpaired.SHUTDOWN)
        self._probes.clear()
        for flow, talk in self._talks.items():
            talk.over = True
            self._end_probes(flow, talk)
        return [*commands, *self._taken_ends()]

    def conversation(self, flow: int) -> Conversation | None:
        """The conversation of a connection whose responses are compared; for replay, when it opens its connection."""
        talk = self._talks.get(flow)
        return None if talk is None else talk.conversation

    def shut(self) -> None:
        """Replay has ended too: requests still in progress are not paired."""
        self._comparison.close()

    def state(self) -> dict[str, Any]:
        """The whole state, to be encoded as JSON at once."""
        return {**self._comparison.living(), "capture": dict(sorted(self._counts.items()))}

    def brief(self, now: float) -> dict[str, Any]:
        """The briefs of all shadows, some seconds old at most; of this moment if `now` is infinite, in more time."""
        return {"shadows": self._comparison.brief(now), "capture": dict(sorted(self._counts.items()))}

    def _at(self, now: float) -> None:
        self._now = now
        self._time_ns = int(now * 1e9)

    def _let_go(self, flow: int, talk: Talk) -> None:
        """Forget a connection that has nothing in progress any more."""
        if talk.over and not len(talk.conversation):
            if self._checks:
                self._comparison.settle()
                if len(talk.conversation):  # a check would be sent on this connection
                    return
            self._talks.pop(flow, None)
            self._comparison.closed(flow, Unpaired.UNANSWERED)

    # --- production's side

    def _take_response(self, event: EitherEvent) -> None:
        flow, chunk, _ = event
        talk = self._talks.get(flow.id)
        if talk is None:
            return
        if not talk.follows:
            flow.followed_to = None
            return
        conversation, time_ns = talk.conversation, self._time_ns
        if type(chunk) is memoryview:
            conversation.production_data(chunk, time_ns)
        elif isinstance(chunk, Cut):
            conversation.production_data(chunk.data, time_ns)
            conversation.production_gap(chunk.length - len(chunk.data), time_ns, Unpaired.CUT)
        elif isinstance(chunk, Gap):
            conversation.production_gap(chunk.length, time_ns)
        elif isinstance(chunk, End):
            conversation.production_ended(time_ns, chunk.reset)
        else:
            conversation.production_data(chunk, time_ns)  # type: ignore[arg-type]

    # --- the client's side

    def _frame(self, flow: Flow, http: bool, commands: list[Command]) -> Framer:
        if http:
            if flow.hash is None:
                flow.hash = flow_hash(flow.key, self._seed)
            conversation = self._comparison.opened(flow.id, flow.midstream)
            talk = self._talks[flow.id] = Talk(flow, flow.hash % BUCKETS, conversation)
            talk.follows = self._time_ns >= self._since_ns and self._rotation.takes(talk.bucket)
            if talk.follows and flow.followed_to is None and flow.ack >= 0:
                # joined mid-stream: else the first response that is captured has nothing before it
                flow.followed_to = flow.ack
        else:
            self._ledger.events["flows_raw"] += 1
            self._comparison.raw()
        return super()._frame(flow, http, commands)

    def _gap(self, flow: Flow) -> None:
        """Bytes of the client were lost, and perhaps requests, even if framing reports none."""
        talk = self._talks.get(flow.id)
        if talk is not None and flow.framer.astray:
            talk.conversation.requests_lost()

    def _pass_on(self, flow: Flow, messages: Sequence[Message], commands: list[Command]) -> None:
        talk = self._talks.get(flow.id)
        if talk is None:
            super()._pass_on(flow, messages, commands)
            return
        conversation = talk.conversation
        for message in messages:
            if isinstance(message, Part):
                number, flags = 0, message.flags
                if flags & START:
                    self._ledger.requests.seen += 1
                    if flags & TRACED:
                        flags = self._look(flow, message)
                    if self._rotation.seen(self._now):
                        self._turn()
                    if self._compares(flow, talk, flags):
                        number = talk.current = self._request(flow, talk, message)
                    else:
                        talk.current = 0
                        self._comparison.rested += 1
                elif talk.current and len(message.data):
                    conversation.request_body(talk.current, message.data)
                commands.append(Send(flow.id, message.data, message.size, flags, 0, number))
                if flags & END and talk.current and not flags & START:
                    late = self._backlog.holds(self._now, self._time_ns)
                    conversation.request_ended(talk.current, self._time_ns, late=late)
                continue
            if isinstance(message, LeftOut):
                self._ledger.filter(FilterReason.OUTSIDE, message.size)
                continue
            self._ledger.bytes.dropped[message.reason] += message.size
            if message.broken:
                conversation.request_broken(talk.current)
                if flow.opened:
                    commands.append(Abort(flow.id, message.reason, False))
            else:
                conversation.requests_lost()

    def _compares(self, flow: Flow, talk: Talk, flags: int) -> bool:
        """Whether a request that begins with these flags is compared."""
        if flow.pipelines or flow.ack == talk.ack >= 0:
            talk.conversation.pipelined()
        talk.ack = flow.ack
        if self._rotation.takes(talk.bucket):
            if not talk.follows:
                if self._time_ns < self._since_ns:
                    return False
                talk.follows = True
                talk.conversation.resume()
                flow.followed_to = flow.ack if flow.ack >= 0 else None
            if self._rotation.count < BUCKETS:
                self._active[flow.id] = talk
            return True
        if talk.follows:
            if talk.conversation.suspend():
                talk.follows = False
                flow.followed_to = None
            else:
                talk.conversation.request(None, flags, NOTHING, self._now)
        return False

    def _turn(self) -> None:
        """Begin the next time slice, once the source knows; connections that wait for responses still get them."""
        everyones = self._rotation.count == BUCKETS
        if not self._rotation.next_slice(self._now):
            return
        self._since_ns = NEVER
        self.window = self._rotation.first, self._rotation.count
        active, self._active = self._talks if everyones else self._active, {}
        for flow, talk in active.items():
            if not talk.over and talk.conversation.awaits:
                if self._rotation.takes(talk.bucket):
                    self._active[flow] = talk
                elif flow not in self._late:
                    self._late[flow] = talk
                    self._wants.want(talk.flow.key, talk.bucket)
        self._let_rest()

    def _let_rest(self) -> None:
        """Let connections rest whose time slice is over and that have had all responses."""
        for flow, talk in list(self._late.items()):
            if talk.over or not talk.conversation.awaits:
                del self._late[flow]
                self._wants.unwant(talk.flow.key, talk.bucket)

    def _request(self, flow: Flow, talk: Talk, part: Part) -> int:
        """A request begins; returns its number on its connection."""
        talk.number = number = talk.number + 1
        conversation = talk.conversation
        head = _head(part.data)
        ended_ns = self._time_ns if part.flags & END else 0
        late = self._backlog.holds(self._now, self._time_ns)
        if self._comparison.request(flow.id, number, head, part.flags, self._now, ended_ns, late=late):
            self._probed.add((flow.id, number))
        size = len(head)
        if len(part.data) > size:
            if part.data[size - 4 : size] != b"\r\n\r\n":  # the part has not the whole head
                size = bytes(part.data).find(b"\r\n\r\n") + 4
            if len(part.data) > size:
                conversation.request_body(number, part.data[size:])
        if self._policy is None:
            whole = self._checks and part.flags & (WHOLE | TUNNEL) == WHOLE and size == len(part.data)
            conversation.chosen(0, number, head if whole and head.startswith(BEGINNINGS) else b"", alone=True)
        else:
            self._undecided.append((flow.id, talk, number))
        return number

    def _end(self, flow: Flow, reset: bool, answered: bool, commands: list[Command]) -> None:
        super()._end(flow, reset, answered, commands)
        self._over(flow, reset)

    def _gone(self, flow: Flow) -> None:
        self._over(flow, True)

    def _over(self, flow: Flow, reset: bool) -> None:
        """Nothing more will be seen of a connection."""
        talk = self._talks.get(flow.id)
        if talk is not None:
            talk.over = True
            talk.conversation.production_ended(self._time_ns, reset)
            self._end_probes(flow.id, talk)
            self._let_go(flow.id, talk)

    # --- which shadows get it

    def _routed(self, commands: list[Command], now: float) -> list[Command]:
        """As in `Pipeline`; also tells the conversations what policy decided about their requests."""
        if self._policy is None:
            if self._probed:
                self._keep_probes(commands)
            return self._traced(commands)
        routed = self._policy.route(commands, now)
        if self._undecided:
            for command in routed:
                if type(command) is Send and command.number and (talk := self._talks.get(command.flow)):
                    talk.conversation.chosen(command.target, command.number, self._kept(command))
            waiting = []
            for flow, talk, number in self._undecided:
                if self._policy.holds(flow) and number == talk.current:
                    waiting.append((flow, talk, number))
                else:
                    talk.conversation.decided(number)
            self._undecided = waiting
        if self._probed:
            self._keep_probes(routed)
        return self._traced(routed)

    def _traced(self, commands: list[Command]) -> list[Command]:
        """The commands, with a request marked when it is time for one, and the ends of second connections."""
        if self._tracer is not None and self._now >= self._tracer.due:
            before, commands = commands, self._tracer.marked(commands, self._now)
            for plain, command in zip(before, commands, strict=True):
                if command is not plain and type(command) is Send and (talk := self._talks.get(command.flow)):
                    talk.conversation.marked(command.number)
        return [*commands, *self._taken_ends()] if self._ends else commands

    def _kept(self, command: Send) -> bytes:
        """A copy of the data, if it may have to be sent again."""
        if not self._checks or command.flags & (WHOLE | TUNNEL) != WHOLE or len(command.data) > HEAD_BYTES:
            return b""
        kept = bytes(command.data)
        return kept if kept.startswith(BEGINNINGS) else b""

    def _keep_probes(self, commands: list[Command]) -> None:
        """Keep copies of requests that shadows should get a second time."""
        for command in commands:
            if type(command) is not Send or (command.flow, command.number) not in self._probed:
                continue
            talk = self._talks.get(command.flow)
            if talk is None or command.flags & WHOLE != WHOLE or command.flags & TUNNEL or not is_safe(command.data):
                continue
            if len(self._probes) < PROBES and len(command.data) <= PROBE_BYTES:
                talk.conversation.chosen(command.target + PROBE, command.number)
                self._probes.append((self._now + PROBE_DELAY, talk, command.flow, bytes(command.data), command))
        self._probed &= {(flow, number) for flow, _, number in self._undecided}

    def _take_checks(self) -> None:
        """Take the checks, requests whose responses differed; they wait as long as the other second copies."""
        for check in self._comparison.checks:
            talk = self._talks.get(check.flow)
            if talk is None:
                continue
            if len(self._probes) >= PROBES:
                talk.conversation.left_out(check.shadow + PROBE, check.number, Unpaired.LIMIT)
                continue
            command = Send(check.flow, check.request, 0, check.flags, check.shadow, check.number)
            self._probes.append((self._now + PROBE_DELAY, talk, check.flow, check.request, command))
        self._comparison.checks.clear()

    def _due_probes(self) -> list[Command]:
        """The second copies whose time has come."""
        out: list[Command] = []
        while self._probes and self._probes[0][0] <= self._now:
            _, talk, flow, data, command = self._probes.popleft()
            target = self._targets + command.target
            if command.target not in talk.probes:
                talk.probes.add(command.target)
                out.append(Open(flow, True, target=target))
            out.append(Send(flow, data, 0, command.flags, target, command.number))
            if talk.over:
                self._end_probes(flow, talk)
        return out

    def _end_probes(self, flow: int, talk: Talk) -> None:
        self._ends += [Finish(flow, self._targets + target) for target in sorted(talk.probes)]
        talk.probes.clear()

    def _taken_ends(self) -> list[Finish]:
        ends, self._ends = self._ends, []
        return ends


def _head(data: Buffer) -> bytes:
    """The head with which a request's first part begins.

    A long one lacks its last fields, or the end of its target; no line is cut.
    """
    whole = bytes(data[:HEAD_BYTES])
    end = whole.find(b"\r\n\r\n")
    if end >= 0:
        return whole[: end + 4]
    last = whole.rfind(b"\r\n")
    if last >= 0:
        return whole[:last] + b"\r\n\r\n"
    method, _, rest = whole.partition(b" ")
    return method + b" " + rest.partition(b" ")[0][:TARGET_BYTES] + b"... HTTP/1.1\r\n\r\n"
