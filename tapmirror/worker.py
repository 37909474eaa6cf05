# SPDX-License-Identifier: Apache-2.0
"""The worker process: capture source, pipeline and replay in one loop, without privilege.

It is started by the supervisor as `python -m tapmirror.worker FD CONTRACT`, with one end of a socket
pair, and goes if its own `contract` is another one.  It imports what it needs, receives its set-up and its
descriptors, gives up every privilege, and only then looks at a byte of the network (`privsep`, `sandbox`).

Over the same socket the supervisor asks for the ledger (`snapshot`), tells of a change of the share (`share`) and
ends the tap (`drain`).  If the supervisor dies, the socket ends and the worker drains and goes.  If the worker dies,
another one takes its place over the same capture and goes on with its books (`succession`).

The loop never sleeps on anything but its epoll and the batching pause `HOLD`.
"""

from __future__ import annotations

import base64
import gc
import importlib
import math
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn

import msgspec

from tapmirror import contract, privsep, sandbox, stdio, succession
from tapmirror.admission import Admission
from tapmirror.compare import Comparison
from tapmirror.comparing import ComparingPipeline, answer_bytes, probes
from tapmirror.events import LOOP_DSCP, DropReason, FilterReason
from tapmirror.exchange import PROBE
from tapmirror.ledger import Account, Ledger, View, added, times, total
from tapmirror.packet import Decoder
from tapmirror.pipeline import Pipeline
from tapmirror.policy import HookRequest, Policy, is_needed
from tapmirror.policy.match import compile_text
from tapmirror.policy.samples import USUAL, SampleRedactor
from tapmirror.precedence import give_way
from tapmirror.replay import Reactor, Replay
from tapmirror.replay.hearing import Hearing
from tapmirror.replay.listener import Clock
from tapmirror.replay.ports import gentle_closes
from tapmirror.replay.tls import make_context
from tapmirror.source import Source
from tapmirror.source.live import BLOCK_BYTES, LiveSource
from tapmirror.source.ring import RingSource
from tapmirror.spec import Level, Pacing, TapSpec
from tapmirror.spec.clients import as_ranges, captured_clients

BATCH: Final = 512
"""Records between two looks at the shadow's sockets: a few milliseconds of work at most."""
HOLD: Final = 0.0008
"""Pause in seconds after a batch while traffic is dense: one wake-up then serves several requests, and
none is held longer than about a millisecond."""
FEW: Final = 1
"""Traffic is dense when the pause will bring this many records, going by the last batch; with fewer
it costs more than it saves."""
TICK: Final = 0.1
"""Seconds between two looks at time-outs while something waits for one."""
IDLE_TICK: Final = 1.0
"""The same while nothing does."""
OOM_SCORE: Final = 1000
"""Where memory is short, the kernel ends workers first (proc(5): the most that can be set), production is not."""
PIECES: Final = 16
"""Of a long message that are sent at one time: half a millisecond.  A state of 14 MB has 1,700."""
PIECES_PAUSE: Final = 0.001
"""Seconds until the next ones."""
SPARE_FILES: Final = 64
"""Descriptors a worker needs beside its connections."""
MESSAGE: Final = 1 << 16
"""Bytes of the longest message between supervisor and worker but the first."""
STATE_BYTES: Final = 64 << 20
"""The same with the state of a comparison: 100 end points, 200 samples."""
SETUP_BYTES: Final = 16 << 20
"""Of that: a spec of 256 KiB of YAML with everything spelled out."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told before it gives up its privileges."""

    spec: TapSpec
    addresses: list[list[tuple[int, list[Any]]]]
    """For each shadow (address family, socket address), in the order to be tried."""
    capture: str
    """`ring` (descriptors: ring, counters, wants) or `packet` (descriptor: the AF_PACKET socket)."""
    excluded: list[tuple[bytes, int]] = []
    """Shadow end points (16-byte address, port) that are never captured; for `packet`."""
    addrs: list[bytes] = []
    """Production's addresses in 16 bytes; for `packet`."""
    links: list[int] | None = None
    """Numbers of the interfaces whose packets count; for `packet` where the socket sees others too."""
    block_bytes: int = BLOCK_BYTES
    """Of the ring; for `packet`."""
    shard: int = 0
    """Which of the tap's workers this is,"""
    workers: int = 1
    """of so many, of which each has its part of the connections."""
    threshold: int = 1 << 32
    """Of 2**32 values of the flow hash, how many are captured now."""
    secret: bytes = b""
    """Of the hashes of redaction, the same for all workers of the tap; JSON carries it as base64."""
    began: float = 0.0
    """When the tap began, of CLOCK_MONOTONIC."""
    past: dict[str, Any] | None = None
    """The last books of the worker whose place this one takes."""
    uid: int
    gid: int


