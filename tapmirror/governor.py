# SPDX-License-Identifier: Apache-2.0
"""How much of what the spec asks for is captured: a closed loop over what the tap costs and how the shadows are.

Theory of operation
-------------------
Once a second the governor takes a `Measure` and answers with a share, 0 to 1, by which the kernel's sampling is
multiplied.  Whole connections leave, and those of a smaller share are among those of a larger one.

*Throttle.*  Each load (CPU, ring, ...) is the measured value divided by the allowed one.  If a load is above 1, the
share is multiplied by a factor at once (as TCP does with its window, RFC 5681, 3.1).  Then nothing changes until the
measurement can have followed; the averages of PSI take ten seconds.  The share rises only after all loads have been
below `CALM` for a while: fast up to near where it failed last, and slowly from there (the idea of CUBIC, RFC 9438), but
never to where a load that is proportional to the share (CPU, bandwidth) would be above `AIM`.  Between `CALM` and 1
nothing moves.  After a rise that failed, the next one waits twice as long, so the share does not oscillate.

*Breaker.*  Each shadow has one.  It is `CLOSED` while the shadow is well.  If connections fail while nothing is sent,
or too many responses are bad, it becomes `OPEN`, and nothing is captured for this shadow.  After a pause it is
`HALF_OPEN`: a few connections try, and twice as many each second if they get through, or if there was nothing to try
with.  A failure opens it again, for twice as long.

While new connections are tried, bytes that are sent on older ones prove nothing: a server that accepts no new
connections may still serve the old ones.  Bytes that are sent prove nothing either if an address accepts connections
and breaks all of them off without a byte, as a forwarder without a backend does.  Such connections count as failed, and
only responses prove that the shadow is back.

The tap captures what the shadow that can take most gets, and each of the others gets what it can take.  So a shadow
that is down costs the others nothing, and a slow one gets less.

*All taps.*  The taps of a daemon share one throttle (`Overall`), which is fed with the sums of their measurements.
Each tap's share is multiplied by it.  It waits longer for the measurements to follow, because each tap needs up to a
second to measure, and to act.

Pure: measurements and `now` (monotonic seconds) in, share and reason out.
"""

from __future__ import annotations

import enum
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from tapmirror.histogram import quantile
from tapmirror.ledger import CONNECT_FAILED, CONNECT_SILENT, SENT_AGAIN_BYTES, UNANSWERED_ALIKE, waits, worst_wait
from tapmirror.spec.budget import Budget
from tapmirror.spec.settings import AllTaps

FLOOR: Final = 0.01
"""The least share that a load leaves: without any traffic nothing would show that the load is gone."""
AIM: Final = 0.85
"""Part of its limit to which a load that is proportional to the share is brought."""
CALM: Final = 0.8
"""Part of its limit below which a load lets the share rise."""
NEAR: Final = 0.8
"""The share rises fast up to this part of the share that failed last."""
FAST: Final = 1.15
"""Growth factor a second: from a half to the whole in five seconds."""
SLOW: Final = 1.02
"""Growth factor a second near the share that failed last."""
HOLD: Final = 5.0
"""Seconds of calm before the share rises."""
HOLD_MOST: Final = 120.0
"""Most seconds of calm before the share rises; each rise that failed makes them more."""
BEHIND: Final = 3
"""Delay counts after this many measures in a row: a worker that was held up once catches up, and loses nothing."""
SHRINKS: Final = 0.8
"""If the delay is below this part of the last one, the worker is catching up."""
SPARED: Final = 0.1
"""Cores that the workers of a tap may use even if the host is short of CPU: having them back would help nobody, and
pressure only says that something waits, which may be a batch job (`Budget.host_cpu`)."""
FORGIVEN: Final = 60.0
"""Seconds at the full share after which earlier failures do not count any more."""

