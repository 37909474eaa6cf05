# SPDX-License-Identifier: Apache-2.0
"""The decisions on each request, in their order, and the commands for each shadow that follow from them.

Theory of operation
-------------------
The pipeline's commands come in as if there were one shadow.  They go out for each target: there is one number, from 0
on, for each copy of each shadow.  A request is decided when its head is there, in this order:

1. safe methods, the tap's share and caps: for all shadows;
2. the first rule that matches: its shadows, its share and caps, its limit of the body;
3. redaction and the hook, once for all;
4. for each shadow: its own match, whether its share is lowered at present, the rule's share for it, its own share and
   caps, its rewrite.

The fate of the request for a shadow is entered into that shadow's ledger, with its bytes; later parts of the request
share that fate.  Nothing waits here except for the end of a request, and only if it must be complete: for redaction or
a hook that reads the body, for a pooled connection, or for a limit on a body whose length is not announced.  What is
held is bounded, each request by the reason for it, and all by `Limits.held_bytes`.

A raw connection is decided when it opens, by its shares of connections alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

from tapmirror.events import (
    END,
    NO_BODY,
    START,
    TUNNEL,
    Abort,
    Buffer,
    Command,
    DropReason,
    Excuse,
    FilterReason,
    Finish,
    FlowKey,
    Open,
    Send,
    Turn,
)
from tapmirror.framing.head import REQUEST_LINE, SAFE
from tapmirror.ledger import Ledger
from tapmirror.policy.expressions import Expressions
from tapmirror.policy.hook import HookRequest, from_hook, to_hook
from tapmirror.policy.plan import ALL, CompiledRule, Destination, Fate, Share, finder
from tapmirror.policy.redact import Redactor, framed, unchunked
from tapmirror.policy.request import Request, persistent
from tapmirror.policy.sample import TAP, Bucket, SampledConnection
from tapmirror.spec import By, Rewrite, Rule, Spread, TapSpec
from tapmirror.spec.sampled import defaults_only

HookFunction: TypeAlias = Callable[[HookRequest], object]

_HEAD_END: Final = re.compile(rb"\r\n\r\n")
_SMALL: Final = 4096
"""Most bytes that are copied before they are searched."""
_UNBOUNDED: Final = 1 << 62


def is_needed(spec: TapSpec) -> bool:
    """Whether there is anything to decide.  If not, each request goes to one shadow unchanged, or only with another
    Host.
    """
    (shadow, *more) = spec.shadows
    return bool(
        more
        or shadow.copies > 1
        or shadow.pooled
        or shadow.match
        or not defaults_only(shadow)
        or spec.needs_requests()
        or spec.ramp is not None
        or spec.safe_methods
        or spec.rules
        or spec.redact is not None
        or spec.hook is not None
        or (constant_host(spec) is None and shadow.rewrite != Rewrite())
    )


def constant_host(spec: TapSpec) -> bytes | None:
    """The value of Host that framing sets, if nothing else is rewritten."""
    shadow = spec.shadows[0]
    host = shadow.rewrite.host
    if shadow.rewrite != Rewrite(host=host) or host in ("keep", "shadow-suffix"):
        return None
    return (shadow.end_point if host == "target" else host).encode("ascii")


class Talk(SampledConnection):
    """A production connection, and the request in progress on it."""

    __slots__ = ("charges", "flow", "held", "opened", "sends", "skips")

    def __init__(self, flow: int, key: FlowKey, seed: int, now: float) -> None:
        super().__init__(key, seed, now)
        self.flow = flow
        self.opened: set[int] = set()
        """Targets that were told of the connection."""
        self.sends: Sequence[int] = ()
        """Targets that get the request in progress."""
        self.skips: Sequence[tuple[Destination, Fate]] = ()
        """Shadows that do not get the request in progress."""
        self.charges: Sequence[Bucket] = ()
        self.held: Held | None = None


class Held:
    """A request that must be complete before it is passed on."""

    __slots__ = ("body", "flags", "limit", "number", "over", "request", "size", "takes")

    def __init__(
        self, request: Request, takes: Sequence[Destination], command: Send, limit: int, over: FilterReason | DropReason
    ) -> None:
        self.request = request
        self.takes = takes
        self.flags = command.flags
        self.number = command.number
        self.limit = limit
        """Most bytes of the body."""
        self.over = over
        """The fate of the request if the body is longer."""
        self.body = bytearray()
        """The bytes that have come so far, joined: a client may send parts of one byte, and an object for each would
        take 42 bytes."""
        self.size = 0
        """How many captured bytes the request stands for."""


class Policy:
    """All decisions of one worker.  `ledgers` has one for each shadow.

    `secret` keys the hashes of redaction; `epoch` is the difference of the wall clock to the clock of `now`.
    """

    def __init__(
        self,
        spec: TapSpec,
        ledgers: Sequence[Ledger],
        *,
        secret: bytes = b"",
        epoch: float = 0.0,
        hook: HookFunction | None = None,
    ) -> None:
        self._seed = spec.seed
        self._epoch = epoch
        self._hook = hook
        self._hook_spec = spec.hook
        self._held_most = spec.limits.held_bytes
        self._pool_most = spec.limits.queue_bytes
        self._held_bytes = 0
        self._safe = spec.safe_methods
        self._redactor = Redactor(spec.redact, secret) if spec.redact is not None else None
        matches = [each.match for each in spec.rules] + [each.match for each in spec.shadows]
        expressions = Expressions(itertools.chain.from_iterable(matches))
        self.destinations: list[Destination] = []
        first = 0
        for shadow, ledger in zip(spec.shadows, ledgers, strict=True):
            self.destinations.append(Destination(shadow, first, spec, ledger, expressions))
            first += shadow.copies
        self._tap = Share(spec, TAP, spec.seed)
        # What the kernel decided is not decided again, unless the share moves.
        self._by_connection = spec.by is By.CONNECTION and not self._tap.sampler.capped
        self._tap_plain = (self._by_connection and spec.ramp is None) or self._tap.plain
        self._capped = self._tap.sampler.capped
        rules = [CompiledRule(rule, spec, self.destinations, expressions) for rule in spec.rules or (Rule(),)]
        self._rules = rules
        self._find = finder(rules)
        self._round_robin = spec.spread is Spread.ROUND_ROBIN
        self._quick = not self._capped and not self._round_robin
        """Whether the tap has no cap and no rotation, and no shadow's share is lowered."""
        self._turn = 0
        self._may_hold = bool(
            (self._redactor is not None and self._redactor.reads_bodies)
            or (spec.hook is not None and spec.hook.body)
            or any(shadow.pooled for shadow in spec.shadows)
            or any(rule.skips for rule in rules)
        )
        self._talks: dict[int, Talk] = {}
        self._pools: set[tuple[int, int]] = set()
        self._steps: dict[type, Callable[[Any, float, list[Command]], None]] = {
            Send: self._send,
            Open: self._open,
            Turn: self._pass_turn,
            Finish: self._finish,
            Excuse: self._excuse,
            Abort: self._abort,
        }

    def route(self, commands: Sequence[Command], now: float) -> list[Command]:
        """Turn commands for one shadow into commands for each.  Their data is valid as long as that of `commands`."""
        out: list[Command] = []
        for command in commands:
            self._steps[type(command)](command, now, out)
        return out

    def begin(self, at: float) -> None:
        """Set when the tap began, by the clock of `now`; its ramps start there, in every worker."""
        shares = [self._tap, *(each.share for each in self.destinations)]
        for rule in self._rules:
            shares += [rule.share, *(share for _, share in rule.mirrors if share is not None)]
        for share in shares:
            share.sampler.begin(at)

    def holds(self, flow: int) -> bool:
        """Whether a request of this connection is held until it is complete."""
        talk = self._talks.get(flow)
        return talk is not None and talk.held is not None

    def set_percent(self, percent: float) -> None:
        """Change the tap's share for requests that begin from now on; a ramp is over then."""
        self._tap.set_percent(percent)
        self._tap_plain = self._by_connection or self._tap.plain

    def set_thresholds(self, thresholds: Sequence[int]) -> None:
        """Give each shadow only connections whose hash is below its own threshold; empty: all shadows get everything.

        On existing connections this applies to requests that begin from now on; a raw connection that a shadow has
        continues to its end.
        """
        for each, threshold in zip(self.destinations, thresholds or [ALL] * len(self.destinations), strict=True):
            each.threshold = threshold
        self._quick = not self._capped and not self._round_robin and not thresholds

    def close(self) -> list[Command]:
        """End the pooled connections: the capture is over."""
        ends: list[Command] = [Finish(lane, target) for target, lane in self._pools]
        self._pools.clear()
        return ends

    # --- connections

    def _open(self, command: Open, now: float, out: list[Command]) -> None:
        talk = Talk(command.flow, command.key, self._seed, now)
        self._talks[command.flow] = talk
        if not command.http:
            self._decide_connection(talk, out)

    def _decide_connection(self, talk: Talk, out: list[Command]) -> None:
        """Decide which shadows get a raw connection."""
        takes: list[Destination] = []
        skips: list[tuple[Destination, Fate]] = []
        picked = self._pick(len(self.destinations)) if self._round_robin else None
        outside = not self._tap_plain and not self._tap.sampler.takes_connection(talk)
        for i, each in enumerate(self.destinations):
            if outside or talk.hash >= each.threshold or not each.share.sampler.takes_connection(talk):
                skips.append((each, None))
            elif picked is not None and picked != i:
                skips.append((each, FilterReason.TURN))
            else:
                takes.append(each)
        talk.skips = skips
        talk.sends = [target for each in takes for target in each.targets]
        for target in talk.sends:
            talk.opened.add(target)
            out.append(Open(talk.flow, False, talk.key, target))

    def _pass_turn(self, command: Turn, now: float, out: list[Command]) -> None:
        talk = self._talks.get(command.flow)
        if talk is not None:
            out.extend(Turn(command.flow, command.answered, target) for target in sorted(talk.opened))

    def _finish(self, command: Finish, now: float, out: list[Command]) -> None:
        talk = self._talks.pop(command.flow, None)
        if talk is not None:
            self._let_go(talk, DropReason.INCOMPLETE)
            out.extend(Finish(command.flow, target, command.answered) for target in sorted(talk.opened))

    def _excuse(self, command: Excuse, now: float, out: list[Command]) -> None:
        """Pass the command on.  NOTE: not for pooled connections, which have requests of other clients too."""
        talk = self._talks.get(command.flow)
        if talk is not None:
            out.extend(Excuse(command.flow, target) for target in talk.sends if target in talk.opened)

    def _abort(self, command: Abort, now: float, out: list[Command]) -> None:
        talk = self._talks.get(command.flow)
        if talk is None:
            return
        self._let_go(talk, command.reason)
        if command.reset:
            del self._talks[command.flow]
            targets: Sequence[int] = sorted(talk.opened)
        else:
            targets = [target for target in talk.sends if target in talk.opened]
            talk.sends = ()
        out.extend(Abort(command.flow, command.reason, command.reset, target, command.answered) for target in targets)

    # --- requests

    def _send(self, command: Send, now: float, out: list[Command]) -> None:
        talk = self._talks.get(command.flow)
        if talk is None:
            return
        if command.flags & START:
            self._begin(talk, command, now, out)
        else:
            for each, fate in talk.skips:
                each.settle(fate, command.size, 0)
            if talk.held is not None:
                self._hold(talk, talk.held, command.data, command, now, out)
            else:
                for target in talk.sends:
                    out.append(Send(command.flow, command.data, command.size, command.flags, target))
        for bucket in talk.charges:
            bucket.take(command.size)

    def _begin(self, talk: Talk, command: Send, now: float, out: list[Command]) -> None:
        """Decide on a request whose head is there."""
        data = command.data
        if len(data) <= _SMALL:
            data = bytes(data)
            end = data.find(b"\r\n\r\n") + 4
        else:
            end = _HEAD_END.search(data).end()  # type: ignore[union-attr]
        request = Request(bytes(data[:end]), talk.key)
        talk.number += 1
        talk.sends = talk.charges = ()
        takes, talk.skips, rule = self._choose(request, talk, command.flags, now)
        over: FilterReason | DropReason | None = None
        if self._may_hold and takes:
            limit, over = self._must_hold(request, rule, takes)
            if over is not None and (request.length or 0) > limit:
                talk.skips = [*talk.skips, *((each, over) for each in takes)]
                takes = []
        for each, fate in talk.skips:
            each.settle(fate, command.size, 1)
        if not takes:
            return
        if over is None:
            self._pass_on(talk, request, takes, data[end:], command, now, out)
            return
        talk.held = Held(request, takes, command, limit, over)
        for each in takes:
            each.held_requests += each.spec.copies
        self._hold(talk, talk.held, data[end:], command, now, out)

    def _choose(
        self, request: Request, talk: Talk, flags: int, now: float
    ) -> tuple[Sequence[Destination], Sequence[tuple[Destination, Fate]], CompiledRule | None]:
        """Which shadows get the request, why the others do not, and which rule decided."""
        fate: Fate
        if self._safe and request.method not in SAFE:
            fate = FilterReason.METHOD
        elif self._redactor is not None and flags & TUNNEL:
            fate = FilterReason.TUNNEL
        elif not self._tap_plain and not self._tap.sampler.takes(request, talk, now):
            fate = None
        else:
            rule = self._find(request)
            if rule is not None:
                if self._quick and rule.plain is not None and not flags & TUNNEL:
                    return rule.plain, (), rule
                return self._by_rule(rule, request, talk, flags, now)
            fate = FilterReason.NO_RULE
        return [], [(each, fate) for each in self.destinations], None

    def _by_rule(
        self, rule: CompiledRule, request: Request, talk: Talk, flags: int, now: float
    ) -> tuple[list[Destination], list[tuple[Destination, Fate]], CompiledRule]:
        skips: list[tuple[Destination, Fate]] = [(each, FilterReason.RULE) for each in rule.others]
        fate: Fate = FilterReason.BODY_LIMIT
        passes = not (rule.skips and rule.body is not None and (request.length or 0) > rule.body.max)
        charges: list[Bucket] = []
        if passes and not rule.share.plain:
            fate = None
            passes = rule.share.sampler.takes(request, talk, now)
        if self._capped or rule.share.sampler.capped:
            for share in (self._tap, rule.share):
                if passes and share.sampler.capped:
                    passes, fate = share.sampler.within_cap(now), FilterReason.CAP
                    if share.sampler.bytes is not None:
                        charges.append(share.sampler.bytes)
        if not passes:
            return [], skips + [(each, fate) for each, _ in rule.mirrors], rule
        mirrors = rule.mirrors
        if self._round_robin and len(mirrors) > 1:
            picked = self._pick(len(mirrors))
            skips += [(each, FilterReason.TURN) for i, (each, _) in enumerate(mirrors) if i != picked]
            mirrors = [mirrors[picked]]
        takes: list[Destination] = []
        for each, share_of_rule in mirrors:
            found = self._for_shadow(each, share_of_rule, request, talk, flags, now, charges)
            if found is True:
                takes.append(each)
            else:
                skips.append((each, found))
        if takes:
            talk.charges = charges
            if rule.body is not None and not rule.skips and (request.length or 0) > rule.body.max:
                for each in takes:
                    each.ledger.events["bodies_over_limit"] += 1
        return takes, skips, rule

    def _for_shadow(
        self,
        each: Destination,
        share: Share | None,
        request: Request,
        talk: Talk,
        flags: int,
        now: float,
        charges: list[Bucket],
    ) -> Fate | Literal[True]:
        """True, or the fate of the request for this shadow."""
        if each.check is not None and not each.check(request):
            return FilterReason.NO_MATCH
        if talk.hash >= each.threshold:
            return None
        if flags & TUNNEL and (each.pooled or each.changes_method):
            return FilterReason.TUNNEL
        if share is None and each.share.plain:
            return True
        for one in (share, None if each.share.plain else each.share):
            if one is None:
                continue
            if not one.sampler.takes(request, talk, now):
                return None
            if one.sampler.capped:
                if not one.sampler.within_cap(now):
                    return FilterReason.CAP
                if one.sampler.bytes is not None:
                    charges.append(one.sampler.bytes)
        return True

    def _pick(self, count: int) -> int:
        self._turn += 1
        return (self._turn - 1) % count

    # --- holding

    def _must_hold(
        self, request: Request, rule: CompiledRule | None, takes: Sequence[Destination]
    ) -> tuple[int, FilterReason | DropReason | None]:
        """Returns (most bytes of the body, fate of the request if it is longer); the fate is None if it need not be
        held.
        """
        limit = _UNBOUNDED
        over: FilterReason | DropReason | None = None
        if request.length == 0:
            return limit, over
        if self._redactor is not None and self._redactor.reads_bodies:
            limit, over = self._redactor.body_bytes, DropReason.UNREDACTED
        if self._hook_spec is not None and self._hook_spec.body and self._hook_spec.body_bytes < limit:
            limit, over = self._hook_spec.body_bytes, DropReason.HOLD_LIMIT
        unannounced = rule is not None and rule.skips and request.length is None
        if unannounced and rule is not None and rule.body is not None and rule.body.max < limit:
            limit, over = rule.body.max, FilterReason.BODY_LIMIT
        if self._pool_most < limit and any(each.pooled for each in takes):
            limit, over = self._pool_most, DropReason.HOLD_LIMIT
        return limit, over

    def _hold(self, talk: Talk, held: Held, data: Buffer, command: Send, now: float, out: list[Command]) -> None:
        """Keep a part, and pass the request on when it is complete."""
        held.body += data
        held.size += command.size
        self._held_bytes += command.size
        for each in held.takes:
            each.held_bytes += command.size * each.spec.copies
        # A chunked body is measured when it is complete; until then its framing may take as much again.
        most = held.limit if held.request.length is not None else held.limit * 2 + _SMALL
        fate: FilterReason | DropReason | None = None
        if len(held.body) > most:
            fate = held.over
        elif self._held_bytes > self._held_most:
            fate = DropReason.HOLD_LIMIT
        if fate is not None:
            self._let_go(talk, fate)
            talk.skips = [*talk.skips, *((each, fate) for each in held.takes)]
        elif command.flags & END:
            self._release(talk, held)
            whole = Send(command.flow, b"", held.size, held.flags | END, number=held.number)
            body = bytes(held.body)
            if held.request.length is None and len(unchunked(body)) > held.limit:
                self._refuse(talk, held.takes, held.over, held.size)
            else:
                self._pass_on(talk, held.request, held.takes, body, whole, now, out)

    def _release(self, talk: Talk, held: Held) -> None:
        """Stop holding a request."""
        talk.held = None
        self._held_bytes -= held.size
        for each in held.takes:
            each.held_bytes -= held.size * each.spec.copies
            each.held_requests -= each.spec.copies

    def _let_go(self, talk: Talk, fate: FilterReason | DropReason) -> None:
        """Give up a request that is held."""
        held = talk.held
        if held is not None:
            self._release(talk, held)
            for each in held.takes:
                each.settle(fate, held.size, 1)

    # --- passing on

    def _pass_on(
        self,
        talk: Talk,
        request: Request,
        takes: Sequence[Destination],
        body: Buffer,
        command: Send,
        now: float,
        out: list[Command],
    ) -> None:
        """Redact, call the hook, rewrite; `body` is the part that is there, which is all of it if it was held."""
        if self._redactor is not None or self._hook is not None:
            changed: tuple[Request, Buffer] | Fate = (request, body)
            if self._redactor is not None:
                changed = self._redact(self._redactor, request, body)
            if self._hook is not None and isinstance(changed, tuple):
                changed = self._call_hook(self._hook, talk, *changed, takes)
            if not isinstance(changed, tuple):
                self._refuse(talk, takes, changed, command.size)
                return
            request, body = changed
        sends: list[int] = []
        for each in takes:
            head = request.head
            flags = command.flags
            if each.rewrite is not None:
                rewritten = each.rewrite(request, talk.flow, now + self._epoch)
                if rewritten is None:
                    self._refuse(talk, [each], DropReason.REWRITE, command.size)
                    continue
                head = rewritten
            if each.changes_method or self._hook is not None:
                flags = flags & ~NO_BODY | (NO_BODY if head.startswith(b"HEAD ") else 0)
            if each.pooled:
                head, flags = persistent(head, flags)
            data = b"".join((head, body)) if body else head
            if each.pooled:
                self._to_pool(each, talk, data, command.size, flags, out)
                continue
            for target in each.targets:
                if target not in talk.opened:
                    talk.opened.add(target)
                    out.append(Open(talk.flow, True, talk.key, target))
                out.append(Send(talk.flow, data, command.size, flags, target, command.number))
            sends.extend(each.targets)
        talk.sends = sends

    def _refuse(self, talk: Talk, takes: Sequence[Destination], fate: Fate, size: int) -> None:
        """Do not send the request, nor its later parts, to these shadows after all."""
        for each in takes:
            each.settle(fate, size, 1)
        talk.skips = [*talk.skips, *((each, fate) for each in takes)]

    def _to_pool(self, each: Destination, talk: Talk, data: bytes, size: int, flags: int, out: list[Command]) -> None:
        """Send a complete request on a shared connection, always the same one for one production connection."""
        lane = -1 - talk.flow % each.pooled
        for target in each.targets:
            if (target, lane) not in self._pools:
                self._pools.add((target, lane))
                out.append(Open(lane, True, b"", target))
            out.append(Send(lane, data, size, flags | END, target))

    def _redact(self, redactor: Redactor, request: Request, body: Buffer) -> tuple[Request, Buffer] | Fate:
        head = redactor.head(request)
        if not REQUEST_LINE.match(head):  # a pattern removed too much of the path
            return DropReason.UNREDACTED
        if redactor.reads_bodies and request.length != 0:
            plain = unchunked(bytes(body)) if request.length is None else bytes(body)
            found = redactor.body(request, plain)
            if found is None:
                return DropReason.UNREDACTED
            head, body = framed(head, len(found)), found
        return Request(head, request.key), body

    def _call_hook(
        self, hook: HookFunction, talk: Talk, request: Request, body: Buffer, takes: Sequence[Destination]
    ) -> tuple[Request, Buffer] | Fate:
        shown: bytes | None = None
        if self._hook_spec is not None and self._hook_spec.body:
            shown = unchunked(bytes(body)) if request.length is None else bytes(body)
        try:
            changed = hook(to_hook(request, talk.flow, shown))
            if changed is None:
                return FilterReason.HOOK
            found = from_hook(changed, request, shown)
        except BaseException:  # the tap goes on whatever a user's function does (SystemExit is no Exception)
            found = None
        if found is None:
            for each in takes:
                each.ledger.events["hook_errors"] += 1
            return DropReason.HOOK_ERROR
        head, changed_body = found
        if changed_body is not None and (changed_body != shown or request.length is None):
            head, body = framed(head, len(changed_body)), changed_body
        return Request(head, request.key), body