class SetupError(Exception):
    """The tap cannot run as it is told to; the message is one line that begins with the field."""


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
    ) -> None:
        self._spec = spec
        self._source = source
        self._replay = replay
        self._ledger = ledger
        self._policy = policy
        self._comparing = comparing
        self._pipeline = Pipeline(spec, ledger, policy) if comparing is None else comparing
        self._stopping = False
        self._read = 0
        """Records,"""
        self._waited = 0.0
        """and the seconds that they waited in the capture, each as long as the first of its batch."""
        self._control: socket.socket | None = None
        self._parcel: privsep.Parcel | None = None
        """An answer that the supervisor has not got whole yet."""
        self._memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self.sandbox: list[str] = []
        """Layers of the kernel's that hold this process, of `seccomp` and `landlock`."""

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
            final["comparison"] = self._comparing.state()
        self._reply({"final": final})
        self._hand_over_all()

    def take_over(self, setup: Setup) -> None:
        """Go on with the books of a predecessor, if there was one."""
        shadows = (
            [] if self._policy is None else [(each.ledger, each.spec.copies) for each in self._policy.destinations]
        )
        succession.take_over(setup.past, self._ledger, shadows, self._source.received)
        if setup.past is not None:
            self._pipeline.keep(setup.threshold, time.monotonic())

    def stop(self) -> None:
        """Leave the loop after the turn under way."""
        self._stopping = True

    def run(self, clock: Callable[[], float]) -> None:
        """The loop: ring, commands, shadow sockets, time-outs."""
        last_batch = 0.0
        next_tick = 0.0
        while not self._stopping:
            now = clock()
            count = self._take(now)
            if now >= next_tick:
                next_tick = self._tick(now)
            if count:
                if count < BATCH and count * HOLD >= FEW * (now - last_batch):
                    time.sleep(HOLD)
                last_batch = now
            wait = max(0.0, next_tick - now)
            if self._parcel is not None:
                self._hand_over()
                wait = min(wait, PIECES_PAUSE)
            # What came meanwhile makes the source readable: this returns at once then.
            self._replay.run_once(wait, clock)

    def snapshot(self) -> dict[str, Any]:
        """The ledger and what the process costs, as plain data."""
        counters = self._source.counters()
        received_segments, received_bytes = self._source.received
        in_segments, in_bytes = self._pipeline.held()
        for account, index in ((self._ledger.segments, 0), (self._ledger.bytes, 1)):
            _enter(account, counters, index)
        for name in ("syn", "syn_ack", "accepted", "bare_ack", "egress", "control_lost", "loop_syn"):
            self._ledger.events[f"kernel_{name}"] = getattr(counters, name)[0]
        if self._comparing is not None:
            for name in ("answers", "answers_lost"):
                self._ledger.events[f"kernel_{name}"] = getattr(counters, name)[0]
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
            "answers": dict(sorted(whole.answers.items())),
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

    def books(self) -> dict[str, Any]:
        """What a successor needs; right after `snapshot`."""
        shadows = [] if self._policy is None else [each.ledger for each in self._policy.destinations]
        return {
            **succession.books(self._ledger, shadows),
            "capture": msgspec.to_builtins(self._source.counters()),
        }

    def _enter_delay(self) -> None:
        """Put what was read since the last time, and how long it had waited, into the books."""
        whole = int(self._waited * 1e6)
        self._ledger.events["delay_records"] += self._read
        self._ledger.events["delay_us"] += whole
        self._read = 0
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
                    common.answers,
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
                    each.ledger.answers,
                    each.ledger.latency,
                    captured * copies + each.held_bytes + sum(size for size, _ in held),
                    each.held_requests + sum(requests for _, requests in held),
                )
            )
        return views

    def _take(self, now: float) -> int:
        """Pass on what the source has, up to a batch; return how many records it was."""
        feed = self._pipeline.feed
        execute = self._replay.execute
        count = 0
        age = self._source.age(now)
        for segment in self._source.read(BATCH):
            for command in feed(segment, now):
                execute(command, now)
            count += 1
        if count:
            self._read += count
            self._waited += max(0.0, age) * count  # below 0: it was captured after `now`
        requests = self._pipeline.flows.ack_requests
        if requests:
            for key, wanted in requests:
                self._source.want_ack(key, wanted)
            requests.clear()
        if self._comparing is not None:
            self._ask_for_answers(self._comparing)
        return count

    def _ask_for_answers(self, comparing: ComparingPipeline) -> None:
        """Have those answers of production captured that are to be compared."""
        if comparing.answer_requests:
            for key, wanted in comparing.answer_requests:
                self._source.keep_answers(key, wanted)
            comparing.answer_requests.clear()
        if comparing.window is not None:
            self._source.want_answers(*comparing.window)
            comparing.opened(time.monotonic_ns())

    def _tick(self, now: float) -> float:
        """Act on time-outs; return when to look again."""
        for command in self._pipeline.expire(now):
            self._replay.execute(command, now)
        self._replay.expire(now)
        deadline = self._replay.next_deadline()
        soon = now + TICK
        if self._pipeline.flows.impatient or (deadline is not None and deadline <= soon):
            return soon
        return now + IDLE_TICK if deadline is None else min(deadline, now + IDLE_TICK)

    def _drain(self, clock: Callable[[], float]) -> None:
        """Pass on what was captured, let the shadow take what is queued, within `Limits.drain_time`."""
        end = clock() + self._spec.limits.drain_time
        self._source.stop()
        while (self._take(clock()) or not self._source.empty()) and clock() < end:
            self._replay.run_once(0.0, clock)
        for command in self._pipeline.close(clock()):
            self._replay.execute(command, clock())
        while not self._replay.idle() and (now := clock()) < end:
            self._replay.expire(now)
            self._replay.run_once(min(TICK, end - now), clock)
        self._replay.close(DropReason.SHUTDOWN)

    def _on_control(self) -> None:
        """A message of the supervisor, or its end."""
        assert self._control is not None
        try:
            message, _ = privsep.receive(self._control, MESSAGE)
        except (OSError, EOFError):
            self._stopping = True
            return
        operation = message.get("op")
        if operation == "snapshot":
            self._reply({"snapshot": self.snapshot(), "books": self.books()})
        elif operation == "compare":
            self._reply({"compare": {} if self._comparing is None else self._comparing.state()})
        elif operation == "share":
            self._set_share(int(message["threshold"]), message.get("percent"))
            self._reply({"share": {}})
        elif operation == "links":
            if isinstance(self._source, LiveSource):
                self._source.links = frozenset(message["indexes"])
            self._reply({"links": {}})
        elif operation == "addresses":
            self._readdress(message)
            self._reply({"addresses": {}})
        else:
            self._stopping = True

    def _set_share(self, threshold: int, percent: float | None) -> None:
        """Take only flows whose hash is below `threshold`; `percent`: of the tap's share, where it is not of flows."""
        self._source.set_threshold(threshold)
        if self._policy is not None and percent is not None:
            self._policy.set_percent(percent)
        now = time.monotonic()
        for command in self._pipeline.keep(threshold, now):
            self._replay.execute(command, now)

    def _readdress(self, message: dict[str, Any]) -> None:
        """A shadow (its index) is at other addresses; what it and the others are at is not captured."""
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
        """Send some more of a long answer: the supervisor takes it at its leisure, and nothing here waits for that."""
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
    """Put the capture's totals into an account: records at index 0, bytes at 1."""
    account.seen = counters.seen[index]
    account.sampled_out = counters.sampled_out[index]
    account.filtered[FilterReason.LOOP] = counters.loop[index]
    account.filtered[FilterReason.CLIENT] = counters.client[index]
    account.dropped[DropReason.RING_FULL] = counters.ring_full[index]
    account.dropped[DropReason.FRAGMENT] = counters.fragment[index]