UNDECIDED: Final = 60.0
"""Seconds after which an attempt that neither failed nor succeeded does not count any more: its client left meanwhile,
or its worker died.  Twelve times the default of `connect_time`, after which each attempt has failed."""
PROBE: Final = 0.05
"""Share of the connections with which a shadow is first tried."""
PROBE_GROWTH: Final = 2.0
"""Factor by which a probe's share grows each second: all connections after five."""
RETRY: Final = 5.0
"""Seconds of the first pause: replay's own longest back-off (`Limits.backoff_max`)."""
DOWN_TIME: Final = 3.0
"""Seconds for which connections must fail, and nothing be sent, before a shadow counts as down: a restart of a
server's process is shorter."""
WINDOW: Final = 10.0
"""Length of the window in seconds: the responses within it are judged."""
ENOUGH: Final = 20
"""Least responses in the window for their share of errors to count."""
SILENT_TRIALS: Final = 16
"""A shadow counts as down after this many connections in a row that it broke off without a byte: as many as make the
worker try only one in five seconds.  A server may do this to clients that it rejects (nginx's 444), at times to most of
them."""
ENOUGH_HALF_OPEN: Final = 5
ENOUGH_TIMES: Final = 5
"""Least timed responses in the window for their median to count."""


SILENCE: Final = "it breaks all connections off without a byte"
"""In words, what a port forwarder without a backend does."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one shadow since the last measure; counts are of that time."""

    responses: int = 0
    errors: int = 0
    """Responses of `responses` that were 5xx, not HTTP, or missing when the connection ended."""
    alike: int = 0
    """Requests that production left unanswered too, which prove nothing; this may be known later than `errors`."""
    broke_off: int = 0
    """Connections that it broke off without a byte."""
    connects: int = 0
    """Attempts to connect that began."""
    connect_failures: int = 0
    """Attempts to connect that failed, whenever they began; those of `silent` are among them."""
    silent: int = 0
    """Connections that were broken off without a byte, by an address that does this with all."""
    connected: int = 0
    """Attempts to connect that succeeded, whenever they began."""
    answered: int = 0
    """Responses that came, with any status."""
    sent_bytes: int = 0
    times: Mapping[str, int] = {}
    """Responses that were timed, by the buckets of `histogram`."""


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured since the last time."""

    ring_fill: float = 0.0
    """How full the ring of the worst worker is, 0 to 1."""
    delay: float = 0.0
    """Mean time in seconds for which records had waited in the ring when they were read; that of the worst worker."""
    cpu_share: float = 0.0
    """CPU seconds a second (cores) of all workers."""
    rss_bytes: int = 0
    workers: int = 1
    shadow_bytes: float = 0.0
    """Bytes a second to all shadows."""
    host_cpu: float = 0.0
    """Percent of the last ten seconds in which something waited for CPU (PSI, `some avg10`)."""
    host_memory: float = 0.0
    shadows: Mapping[str, Health] = {}


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How much should be captured now, and why not everything.  The reason changes only with its cause."""

    share: float
    """0 to 1, of what the spec asks for."""
    reason: str
    shadows: Mapping[str, float] = {}
    """With several shadows, the shares of those that get less."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One load on the host, a link or a shadow."""

    quotient: float
    """The measured value divided by the allowed one."""
    text: str
    settle: float
    """Seconds after a change of the share until the measurement has followed."""
    factor: float
    """Factor for the share if the load is too high.  For a proportional load `AIM` decides, but not below this."""
    proportional: bool = False


class Throttle:
    """Lowers and raises one share, by loads."""

    __slots__ = ("_calm_since", "_failed", "_full_since", "_hold", "_last", "_rose", "_settled", "reason", "share")

    def __init__(self, now: float) -> None:
        self.share = 1.0
        self.reason = ""
        self._last = now
        self._settled = now
        self._calm_since: float | None = None
        self._full_since: float | None = now
        self._hold = HOLD
        self._failed = 1.0
        """The last share that was too much."""
        self._rose = False
        """Whether the share rose since it was lowered last."""

    def update(self, loads: Iterable[Load], now: float) -> float:
        """The share for now on."""
        loads = list(loads)
        passed = max(0.0, min(1.0, now - self._last))  # only one step, even after the host was suspended
        self._last = now
        over = [load for load in loads if load.quotient > 1]
        if over:
            self._calm_since = None
            if now >= self._settled:
                self._lower(over, now)
        elif self.share < 1 and all(load.quotient < CALM for load in loads):
            if self._calm_since is None:
                self._calm_since = now
            if now >= max(self._settled, self._calm_since + self._hold):
                self._rise(loads, now, passed)
        else:
            self._calm_since = None
        if self._full_since is not None and now - self._full_since >= FORGIVEN:
            self._hold, self._rose = HOLD, False
        return self.share

    def _lower(self, over: list[Load], now: float) -> None:
        if self._rose:
            self._hold = min(HOLD_MOST, self._hold * 2)
        self._rose = False
        self._failed = self.share
        self._full_since = None
        self._settled = now + max(load.settle for load in over)
        factors = [max(load.factor, AIM / load.quotient) if load.proportional else load.factor for load in over]
        self.share = max(min(FLOOR, self.share), self.share * min(factors))
        self.reason = max(over, key=lambda load: load.quotient).text

    def _rise(self, loads: list[Load], now: float, passed: float) -> None:
        growth = (FAST if self.share < self._failed * NEAR else SLOW) ** passed
        room = min((AIM / load.quotient for load in loads if load.proportional and load.quotient > 0), default=growth)
        self.share = min(1.0, self.share * max(1.0, min(growth, room)))
        self._rose = True
        if self.share == 1.0:
            self._full_since = now
            self.reason = ""


