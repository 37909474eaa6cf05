# SPDX-License-Identifier: Apache-2.0
"""The worker process: capture source, pipeline and replay in one loop, without privilege.

It is started by the supervisor as `python -m tapmirror.worker FD`, with one end of a socket
pair.  It imports what it needs, receives its set-up and its descriptors, gives up every
privilege, and only then looks at a byte of the network.

Over the same socket the supervisor asks for the ledger (`snapshot`) and ends the tap
(`drain`).  If the supervisor dies, the socket ends and the worker drains and goes.

The loop never sleeps on anything but its epoll and the batching pause `HOLD`.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tapmirror import privsep
from tapmirror.admission import Admission
from tapmirror.events import LOOP_DSCP, DropReason, FilterReason
from tapmirror.ledger import Account, Ledger
from tapmirror.packet import Decoder
from tapmirror.pipeline import Pipeline
from tapmirror.replay import Reactor
from tapmirror.source import Source
from tapmirror.source.live import BLOCK_BYTES, LiveSource
from tapmirror.source.ring import RingSource
from tapmirror.spec import Pacing, TapSpec

BATCH: Final = 512
"""Records between two looks at the shadow's sockets: a few milliseconds of work at most."""
HOLD: Final = 0.0008
"""Pause in seconds after a batch while traffic is dense: one wake-up then serves several requests, and
none is held longer than about a millisecond."""
FEW: Final = 2
"""Traffic is dense when the pause will bring this many records, going by the last batch; with fewer
it costs more than it saves."""
TICK: Final = 0.1
"""Seconds between two looks at time-outs while something waits for one."""
IDLE_TICK: Final = 1.0
"""The same while nothing does."""
NICENESS: Final = 5
"""Where CPU is short, production's processes (0) get three times as much (sched_prio_to_weight in the kernel): a tap
rather drops than makes production wait."""
SPARE_FILES: Final = 64
"""Descriptors a worker needs beside its connections."""
MESSAGE: Final = 1 << 16
"""Bytes of the longest message between supervisor and worker."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told before it gives up its privileges."""

    spec: TapSpec
    addresses: list[tuple[int, list[Any]]]
    """(address family, socket address) of the shadow, in the order to be tried."""
    capture: str
    """`ring` (descriptors: ring, counters, wants) or `packet` (descriptor: the AF_PACKET socket)."""
    excluded: list[tuple[bytes, int]] = []
    """Shadow end points (16-byte address, port) that are never captured; for `packet`."""
    addrs: list[bytes] = []
    """Production's addresses in 16 bytes; for `packet`."""
    loopback: bool = False
    block_bytes: int = BLOCK_BYTES
    """Of the ring; for `packet`."""
    uid: int
    gid: int


