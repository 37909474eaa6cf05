# SPDX-License-Identifier: Apache-2.0
"""A worker's loop: ring, commands of the supervisor, the shadows' sockets, time-outs.

It sleeps only in epoll and in the batching pause `HOLD`.
"""

from __future__ import annotations

import base64
import math
import os
import resource
import socket
import time
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, Final

from tapmirror import handover, privsep
from tapmirror.events import Command, DropReason, FilterReason
from tapmirror.ledger import Account, Ledger, View, added, times, total
from tapmirror.pipeline import Pipeline
from tapmirror.policy import Policy
from tapmirror.replay import Replay
from tapmirror.safety import plain
from tapmirror.source import Source
from tapmirror.source.live import LiveSource
from tapmirror.spec import Pacing, TapSpec
from tapmirror.tracer import Loop, Tracer
from tapmirror.worker.restraint import LATE, Restraint
from tapmirror.worker.setup import MESSAGE

if TYPE_CHECKING:  # what compares nothing does not load it
    from tapmirror.comparing import ComparingPipeline

BATCH: Final = 512
"""Most records between two looks at the shadow's sockets and the supervisor's commands: a few milliseconds of work."""
BATCH_BYTES: Final = 1 << 18
"""The same in bytes of the capture.  At worst (tiny requests, chunks of one byte) each takes 0.3 us: a tenth of a
second in all."""
TOGETHER: Final = 64
"""Commands that are carried out together: in turns with reassembly and framing, either would find the processor's
caches full of the other's code, and the kernel's, each time.  Where responses are compared the two are not apart:
replay asks the pipeline for conversations."""
HOLD: Final = 0.0012
"""Pause in seconds after a batch while traffic is dense: one wake-up, which costs as much as three requests, then
serves several, and none is held much longer than a millisecond."""
FEW: Final = 1
"""Traffic is dense if the pause will bring this many records, judging by the last batch; with fewer, a pause costs more
than it saves."""
HELD_UP: Final = 0.5
"""Seconds between two iterations after which the sockets are looked at before anything is judged by the time.  A
process that is stopped and goes on (SIGCONT, a thawed cgroup) comes out of epoll_wait(2) without a look at them
(signal(7)), and would take for silence what has been answered meanwhile.  It is half of the shortest time-out
(`replay.backoff.UNANSWERED`)."""
TICK: Final = 0.1
"""Seconds between two looks at time-outs while something waits for one."""
IDLE_TICK: Final = 1.0
"""Seconds between two looks at time-outs while nothing waits for one."""
PIECES: Final = 16
"""Most pieces of a long message that are sent at a time, in half a millisecond.  A state of 14 MB has 1,700."""
PIECES_PAUSE: Final = 0.001
"""Seconds until the next pieces are sent."""