def _source(setup: Setup, fds: list[int]) -> Source:
    spec = setup.spec
    if setup.capture == "ring":
        ring, counters, wants = fds
        return RingSource(
            ring,
            counters,
            wants,
            ring_bytes=spec.limits.ring_bytes,
            seed=spec.seed,
            shard=setup.shard,
            workers=setup.workers,
        )
    admission = Admission(
        ports=spec.ports,
        addrs=setup.addrs,
        excluded=setup.excluded,
        clients=as_ranges(captured_clients(spec)),
        threshold=setup.threshold,
        seed=spec.seed,
        dscp=LOOP_DSCP,
        egress_all=spec.pacing is Pacing.WAIT,
        both_ways=spec.promisc or spec.decap,
        answer_bytes=answer_bytes(spec),
        many=spec.many,
        either_way=spec.many and bool(spec.addrs),
    )
    decoder = Decoder(tunnels=True, checksums=False) if spec.decap else None
    sock = socket.socket(fileno=fds[0])
    return LiveSource(
        sock,
        admission,
        spec.limits.ring_bytes,
        block_bytes=setup.block_bytes,
        decoder=decoder,
        promiscuous=spec.promisc,
        links=setup.links,
        past=msgspec.convert(setup.past["capture"], dict[str, tuple[int, int]]) if setup.past is not None else None,
    )


