# SPDX-License-Identifier: Apache-2.0
"""The comparison of one tap in one worker: it is told what happens, and keeps the state.  The package says how to use
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from tapmirror.compare.bodies import missing
from tapmirror.compare.brief import WORK, Briefing
from tapmirror.compare.diff import Compared, compare
from tapmirror.compare.endpoints import Endpoints
from tapmirror.compare.identifiers import Identifiers
from tapmirror.compare.noise import Repeats, request_key
from tapmirror.compare.operations import calls, operation
from tapmirror.compare.pairing import Conversation
from tapmirror.compare.probes import ANY, ProbeAllowance, Recheck, lacks_pairs, touch, worth_checking
from tapmirror.compare.rules import Expression, Rules
from tapmirror.compare.samples import Redaction, sample
from tapmirror.compare.summary import SCHEMA, STATUS, Endpoint, Summary, is_error, state_bounds
from tapmirror.compare.thinning import Draw, Rate
from tapmirror.compare.verdict import VerdictLimits
from tapmirror.events import KEEPING, NO_BODY, WHOLE, Buffer
from tapmirror.exchange import PROBE, Asked, Delivery, Exchange, Response, Unpaired
from tapmirror.framing.head import SAFE, is_safe
from tapmirror.framing.response_content import NOTHING, ReaderBounds, ResponseMemory
from tapmirror.spec.compare import Compare, Level

BEGINNINGS: Final = tuple(method + b" " for method in sorted(SAFE))
"""The beginning of a request with a safe method."""
HEAD_BYTES: Final = 64 << 10
"""Most bytes of a response's head, the same as of a request's."""
REPEAT_EVERY: Final = 8
"""One in this many exchanges of an endpoint is compared with an earlier response of production's; of the first
`REPEAT_FIRST`, every second one."""
REPEAT_FIRST: Final = 2000
BODIES: Final = 4096
"""Inspected bytes of both bodies that count as one of `Compare.max_bodies` (60 us).  Two bodies of 60 KB take 2 to 5
ms, as long as 30 such pairs."""
REASONS: Final = 16
"""Most different reasons for uncompared bodies that are kept for one endpoint."""
REPEATS: Final = 1024
REPEAT_BYTES: Final = 4 << 20


TOGETHER: Final = 32
"""Exchanges that are compared in one go.  One by one, each would find its code and data out of the processor's caches.
Measured live with status and with 2 KB of JSON: a fifth and a tenth less CPU than one by one."""
TOGETHER_BYTES: Final = 128 << 10
"""Most bytes of heads and bodies in the exchanges that are compared in one go; two bodies of 60 KB that differ take 2
to 5 ms."""


class Comparison:
    """The comparison of one tap in one worker.  `shadows` are (label, URL) by number."""

    def __init__(
        self,
        spec: Compare,
        shadows: Sequence[tuple[str, str]],
        redaction: Redaction,
        expressions: Iterable[Expression] = (),
    ) -> None:
        """`expressions` are `spec.ignore_patterns`, compiled."""
        self._spec = spec
        self._level = spec.level
        self._rules = Rules(spec, expressions, redaction.field)
        self._redaction = redaction
        self._shadows = list(shadows)
        bounds = state_bounds(spec)
        self._summaries = [Summary(bounds, spec.level.value) for _ in shadows]
        self._briefings = [Briefing(spec, VerdictLimits()) for _ in shadows]
        self._endpoints = Endpoints(spec.endpoints, spec.max_endpoints, redaction.path)
        self._learned = 0
        self._repeats = Repeats(REPEATS, REPEAT_BYTES)
        self._reader = ReaderBounds(HEAD_BYTES, spec.hash_bytes, spec.pending)
        self._memory = ResponseMemory(spec.held_bytes)
        self._conversations: dict[int, Conversation] = {}
        self._exchanges = Rate(spec.max_exchanges)
        self._bodies = Rate(spec.max_bodies)
        self._timed = Draw(spec.max_timed)
        self._allowance = ProbeAllowance(spec.noise_probe)
        self._identifiers = [Identifiers() for _ in shadows]
        self._short: list[Endpoint | None] = [None] * len(shadows)
        """For each shadow, the last endpoint that was found to need only pairs of one version to be judged."""
        self._done: list[tuple[Exchange, float]] = []
        """Exchanges that were paired and not compared yet, each with the time at which it was paired."""
        self._done_bytes = 0
        """Bytes of heads and bodies in the exchanges of `_done`."""
        self.checks: list[Recheck] = []
        """Requests that a shadow should get once more; whoever sends them removes them."""
        self._now = 0.0
        self.rested = 0
        """Requests not passed to `request` because the time slice of their connection is over (`Rotation`)."""
        if spec.level is Level.BODY:
            for name in missing():
                for summary in self._summaries:
                    summary.state.notes.append(f"bodies with Content-Encoding {name} are compared as bytes")

    # --- what it is fed

    def opened(self, flow: int, midstream: bool) -> Conversation:
        """A connection of production begins, or is joined.  Feed the conversation that it returns, and `request`."""
        self.closed(flow, Unpaired.UNANSWERED)
        found = self._conversations[flow] = Conversation(
            self._reader, self._memory, self, midstream, len(self._shadows)
        )
        return found

    def request(
        self, flow: int, number: int, head: Buffer, flags: int, now: float, ended_ns: int = 0, *, late: bool = False
    ) -> bool:
        """A request begins.  Returns whether the shadow should get it twice, the second time as `shadow + PROBE`.

        `head` is a valid head, `flags` are those of the first `Part`.  `ended_ns`: when its end was seen, if the first
        part is the whole request.  `late`: do not time it (`Asked.late`).
        """
        self._now = now
        conversation = self._conversations.get(flow)
        if conversation is None:
            return False
        for summary in self._summaries:
            summary.state.requests += 1
        if not self._exchanges.allows(now):
            conversation.request(None, flags, NOTHING, now)
            self.unpaired(Unpaired.THINNED)
            return False
        head = bytes(head)
        method, _, rest = head.partition(b" ")
        target = rest[: rest.find(b" ")]
        body_limit = NOTHING
        probed = False
        bodies = False
        if self._level is not Level.STATUS:
            if self._level is Level.BODY:
                bodies = self._bodies.allows(now)
                body_limit = self._spec.body_bytes if bodies else NOTHING
            if method in SAFE:
                probed = self._allowance.probes(bodies or self._level is Level.HEADERS)
        timed = not late and self._timed.takes(now)
        its_calls = calls(method, target, head)
        asked = Asked(
            number,
            method,
            target,
            head,
            bodies,
            probed,
            timed,
            calls=its_calls,
            flow=flow,
            ended_ns=ended_ns,
            late=late,
        )
        conversation.request(asked, flags, body_limit, now)
        return probed

    def closed(self, flow: int, reason: Unpaired) -> None:
        """The connection is over, and so are its copies."""
        conversation = self._conversations.pop(flow, None)
        if conversation is not None:
            conversation.close(reason)

    def tick(self, now: float, time_ns: int) -> None:
        """Call it about once a second; `now` as everywhere, `time_ns` by the clock of the responses."""
        self._now = now
        self.settle()
        self._count_rested()
        for conversation in self._conversations.values():
            if conversation:
                conversation.expire(now - self._spec.answer_time, time_ns)

    def close(self) -> None:
        """End the comparison, because the tap ends."""
        for flow in list(self._conversations):
            self.closed(flow, Unpaired.SHUTDOWN)

    def snapshot(self) -> dict[str, Any]:
        """The state of each shadow by its label, as plain JSON data: for `merge` and `figures`."""
        return msgspec.to_builtins(self.living(), str_keys=True)  # type: ignore[no-any-return]

    def living(self) -> dict[str, Any]:
        """The same in a quarter of the time, to be encoded as JSON at once, because the states continue to change."""
        self.settle()
        self._count_rested()
        states = {label: summary.state for (label, _), summary in zip(self._shadows, self._summaries, strict=True)}
        return {"schema": SCHEMA, "shadows": states}

    def brief(self, now: float = math.inf) -> dict[str, Any]:
        """The same in some hundred numbers that add up over workers, by label: see `brief`.

        If `now` is given, it takes a few milliseconds at most, and figures of an endpoint may be some seconds old.
        """
        self.settle()
        self._count_rested()
        work = math.inf if now == math.inf else WORK / len(self._shadows)
        return {
            label: briefing.brief(summary, now, work)
            for (label, _), summary, briefing in zip(self._shadows, self._summaries, self._briefings, strict=True)
        }

    # --- what comes of it: Sink

    def paired(self, exchange: Exchange) -> None:
        """Take a request with production's response and the shadows'.  It is compared in a batch, or by `settle`."""
        self._done.append((exchange, self._now))
        self._done_bytes += exchange.size
        if len(self._done) >= TOGETHER or self._done_bytes >= TOGETHER_BYTES:
            self.settle()

    def settle(self) -> None:
        """Compare all exchanges that wait."""
        done, self._done = self._done, []
        self._done_bytes = 0
        for exchange, now in done:
            self._look_at(exchange, now)

    def _look_at(self, exchange: Exchange, now: float) -> None:
        asked, production, deliveries = exchange.asked, exchange.production, exchange.deliveries
        if asked.checks:
            self._checked(exchange)
            return
        if asked.calls is not None:
            asked.operation = operation(asked)
        name = self._endpoints.name(asked.method, asked.target, asked.operation)
        if self._endpoints.learned != self._learned:
            self._learned = self._endpoints.learned
            places = self._endpoints.places()
            for summary, briefing in zip(self._summaries, self._briefings, strict=True):
                briefing.folded(summary.fold(places))
        repeat = None
        plain = self._level is Level.STATUS
        for shadow, summary in enumerate(self._summaries):
            delivery = deliveries.get(shadow)
            if delivery is None:
                summary.unpaired(exchange.left_out.get(shadow, Unpaired.NOT_SENT).value)
                continue
            endpoint = summary.endpoint(name)
            summary.observe(endpoint, asked, production, delivery, now)
            if plain:
                if production.status != delivery.response.status:
                    self._differs(shadow, name, endpoint, exchange, delivery, now)
                else:
                    endpoint.compared += 1
                continue
            if asked.marked or (self._level is Level.BODY and (not asked.bodies or self._bodies.owes)):
                summary.state.thinned += 1
                continue
            self._differs(shadow, name, endpoint, exchange, delivery, now)
            if endpoint is self._short[shadow] and self._allowance.checks(2) and is_safe(delivery.request):
                self._again(shadow, exchange, delivery, ANY)
            if asked.probed:
                probe = deliveries.get(shadow + PROBE)
                if probe is not None:
                    twice = self._compare(asked, delivery.response, probe.response)
                    if not twice.skipped or twice.found:
                        summary.noisy(endpoint, [each.field for each in twice.found], probe=True)
            every = 2 if endpoint.pairs <= REPEAT_FIRST else REPEAT_EVERY
            if endpoint.pairs % every == 1 and asked.method in SAFE:
                if repeat is None:
                    repeat = self._repeat(asked, production)
                if repeat:
                    summary.noisy(endpoint, repeat[0], probe=False)

    def unpaired(self, reason: Unpaired) -> None:
        """Count a request that could not be paired, for all shadows."""
        for summary in self._summaries:
            summary.unpaired(reason.value)

    def raw(self) -> None:
        """Count a connection that is not HTTP/1 and cannot be compared, for all shadows."""
        for summary in self._summaries:
            summary.state.raw += 1

    # --- inside

    def _compare(self, asked: Asked, one: Response, other: Response) -> Compared:
        compared = compare(one, other, self._rules, bodiless=asked.method == b"HEAD")
        if compared.looked > BODIES:
            self._bodies.pay(compared.looked / BODIES - 1)
        return compared

    def _count_rested(self) -> None:
        rested, self.rested = self.rested, 0
        if rested:
            for summary in self._summaries:
                summary.state.requests += rested
                summary.unpaired(Unpaired.THINNED.value, rested)

    def _differs(
        self, shadow: int, name: str, endpoint: Endpoint, exchange: Exchange, delivery: Delivery, now: float
    ) -> None:
        """Compare the responses, count what differs, and keep samples as far as wanted."""
        asked, production = exchange.asked, exchange.production
        summary = self._summaries[shadow]
        compared = self._compare(asked, production, delivery.response)
        if not compared.skipped or compared.found:  # bodies that were not compared may differ
            endpoint.compared += 1
        if compared.skipped:
            reason = compared.skipped
            if reason in endpoint.skipped or len(endpoint.skipped) < REASONS:
                endpoint.skipped[reason] = endpoint.skipped.get(reason, 0) + 1
        if asked.method not in SAFE and self._level is not Level.STATUS and not compared.skipped:
            looked = self._identifiers[shadow].sort(name, asked, production, delivery.response, compared.found)
            if compared.found:
                compared.found = looked.found
            summary.unlike(endpoint, looked.unlike)
        if compared.found:
            if is_error(production.status) != is_error(delivery.response.status):
                endpoint.erring += 1
            elif production.status != delivery.response.status:
                summary.add_discordant(endpoint, production.status, delivery.response.status)
            wanted = summary.differed(endpoint, [each.field for each in compared.found])
            if wanted:
                label, base = self._shadows[shadow]
                samples = sample(
                    asked, production, delivery.response, wanted, self._rules, self._redaction, base or label, now
                )
                for field, one in samples.items():
                    summary.add_sample(endpoint, field, one)
            if delivery.request and is_safe(delivery.request):
                fields = worth_checking(endpoint, [each.field for each in compared.found])
                if fields:
                    self._allowance.want_checks()
                    if self._allowance.checks():
                        self._again(shadow, exchange, delivery, fields)

    def _again(self, shadow: int, exchange: Exchange, delivery: Delivery, checks: tuple[str, ...]) -> None:
        asked = exchange.asked
        conversation = self._conversations.get(asked.flow)
        if conversation is None:
            return
        flags = WHOLE | delivery.flags & (NO_BODY | KEEPING)
        body_limit = self._spec.body_bytes if asked.bodies else NOTHING
        again = msgspec.structs.replace(asked, checks=checks)
        number = conversation.again(again, shadow, delivery.response, flags, body_limit, self._now)
        if number:
            self._allowance.pay_check()
            self.checks.append(Recheck(asked.flow, number, shadow, delivery.request, flags))

    def _checked(self, exchange: Exchange) -> None:
        """Take the shadow's two responses to one request, of which the first differed from production's."""
        asked, first = exchange.asked, exchange.production
        for number, delivery in exchange.deliveries.items():
            compared = self._compare(asked, first, delivery.response)
            paths = [each.path for each in compared.found]
            whole = len(paths) < self._spec.differences and not compared.skipped
            summary = self._summaries[number - PROBE]
            endpoint = summary.endpoint(self._endpoints.name(asked.method, asked.target, asked.operation))
            if (
                delivery.response.failure is None
                and first.status != delivery.response.status
                and STATUS in asked.checks
            ):
                summary.checked(endpoint, {STATUS: False})
            if not whole or delivery.response.failure is not None or first.status != delivery.response.status:
                continue
            if asked.checks == ANY:
                summary.noisy(endpoint, [each.field for each in compared.found], probe=True)
                if not lacks_pairs(endpoint, endpoint.fields.values()):
                    self._short[number - PROBE] = None
                continue
            held = {name: not any(touch(name.partition(" ")[2], path) for path in paths) for name in asked.checks}
            summary.checked(endpoint, held)
            if lacks_pairs(endpoint, [endpoint.fields[name] for name in held if name in endpoint.fields]):
                self._short[number - PROBE] = endpoint

    def _repeat(self, asked: Asked, production: Response) -> list[list[str]]:
        """[what differs from production's last response to the same request]; empty if there is no such response."""
        before = self._repeats.swap(request_key(asked.head), production)
        if before is None:
            return []
        compared = self._compare(asked, before, production)
        if compared.skipped and not compared.found:
            return []
        return [[each.field for each in compared.found]]