class Worker:
    """One tap's loop."""

    def __init__(
        self,
        spec: TapSpec,
        source: Source,
        replay: Replay,
        ledger: Ledger,
        policy: Policy | None = None,
        comparing: ComparingPipeline | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._spec = spec
        self._source = source
        self._replay = replay
        self._ledger = ledger
        self._policy = policy
        self._comparing = comparing
        self._pipeline = Pipeline(spec, ledger, policy, tracer=tracer) if comparing is None else comparing
        self._tracer = tracer
        self._loops = False
        """Whether what is sent comes back to production; then nothing more is read or sent, not even at the end."""
        self._paced = spec.pacing is Pacing.WAIT
        self._together = TOGETHER if comparing is None else 1
        self._stopping = False
        self._whole = False
        """Whether the last ledger should have the whole state of the comparison."""
        self._read = 0
        """How many records were read."""
        self._entered = 0
        """How many of them the ledger already has (`delay_records`)."""
        self._waited = 0.0
        """Sum of the seconds that records waited in the capture, as far as it is not in the ledger yet.  Each record
        counts as if it had waited as long as the first of its batch."""
        self._full = False
        """Whether the last batch was as large as allowed, or is not finished."""
        self._given_up = 0, 0
        """How many segments and bytes were captured and will not be read."""
        self._restraint = Restraint(BATCH, HOLD)
        self._control: socket.socket | None = None
        self._parcel: privsep.Parcel | None = None
        """The pieces of a long reply that still have to be sent to the supervisor."""
        self._memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self.sandbox: list[str] = []
        """Which of `seccomp` and `landlock` confine this process."""

    def serve(self, control: socket.socket) -> None:
        """Mirror until told to drain, or until the supervisor is gone."""
        self._control = control
        self._replay.watch(control.fileno(), self._on_control)
        self._replay.watch(self._source.fileno(), self._source.woken)
        self.run(time.monotonic)
        self._drain(time.monotonic)
        final = self.snapshot()
        if self._comparing is not None:
            self._comparing.shut()
            final["compare"] = self._comparing.brief(math.inf)
            if self._whole:
                final["comparison"] = self._comparing.state()
        self._reply({"final": final})
        self._hand_over_all()

    def take_over(self, past: dict[str, Any] | None, threshold: int) -> None:
        """Continue with the ledgers of a predecessor, if there was one, and with its share (`threshold`)."""
        shadows = (
            [] if self._policy is None else [(each.ledger, each.spec.copies) for each in self._policy.destinations]
        )
        handover.take_over(past, self._ledger, shadows, self._source.received)
        if past is not None:
            self._pipeline.drop_above(threshold, time.monotonic())

    def stop(self) -> None:
        """Leave the loop after the present iteration."""
        self._stopping = True

    def run(self, clock: Callable[[], float]) -> None:
        """The loop: ring, commands, shadow sockets, time-outs."""
        last_batch = 0.0
        next_tick = 0.0
        before = clock()
        while not self._stopping:
            now = clock()
            if now - before > HELD_UP:
                self._replay.run_once(0.0, clock)
            before = now
            count = 0 if self._loops else self._take(now)
            if now >= next_tick:
                if self._pipeline.rest and not self._loops:  # maybe for seconds
                    self._replay.expire(now)
                else:
                    next_tick = self._tick(now)
            if count:
                if (
                    not self._full
                    and count * HOLD >= FEW * (now - last_batch)
                    and not (self._paced and self._replay.behind)
                ):
                    self._replay.push()
                    time.sleep(HOLD)
                last_batch = now
            behind = self._pipeline.rest and not self._loops
            wait = 0.0 if behind else max(0.0, next_tick - now)
            if self._parcel is not None:
                self._hand_over()
                wait = min(wait, PIECES_PAUSE)
            # If something came meanwhile, the source is readable, and this returns at once.
            self._replay.run_once(wait, clock)

    def snapshot(self) -> dict[str, Any]:
        """The ledger and what the process costs, as plain data."""
        counters = self._source.counters()
        received_segments, received_bytes = map(sum, zip(self._source.received, self._given_up, strict=True))
        in_segments, in_bytes = self._pipeline.held()
        for account, index in ((self._ledger.segments, 0), (self._ledger.bytes, 1)):
            _enter(account, counters, index)
        for name in ("syn", "syn_ack", "accepted", "bare_ack", "egress", "control_lost", "loop_syn"):
            self._ledger.events[f"kernel_{name}"] = getattr(counters, name)[0]
        if self._comparing is not None:
            self._ledger.events["kernel_answers"] = counters.responses[0]
            self._ledger.events["kernel_answers_lost"] = counters.responses_lost[0]
        self._enter_delay()
        captured = counters.emitted[1] - received_bytes + in_bytes
        shadows = self._shadows(captured)
        whole = total(shadows)
        events = self._ledger.events if self._policy is None else self._ledger.events + whole.events
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "segments": self._ledger.segments.snapshot(counters.emitted[0] - received_segments + in_segments),
            "bytes": whole.bytes.snapshot(whole.held_bytes),
            "requests": whole.requests.snapshot(whole.held_requests),
            "events": dict(sorted(events.items())),
            "answers": dict(sorted(whole.responses.items())),
            "shadows": {
                shadow.label: each.snapshot() for shadow, each in zip(self._spec.shadows, shadows, strict=True)
            },
            "flows": len(self._pipeline.flows),
            **({} if self._comparing is None else {"compare": self._comparing.brief(time.monotonic())}),
            "ring": {"bytes": self._spec.limits.ring_bytes, "fill": round(self._source.fill(), 4)},
            "worker": {
                "pid": os.getpid(),
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "rss_kb": self._rss_kb(),
                "sandbox": self.sandbox,
            },
        }

    def handed_over(self) -> dict[str, Any]:
        """What a successor needs; call it right after `snapshot`."""
        shadows = [] if self._policy is None else [each.ledger for each in self._policy.destinations]
        return handover.saved(self._ledger, shadows)

    def _enter_delay(self) -> None:
        """Add the records read since the last call, and how long they had waited, to the ledger."""
        whole = int(self._waited * 1e6)
        self._ledger.events["delay_records"] += self._read - self._entered
        self._ledger.events["delay_us"] += whole
        self._entered = self._read
        self._waited -= whole / 1e6

    def _rss_kb(self) -> int:
        return int(os.pread(self._memory, 100, 0).split()[1]) * resource.getpagesize() // 1024

    def _shadows(self, captured: int) -> list[View]:
        """The account of each shadow, of which `captured` bytes are in flight before policy."""
        if self._policy is None:
            queued, requests = self._replay.held(0)
            common = self._ledger
            return [
                View(
                    common.bytes,
                    common.requests,
                    common.events,
                    common.responses,
                    common.latency,
                    captured + queued,
                    requests,
                )
            ]
        views = []
        for each in self._policy.destinations:
            copies = each.spec.copies
            held = [self._replay.held(target) for target in each.targets]
            views.append(
                View(
                    added(times(self._ledger.bytes, copies), each.ledger.bytes),
                    added(times(self._ledger.requests, copies), each.ledger.requests),
                    each.ledger.events,
                    each.ledger.responses,
                    each.ledger.latency,
                    captured * copies + each.held_bytes + sum(size for size, _ in held),
                    each.held_requests + sum(requests for _, requests in held),
                )
            )
        return views

    def _take(self, now: float) -> int:
        """Read and process up to one batch.  Returns how many records it had; an unfinished rest counts as one."""
        if self._pipeline.rest:
            self._replay.execute(self._pipeline.work(now), now)
            self._full = True
            count = 1
        else:
            count = self._read_batch(now)
        if self._tracer is not None and self._tracer.loop is not None:
            self._stand_still(self._tracer.loop)
        requests = self._pipeline.flows.ack_requests
        if requests:
            for key, wanted in requests:
                self._source.want_ack(key, wanted)
            requests.clear()
        if self._comparing is not None:
            self._ask_for_responses(self._comparing)
        return count

    def _read_batch(self, now: float) -> int:
        rest = self._pipeline.rest
        feed = self._pipeline.feed
        carry_out, together = self._replay.execute, self._together
        commands: list[Command] = []
        count = 0

        def execute() -> None:
            carry_out(commands, now)
            commands.clear()

        age = self._source.age(now)
        limit = BATCH
        if age > LATE or self._full:
            limit = self._restraint.limit(now, age, self._read, time.thread_time(), self._source.fill())
        for segment in self._source.read(limit, BATCH_BYTES, execute):
            commands += feed(segment, now)
            count += 1
            if len(commands) >= together or rest:
                execute()
                if rest:
                    break
        self._full = count == BATCH or self._source.cut or bool(rest)
        if count:
            self._read += count
            self._waited += max(0.0, age) * count  # below 0: it was captured after `now`
        return count

    def _stand_still(self, loop: Loop) -> None:
        """Tell the supervisor that the shadow leads back to production.  It ends the tap; until then nothing more is
        read.
        """
        if not self._loops:
            self._loops = True
            self._replay.unwatch(self._source.fileno())
            self._reply({"loop": {"target": loop.target, "client": str(plain(str(IPv6Address(loop.client))))}})

    def _ask_for_responses(self, comparing: ComparingPipeline) -> None:
        """Ask the source to capture those responses of production that will be compared."""
        if comparing.response_wants:
            for key, wanted in comparing.response_wants:
                self._source.keep_responses(key, wanted)
            comparing.response_wants.clear()
        if comparing.window is not None:
            self._source.want_responses(*comparing.window)
            comparing.opened(time.monotonic_ns())

    def _tick(self, now: float) -> float:
        """Act on time-outs; returns when to call it again."""
        self._replay.execute(self._pipeline.expire(now), now)
        self._replay.expire(now)
        deadline = self._replay.next_deadline()
        soon = now + TICK
        if self._pipeline.flows.impatient or (deadline is not None and deadline <= soon):
            return soon
        return now + IDLE_TICK if deadline is None else min(deadline, now + IDLE_TICK)

    def _drain(self, clock: Callable[[], float]) -> None:
        """Process what was captured, and send what is queued, within `Limits.drain_time`.

        If the shadow leads back to production, nothing more is sent.
        """
        self._source.stop()
        end = clock() + self._spec.limits.drain_time
        while not self._loops and (self._take(clock()) or not self._source.empty()) and clock() < end:
            self._replay.run_once(0.0, clock)
        self._replay.execute(self._pipeline.close(clock()), clock())
        while not self._loops and not self._replay.idle() and (now := clock()) < end:
            self._replay.expire(now)
            self._replay.run_once(min(TICK, end - now), clock)
        self._replay.close(DropReason.SHUTDOWN)
        self._give_up_unread()

    def _give_up_unread(self) -> None:
        """Stop reading, and drop what was captured and could not be read in time."""
        self._source.discard()
        captured, received = self._source.counters().emitted, self._source.received
        segments, size = self._given_up = captured[0] - received[0], captured[1] - received[1]
        if segments:
            self._ledger.drop(DropReason.SHUTDOWN, size, segments)

    def _on_control(self) -> None:
        """Handle a message of the supervisor, or the end of its socket."""
        assert self._control is not None
        try:
            message, _ = privsep.receive(self._control, MESSAGE)
        except (OSError, EOFError):
            self._stopping = True
            return
        operation = message.get("op")
        if operation == "snapshot":
            self._reply({"snapshot": self.snapshot(), "handover": self.handed_over()})
        elif operation == "compare":
            self._reply({"compare": {} if self._comparing is None else self._comparing.state()})
        elif operation == "share":
            self._set_share(int(message["threshold"]), message.get("shadows", []), message.get("percent"))
            self._reply({"share": {}})
        elif operation == "addresses":
            self._readdress(message)
            self._reply({"addresses": {}})
        else:
            self._whole = bool(message.get("comparison"))
            self._stopping = True

    def _set_share(self, threshold: int, thresholds: list[int], percent: float | None) -> None:
        """Mirror only flows whose hash is below `threshold`, and to each shadow only those below its own threshold.

        `percent`: the tap's share, if it is not a share of flows.
        """
        self._source.set_threshold(threshold)
        if self._policy is not None:
            self._policy.set_thresholds(thresholds)
            if percent is not None:
                self._policy.set_percent(percent)
        now = time.monotonic()
        self._replay.execute(self._pipeline.drop_above(threshold, now), now)

    def _readdress(self, message: dict[str, Any]) -> None:
        """Send to a shadow's new addresses, and exclude the present end points of all shadows from the capture."""
        copies = [shadow.copies for shadow in self._spec.shadows]
        first = sum(copies[: message["shadow"]])
        addresses = [(int(family), tuple(address)) for family, address in message["addresses"]]
        self._replay.readdress(range(first, first + copies[message["shadow"]]), addresses)
        if isinstance(self._source, LiveSource):
            self._source.exclude([(base64.b64decode(address), port) for address, port in message["excluded"]])

    def _reply(self, message: dict[str, Any]) -> None:
        assert self._control is not None
        if self._comparing is not None:  # with samples it may be long
            self._hand_over_all()
            self._parcel = privsep.Parcel(message)
            self._hand_over()
            return
        try:
            privsep.send(self._control, message)
        except OSError:
            self._stopping = True

    def _hand_over(self) -> None:
        """Send more pieces of a long reply, without waiting for the supervisor to read them."""
        assert self._control is not None and self._parcel is not None
        try:
            done = self._parcel.send(self._control, PIECES)
        except OSError:
            self._stopping = done = True
        if done:
            self._parcel = None

    def _hand_over_all(self) -> None:
        while self._parcel is not None:
            self._hand_over()
            time.sleep(PIECES_PAUSE)


def _enter(account: Account, counters: Any, index: int) -> None:
    """Enter the capture's totals into an account: those of records (`index` 0), or of bytes (1)."""
    account.seen = counters.seen[index]
    account.sampled_out = counters.sampled_out[index]
    account.filtered[FilterReason.LOOP] = counters.loop[index]
    account.filtered[FilterReason.CLIENT] = counters.client[index]
    account.dropped[DropReason.RING_FULL] = counters.ring_full[index]
    account.dropped[DropReason.FRAGMENT] = counters.fragment[index]