def _policy(setup: Setup, hook: Callable[[HookRequest], object] | None) -> Policy | None:
    """What decides on requests, if there is anything to decide."""
    spec = setup.spec
    if not is_needed(spec):
        return None
    policy = Policy(
        spec,
        [Ledger() for _ in spec.shadows],
        secret=setup.secret,
        epoch=time.time() - time.monotonic(),
        hook=hook,
    )
    policy.begin(setup.began or time.monotonic())
    return policy


def _comparing(setup: Setup, ledger: Ledger, policy: Policy | None) -> ComparingPipeline | None:
    """What compares answers, if that is asked for: with each copy of each shadow."""
    spec = setup.spec
    if spec.compare.level is Level.OFF:
        return None
    rules = [spec.compare.redact or USUAL, *([spec.redact] if spec.redact is not None else [])]
    comparison = Comparison(
        spec.compare,
        [
            (label, f"{'http' if shadow.tls is None else 'https'}://{shadow.end_point}")
            for shadow in spec.shadows
            for label in shadow.copy_labels
        ],
        SampleRedactor(rules, setup.secret),
        [compile_text(pattern) for pattern in spec.compare.ignore_patterns],
    )
    return ComparingPipeline(spec, ledger, policy, comparison)


def _replay(
    setup: Setup,
    contexts: list[ssl.SSLContext | None],
    ledgers: list[Ledger],
    comparing: ComparingPipeline | None,
) -> Replay:
    """A reactor for each copy of each shadow."""
    reactors: list[Reactor] = []
    second: list[Reactor] = []
    clock = Clock()
    twice = comparing is not None and probes(setup.spec)
    copies = sum(shadow.copies for shadow in setup.spec.shadows)
    gentle = gentle_closes(setup.workers * copies * (2 if twice else 1))
    for shadow, found, context, ledger in zip(setup.spec.shadows, setup.addresses, contexts, ledgers, strict=True):
        addresses = [(family, tuple(address)) for family, address in found]
        for _ in range(shadow.copies):
            hearing = None
            if comparing is not None:
                hearing = Hearing(comparing.conversation, len(reactors), clock, ledger.events)
            reactors.append(Reactor(addresses, setup.spec, shadow, ledger, context, hearing, gentle))
            if comparing is not None and twice:
                hearing = Hearing(comparing.conversation, len(reactors) - 1 + PROBE, clock, Counter())
                # A ledger of its own: what is sent twice was captured once.
                second.append(Reactor(addresses, setup.spec, shadow, Ledger(), context, hearing, gentle))
    return Replay(reactors + second)