class State(enum.Enum):
    """State of a breaker: `closed` lets everything through, `open` nothing, `half-open` a few connections to try."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Reach:
    """Tells whether a shadow is reached.  One that is down refuses connections, or breaks all off without a byte."""

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = False
        """Whether the shadow breaks connections off without a byte, so that sent bytes prove nothing."""

    def through(self, health: Health) -> bool:
        """Whether the shadow was reached since the last measure.

        It was if it answered or, unless it breaks all connections off, if bytes were sent.
        """
        if health.answered:
            self._silent = False
        elif health.connect_failures:
            self._silent = health.silent > 0
        return (health.answered if self._silent else health.sent_bytes) > 0

    @property
    def failure(self) -> str:
        """How connections to the shadow fail, in words."""
        return SILENCE if self._silent else "it cannot be connected to"


class Breaker:
    """Decides whether a shadow is left alone."""

    __slots__ = (
        "_asked",
        "_by_responses",
        "_closed_at",
        "_connected",
        "_down_since",
        "_errors",
        "_last",
        "_longest",
        "_pause",
        "_proven",
        "_reach",
        "_silent",
        "_tried",
        "_until",
        "_window",
        "cause",
        "reached",
        "reason",
        "share",
        "state",
    )

    def __init__(self, budget: Budget, now: float) -> None:
        self.state = State.CLOSED
        self.share = 1.0
        self.reason = ""
        """Why the share is below 1; empty: it is not."""
        self.cause = ""
        """What is wrong with the shadow; empty: it is well, or nothing is known."""
        self.reached = False
        """Whether the shadow was ever reached."""
        self._errors = budget.errors
        self._longest = budget.retry
        self._pause = min(RETRY, budget.retry)
        self._until = now
        self._closed_at = now
        self._last = now
        self._reach = Reach()
        self._down_since: float | None = None
        self._silent = 0
        """How many connections in a row it broke off without a byte, since it became half-open or was reached."""
        self._window: deque[tuple[float, Health]] = deque()
        self._by_responses = False
        """Whether it was opened by bad responses, and not by failed connections."""
        self._tried = False
        """Whether something was sent, or an attempt to connect was made, since it became half-open."""
        self._proven = False
        """Whether something got through since it became half-open: an attempt that hangs has not failed yet."""
        self._asked = -math.inf
        """When a connection was last tried since it became half-open; -inf: none was."""
        self._connected = False
        """Whether a connection was opened since it became half-open: bytes on older ones say nothing about new ones."""

    def update(self, health: Health, now: float) -> float:
        """The share for now on."""
        passed = max(0.0, min(1.0, now - self._last))
        self._last = now
        if self.state is State.OPEN:
            if now >= self._until:
                self._try(now)
            return self.share
        if health.connects > 0:
            self._asked = now
        self._connected = self._connected or health.connected > 0
        through = self._gets_through(health, now)
        cause = self._cause(health, through, now)
        if cause:
            self._open(cause, now)
        elif self.state is State.HALF_OPEN:
            self._tried = self._tried or health.connects > 0 or health.sent_bytes > 0
            good = health.responses > health.errors if self._by_responses else through
            self._proven = self._proven or good
            if self._proven or not self._tried:
                self.share = min(1.0, self.share * PROBE_GROWTH**passed)
            if self.share == 1.0:
                self.state, self.reason, self.cause, self._closed_at = State.CLOSED, "", "", now
        elif now - self._closed_at >= FORGIVEN:
            self._pause = min(RETRY, self._longest)
        return self.share

    def _cause(self, health: Health, through: bool, now: float) -> str:
        """Why the shadow should be left alone; empty: it is well."""
        if through:
            self.reached = True
            self._down_since = None
            self._silent = 0
        elif health.connect_failures:
            if self._down_since is None:
                self._down_since = now
            self._silent += health.silent
            doubtful = health.silent == health.connect_failures and self._silent < SILENT_TRIALS
            if not doubtful and (self.state is State.HALF_OPEN or now - self._down_since >= DOWN_TIME):
                self._by_responses = False
                return self._reach.failure
        self._window.append((now, health))
        while self._window[0][0] <= now - WINDOW:
            self._window.popleft()
        window = [health for _, health in self._window]
        alike = sum(health.alike for health in window)
        responses = sum(health.responses for health in window) - alike
        errors = sum(health.errors for health in window) - alike
        enough = ENOUGH_HALF_OPEN if self.state is State.HALF_OPEN else ENOUGH
        if responses >= enough and errors > self._errors * responses:
            self._by_responses = True
            if (
                not any(health.answered for health in window)
                and 2 * sum(health.broke_off for health in window) > errors
            ):
                return SILENCE
            return f"{errors / responses:.0%} of its responses are errors"
        return ""

    def _gets_through(self, health: Health, now: float) -> bool:
        """Whether the shadow was reached.  While it is half-open, connections from before do not count."""
        old = self.state is State.HALF_OPEN and now - self._asked < UNDECIDED and not self._connected
        return self._reach.through(health) and not old

    def _open(self, cause: str, now: float) -> None:
        self._until = now + self._pause
        self.cause = cause
        self.reason = f"{cause}; tried again after {self._pause:g} s"
        self._pause = min(self._longest, self._pause * 2)
        self.state, self.share = State.OPEN, 0.0

    def _try(self, now: float) -> None:
        self.state, self.share = State.HALF_OPEN, PROBE
        self.reason = "it is tried again"
        self._down_since = None
        self._silent = 0
        self._window.clear()
        self._tried = self._proven = self._connected = False
        self._asked = -math.inf


class _Shadow:
    """How much one shadow can take."""

    __slots__ = ("_latency", "_times", "breaker", "throttle")

    def __init__(self, budget: Budget, now: float) -> None:
        self.breaker = Breaker(budget, now)
        self.throttle = Throttle(now)
        self._latency = budget.latency
        self._times: deque[tuple[float, Mapping[str, int]]] = deque()

    def update(self, health: Health, now: float) -> tuple[float, str]:
        """The shadow's share, and the reason for it."""
        slow = self._median(health, now) / self._latency
        text = f"half of its responses take more than {self._latency:g} s"
        share = self.throttle.update([Load(quotient=slow, text=text, settle=WINDOW, factor=0.5)], now)
        return min((self.breaker.update(health, now), self.breaker.reason), (share, self.throttle.reason))

    @property
    def cause(self) -> str:
        """What is wrong with the shadow; empty: nothing."""
        return self.breaker.cause or self.throttle.reason

    def _median(self, health: Health, now: float) -> float:
        """Median time in seconds of the responses in the window; 0: too few were timed."""
        self._times.append((now, health.times))
        while self._times[0][0] <= now - WINDOW:
            self._times.popleft()
        buckets: Counter[str] = Counter()
        for _, times in self._times:
            buckets.update(times)
        return quantile(buckets, 0.5) or 0.0 if buckets.total() >= ENOUGH_TIMES else 0.0