class Worker:
    """One tap's loop."""

    def __init__(self, spec: TapSpec, source: Source, reactor: Reactor, ledger: Ledger) -> None:
        self._spec = spec
        self._source = source
        self._reactor = reactor
        self._ledger = ledger
        self._pipeline = Pipeline(spec, ledger)
        self._stopping = False
        self._control: socket.socket | None = None

    def serve(self, control: socket.socket) -> None:
        """Mirror until told to drain, or until the supervisor is gone."""
        self._control = control
        self._reactor.watch(control.fileno(), self._on_control)
        self._reactor.watch(self._source.fileno(), _awake)
        self.run(time.monotonic)
        self._drain(time.monotonic)
        self._reply({"final": self.snapshot()})

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
            # What came meanwhile makes the source readable: this returns at once then.
            self._reactor.run_once(max(0.0, next_tick - now), clock)

    def snapshot(self) -> dict[str, Any]:
        """The ledger and what the process costs, as plain data."""
        counters = self._source.counters()
        received_segments, received_bytes = self._source.received
        in_segments, in_bytes = self._pipeline.held()
        queued_bytes, open_requests = self._reactor.held()
        for account, index in ((self._ledger.segments, 0), (self._ledger.bytes, 1)):
            _enter(account, counters, index)
        for name in ("syn", "syn_ack", "accepted", "bare_ack", "egress", "control_lost", "loop_syn"):
            self._ledger.events[f"kernel_{name}"] = getattr(counters, name)[0]
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            **self._ledger.snapshot(
                segments=counters.emitted[0] - received_segments + in_segments,
                bytes=counters.emitted[1] - received_bytes + in_bytes + queued_bytes,
                requests=open_requests,
            ),
            "flows": len(self._pipeline.flows),
            "worker": {"pid": os.getpid(), "cpu_s": usage.ru_utime + usage.ru_stime, "rss_kb": _rss_kb()},
        }

    def _take(self, now: float) -> int:
        """Pass on what the source has, up to a batch; return how many records it was."""
        feed = self._pipeline.feed
        execute = self._reactor.execute
        count = 0
        for segment in self._source.read(BATCH):
            for command in feed(segment, now):
                execute(command, now)
            count += 1
        requests = self._pipeline.flows.ack_requests
        if requests:
            for key, wanted in requests:
                self._source.want_ack(key, wanted)
            requests.clear()
        return count

    def _tick(self, now: float) -> float:
        """Act on time-outs; return when to look again."""
        for command in self._pipeline.expire(now):
            self._reactor.execute(command, now)
        self._reactor.expire(now)
        deadline = self._reactor.next_deadline()
        soon = now + TICK
        if self._pipeline.flows.impatient or (deadline is not None and deadline <= soon):
            return soon
        return now + IDLE_TICK if deadline is None else min(deadline, now + IDLE_TICK)

    def _drain(self, clock: Callable[[], float]) -> None:
        """Pass on what was captured, let the shadow take what is queued, within `Limits.drain_time`."""
        end = clock() + self._spec.limits.drain_time
        self._source.stop()
        while (self._take(clock()) or not self._source.empty()) and clock() < end:
            self._reactor.run_once(0.0, clock)
        for command in self._pipeline.close():
            self._reactor.execute(command, clock())
        while not self._reactor.idle() and (now := clock()) < end:
            self._reactor.expire(now)
            self._reactor.run_once(min(TICK, end - now), clock)
        self._reactor.close(DropReason.SHUTDOWN)

    def _on_control(self) -> None:
        """A message of the supervisor, or its end."""
        assert self._control is not None
        try:
            message, _ = privsep.receive(self._control, MESSAGE)
        except (OSError, EOFError):
            self._stopping = True
            return
        if message.get("op") == "snapshot":
            self._reply({"snapshot": self.snapshot()})
        else:
            self._stopping = True

    def _reply(self, message: dict[str, Any]) -> None:
        assert self._control is not None
        try:
            privsep.send(self._control, message)
        except OSError:
            self._stopping = True


def _awake() -> None:
    """The source has something: the loop looks at it in every turn anyway."""


def _enter(account: Account, counters: Any, index: int) -> None:
    """Put the capture's totals into an account: records at index 0, bytes at 1."""
    account.seen = counters.seen[index]
    account.sampled_out = counters.sampled_out[index]
    account.filtered[FilterReason.LOOP] = counters.loop[index]
    account.dropped[DropReason.RING_FULL] = counters.ring_full[index]
    account.dropped[DropReason.FRAGMENT] = counters.fragment[index]


def _rss_kb() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024


def _source(setup: Setup, fds: list[int]) -> Source:
    spec = setup.spec
    if setup.capture == "ring":
        ring, counters, wants = fds
        return RingSource(ring, counters, wants, ring_bytes=spec.limits.ring_bytes, seed=spec.seed)
    admission = Admission(
        ports=spec.ports,
        addrs=setup.addrs,
        excluded=setup.excluded,
        threshold=spec.threshold(),
        seed=spec.seed,
        dscp=LOOP_DSCP,
        loopback=setup.loopback,
        egress_all=spec.pacing is Pacing.WAIT,
        both_ways=spec.promisc or spec.decap,
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
    )


def main() -> None:
    """Set up, give up privileges, serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        message, fds = privsep.receive(control, MESSAGE)
    except (OSError, EOFError):
        return  # the supervisor is gone
    setup = msgspec.convert(message, Setup)
    os.nice(NICENESS)
    privsep.drop_privileges(setup.uid, setup.gid, setup.spec.limits.connections + SPARE_FILES)
    ledger = Ledger()
    reactor = Reactor([(family, tuple(address)) for family, address in setup.addresses], setup.spec, ledger)
    worker = Worker(setup.spec, _source(setup, fds), reactor, ledger)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    gc.collect()
    gc.freeze()
    try:
        privsep.send(control, {"ready": os.getpid()})
    except OSError:
        return
    worker.serve(control)


if __name__ == "__main__":
    main()