def load_hook(call: str, events: Counter[str]) -> Callable[[HookRequest], object]:
    """The user's function, with its calls and its time counted.  Raises ImportError, AttributeError, or
    whatever its module raises.
    """
    module, _, name = call.partition(":")
    function = getattr(importlib.import_module(module), name)

    def timed(request: HookRequest) -> object:
        began = time.perf_counter_ns()
        try:
            return function(request)
        finally:
            events["hook_calls"] += 1
            events["hook_ns"] += time.perf_counter_ns() - began

    return timed


def prepare(setup: Setup, fds: list[int]) -> Worker:
    """The worker, without privileges.  Raises `SetupError` for what the user can set right."""
    spec = setup.spec.of_worker(setup.workers)
    ledger = Ledger()
    contexts: list[ssl.SSLContext | None] = []
    for i, shadow in enumerate(spec.shadows):
        try:
            contexts.append(make_context(shadow.tls, shadow.host) if shadow.tls is not None else None)
        except (OSError, ValueError) as error:
            raise SetupError(f"shadows[{i}].tls: {_reason(error)}") from None
    give_way()
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write(str(OOM_SCORE))
    copies = sum(shadow.copies for shadow in spec.shadows)
    privsep.drop_privileges(setup.uid, setup.gid, spec.limits.connections * copies + SPARE_FILES)
    hook = None
    if spec.hook is not None:
        try:
            hook = load_hook(spec.hook.call, ledger.events)
        except Exception as error:  # whatever a user's module raises
            raise SetupError(f"hook: cannot load {spec.hook.call}: {_reason(error)}") from None
    policy = _policy(setup, hook)
    ledgers = [ledger] if policy is None else [each.ledger for each in policy.destinations]
    comparing = _comparing(setup, ledger, policy)
    replay = _replay(setup, contexts, ledgers, comparing)
    worker = Worker(spec, _source(setup, fds), replay, ledger, policy, comparing)
    worker.take_over(setup)
    limit = memory_limit(spec)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    worker.sandbox = sandbox.enter(
        sandbox.Grants(
            ports=frozenset(int(address[1]) for found in setup.addresses for _, address in found),
            only_read=[] if setup.capture == "ring" else fds,
            imports=hook is not None,
        )
    )
    return worker


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    return f"{' '.join(text.split())}{where}" or type(error).__name__


COMPARED_BYTES: Final = 128 << 20
"""What a comparison holds beside bodies: 100 end points, 200 samples, repeats, and its whole state in one message."""


def memory_limit(spec: TapSpec) -> int:
    """Bytes of private memory (setrlimit(2), RLIMIT_DATA): the ring, which is shared, is not among them."""
    copies = sum(shadow.copies for shadow in spec.shadows)
    compared = spec.compare.held_bytes + COMPARED_BYTES if spec.compare.level is not Level.OFF else 0
    return spec.limits.memory + (copies - 1) * spec.limits.queues_bytes + compared * copies


def main() -> None:
    """Set up, give up privileges, serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdio.print_without_waiting()
    control = socket.socket(fileno=int(sys.argv[1]))
    reason = contract.broken("".join(sys.argv[2:3]))
    if reason is not None:
        with suppress(OSError):
            privsep.send(control, {"error": reason})
        return
    try:
        message, fds = privsep.receive_large(control, SETUP_BYTES)
    except (OSError, EOFError):
        return  # the supervisor is gone
    setup = msgspec.convert(message, Setup)
    try:
        worker = prepare(setup, fds)
    except SetupError as error:
        privsep.send(control, {"error": str(error)})
        return
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    gc.collect()
    gc.freeze()
    try:
        privsep.send(control, {"ready": os.getpid()})
    except OSError:
        return
    try:
        worker.serve(control)
    except MemoryError:
        _say_that_memory_is_out(control, memory_limit(setup.spec))


def _say_that_memory_is_out(control: socket.socket, limit: int) -> NoReturn:
    """End, with a line for the supervisor; there may be no memory for more."""
    with suppress(OSError):
        privsep.send(control, {"error": f"limits.memory: the worker needs more than {limit >> 20} MiB"})
    os._exit(1)


if __name__ == "__main__":
    main()