class Governor:
    """The control loop of one tap."""

    def __init__(self, budget: Budget, now: float) -> None:
        self._budget = budget
        self._throttle = Throttle(now)
        self._shadows: dict[str, _Shadow] = {}
        self._delay = 0.0
        self._behind = 0

    def observe(self, measure: Measure, now: float) -> Decision:
        """What to do after this measure; call it about once a second."""
        share, reason = self._throttle.update(self._loads(measure), now), self._throttle.reason
        # Forget shadows that the tap no longer has, as it may have been changed.
        self._shadows = {name: self._shadows.get(name) or _Shadow(self._budget, now) for name in measure.shadows}
        wanted = {name: self._shadows[name].update(health, now) for name, health in measure.shadows.items()}
        if wanted:
            name, (most, why) = max(wanted.items(), key=lambda item: item[1][0])
            if most < share:
                share, reason = most, f"shadow {name}: {why}"
        shadows = {name: round(most, 4) for name, (most, _) in wanted.items() if most < share}
        return Decision(share=round(share, 4), reason=reason if share < 1 else "", shadows=shadows)

    def breakers(self) -> dict[str, State]:
        """The state of each shadow's breaker."""
        return {name: shadow.breaker.state for name, shadow in self._shadows.items()}

    def causes(self, unreached: Mapping[str, str]) -> dict[str, str]:
        """What is wrong with each shadow, even if this does not lower the share; empty: nothing.

        `unreached`: why some could not be reached at the start, which counts until they are reached.
        """
        found = {name: shadow.cause for name, shadow in self._shadows.items()}
        for name, why in unreached.items():
            if not (found.get(name) or (name in found and self._shadows[name].breaker.reached)):
                found[name] = f"it is down, or was at the start ({why})"
        return found

    def _loads(self, measure: Measure) -> list[Load]:
        budget = self._budget
        loads = _costs(measure, budget.cpu, budget.memory_of(measure.workers), budget.bandwidth, "", 2.0)
        loads += [
            self._late(measure.delay),
            Load(
                quotient=measure.ring_fill / budget.ring,
                text=f"the capture ring is {measure.ring_fill:.0%} full",
                settle=2.0,
                factor=0.5,
            ),
            _host_cpu(measure, budget.host_cpu),
            Load(
                quotient=0.0 if budget.host_memory >= 100 else measure.host_memory / budget.host_memory,
                text=f"this host is short of memory (pressure {measure.host_memory:.0f} %)",
                settle=10.0,
                factor=0.6,
            ),
        ]
        return loads

    def _late(self, delay: float) -> Load:
        """The load by the workers' delay: too high only if it lasts.  While they catch up, nothing changes."""
        quotient = delay / self._budget.delay
        self._behind = self._behind + 1 if quotient > 1 and delay > self._delay * SHRINKS else 0
        self._delay = delay
        text = f"the workers get too little CPU: they are {delay:.2f} s behind"
        return Load(
            quotient=quotient if self._behind >= BEHIND else min(quotient, 1.0), text=text, settle=4.0, factor=0.5
        )


def _host_cpu(measure: Measure, limit: float) -> Load:
    """The load by the host's lack of CPU: above the limit, the CPU that the workers take counts, down to `SPARED`."""
    pressure = 0.0 if limit >= 100 else measure.host_cpu / limit
    text = f"this host is short of CPU (pressure {measure.host_cpu:.0f} %): the workers may use {SPARED:g} of a core"
    if pressure <= 1:
        return Load(quotient=pressure, text=text, settle=10.0, factor=0.6)
    return Load(quotient=measure.cpu_share / SPARED, text=text, settle=2.0, factor=0.25, proportional=True)


class Overall:
    """The control loop over all taps of a daemon: one share, by which each tap's share is multiplied."""

    def __init__(self, budget: AllTaps, now: float) -> None:
        self.budget = budget
        """The limits; may be replaced while it runs."""
        self._throttle = Throttle(now)

    def observe(self, measures: Iterable[Measure], now: float) -> Decision:
        """What to do after the last measure of each tap; call it about once a second."""
        budget = self.budget
        loads = _costs(together(measures), budget.cpu, budget.memory, budget.bandwidth, " of all taps", 4.0)
        share = self._throttle.update(loads, now)
        return Decision(share=round(share, 4), reason=f"all taps: {self._throttle.reason}" if share < 1 else "")


def together(measures: Iterable[Measure]) -> Measure:
    """The costs of several taps added up, as one measure."""
    each = list(measures)
    return Measure(
        cpu_share=sum(one.cpu_share for one in each),
        rss_bytes=sum(one.rss_bytes for one in each),
        shadow_bytes=sum(one.shadow_bytes for one in each),
    )


def _costs(
    measure: Measure, cpu: float | None, memory: int | None, bandwidth: float | None, whose: str, settle: float
) -> list[Load]:
    """The loads that workers put on this host and its links; `settle` (as in `Load`) is for those that can be
    measured at once.
    """
    loads = []
    if cpu is not None:
        loads.append(
            Load(
                quotient=measure.cpu_share / cpu,
                text=f"the workers{whose} use {measure.cpu_share:.2f} cores; the budget is {cpu:g}",
                settle=settle,
                factor=0.25,
                proportional=True,
            )
        )
    if memory is not None:
        loads.append(
            Load(
                quotient=measure.rss_bytes / memory,
                text=f"the workers{whose} hold {measure.rss_bytes >> 20} MiB; the budget is {memory >> 20} MiB",
                settle=10.0,
                factor=0.7,
            )
        )
    if bandwidth is not None:
        loads.append(
            Load(
                quotient=measure.shadow_bytes / bandwidth,
                text=f"{measure.shadow_bytes:,.0f} bytes/s{whose} go out; the budget is {bandwidth:,.0f}",
                settle=settle,
                factor=0.25,
                proportional=True,
            )
        )
    return loads


def measure(
    before: Mapping[str, Any], after: Mapping[str, Any], seconds: float, host_cpu: float, host_memory: float
) -> Measure:
    """The measure from two snapshots of a tap, `seconds` apart; `host_…` are the host's pressure."""
    shadows = {name: health(before["shadows"].get(name), now) for name, now in after["shadows"].items()}
    cpu = after["worker"]["cpu_s"] - before["worker"]["cpu_s"]
    return Measure(
        ring_fill=after.get("ring", {}).get("fill", 0.0),
        delay=worst_wait(waits(before), waits(after)),
        cpu_share=max(0.0, cpu) / seconds,  # it is lower than before if a worker was replaced
        rss_bytes=after["worker"]["rss_kb"] * 1024,
        workers=len(after.get("workers", ())) or 1,
        shadow_bytes=sum(health.sent_bytes for health in shadows.values()) / seconds,
        host_cpu=host_cpu,
        host_memory=host_memory,
        shadows=shadows,
    )


def health(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Health:
    """A shadow's health from two snapshots; `before` is None if this is the first one."""
    then = before or _NOTHING
    responses = _grown(then, after, "answers")
    past, buckets = then["latency"]["buckets"], after["latency"]["buckets"]
    return Health(
        responses=responses,
        errors=sum(_grew(then, after, "answers", kind) for kind in ERRORS),
        alike=_grew(then, after, "events", UNANSWERED_ALIKE),
        broke_off=_grew(then, after, "events", "shadow_broke_off"),
        connects=_grew(then, after, "events", "shadow_connects"),
        connected=_grew(then, after, "events", "shadow_connected"),
        connect_failures=sum(
            _grew(then, after, "events", kind) for kind in after["events"] if kind.startswith(CONNECT_FAILED)
        ),
        silent=_grew(then, after, "events", CONNECT_SILENT),
        sent_bytes=_grew(then, after, "bytes", "mirrored") + _grew(then, after, "events", SENT_AGAIN_BYTES),
        answered=responses - _grew(then, after, "answers", UNANSWERED),
        times={name: count - past.get(name, 0) for name, count in buckets.items() if count > past.get(name, 0)},
    )


UNANSWERED: Final = "unanswered"
ERRORS: Final = ("5xx", "garbage", UNANSWERED)
"""Classes of responses that are a shadow's errors."""
_NOTHING: Final[Mapping[str, Any]] = {"answers": {}, "events": {}, "bytes": {}, "latency": {"buckets": {}}}


def _grew(then: Mapping[str, Any], now: Mapping[str, Any], group: str, name: str) -> int:
    return max(0, int(now[group].get(name, 0)) - int(then[group].get(name, 0)))


def _grown(then: Mapping[str, Any], now: Mapping[str, Any], group: str) -> int:
    """By how much a whole group grew, without 1xx, which are not final responses."""
    return sum(_grew(then, now, group, name) for name in now[group] if name != "1xx")
