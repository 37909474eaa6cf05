# SPDX-License-Identifier: Apache-2.0
"""Puts a worker together from its set-up: builds the stages, and gives up every privilege."""

from __future__ import annotations

import hashlib
import importlib
import resource
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from tapmirror import privsep, sandbox
from tapmirror.admission import Admission
from tapmirror.events import LOOP_DSCP
from tapmirror.exchange import PROBE
from tapmirror.ledger import Ledger
from tapmirror.packet import Decoder
from tapmirror.policy import HookRequest, Policy, is_needed
from tapmirror.precedence import give_way
from tapmirror.replay import Reactor, Replay
from tapmirror.replay.observer import Clock
from tapmirror.replay.observers import Observers
from tapmirror.replay.ports import ephemeral_ports, gentle_closes, open_connections
from tapmirror.replay.tls import make_context
from tapmirror.source import Source
from tapmirror.source.live import LiveSource
from tapmirror.source.ring import RingSource
from tapmirror.spec import Level, Pacing, Protocol, TapSpec
from tapmirror.spec.clients import as_ranges, captured_clients
from tapmirror.tracer import Tracer
from tapmirror.worker.loop import Worker
from tapmirror.worker.setup import Setup, SetupError, memory_limit

if TYPE_CHECKING:
    from tapmirror.comparing import ComparingPipeline

OOM_SCORE: Final = 1000
"""If memory is short, the kernel kills workers before production; the highest value there is (proc(5))."""
PROBING: Final = 8
"""One connection in this many may be used for second copies of requests (`compare.noise_probe`)."""
SPARE_FILES: Final = 64
"""Descriptors that a worker needs in addition to its connections."""


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
            cpus=setup.cpus,
            shard=setup.shard,
            workers=setup.workers,
        )
    either_way = spec.many and bool(spec.addrs)
    admission = Admission(
        ports=spec.ports,
        addrs=setup.addrs,
        excluded=setup.excluded,
        clients=as_ranges(captured_clients(spec)),
        threshold=setup.threshold,
        seed=spec.seed,
        dscp=LOOP_DSCP,
        probe=setup.probe,
        egress_all=spec.pacing is Pacing.WAIT,
        both_ways=spec.promisc or spec.decap,
        response_bytes=spec.compare.captured_bytes,
        many=spec.many,
        either_way=either_way,
    )
    decoder = Decoder(tunnels=True, checksums=False) if spec.decap else None
    sock = socket.socket(fileno=fds[0])
    return LiveSource(
        sock,
        admission,
        spec.limits.ring_bytes,
        block_bytes=setup.block_bytes,
        decoder=decoder,
        promiscuous=spec.promisc or either_way,
    )


def _policy(setup: Setup, hook: Callable[[HookRequest], object] | None) -> Policy | None:
    """The policy; None if there is nothing to decide."""
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
    policy.set_thresholds(setup.thresholds)
    return policy


def _tracer(setup: Setup) -> Tracer | None:
    """The tracer, which finds a shadow that leads back to production.  All workers of a tap share its token."""
    if not setup.spec.loop_check or setup.spec.protocol is Protocol.RAW:  # only requests are marked
        return None
    return Tracer(hashlib.blake2s(setup.secret, digest_size=16, person=b"loop").hexdigest().encode())


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
    twice = comparing is not None and setup.spec.compare.probes
    copies = sum(shadow.copies for shadow in setup.spec.shadows)
    ports = ephemeral_ports()
    gentle = gentle_closes(ports, setup.workers * copies * (2 if twice else 1))
    for shadow, found, context, ledger in zip(setup.spec.shadows, setup.addresses, contexts, ledgers, strict=True):
        most = min(setup.spec.limits.connections, open_connections(ports, setup.workers * shadow.copies))
        few = max(1, most // PROBING) if twice else 0
        spec, its_spec = (_with_connections(setup.spec, max(1, count)) for count in (most - few, few))
        addresses = [(family, tuple(address)) for family, address in found]
        for _ in range(shadow.copies):
            observers = None
            if comparing is not None:
                observers = Observers(comparing.conversation, len(reactors), clock, ledger.events)
            reactors.append(Reactor(addresses, spec, shadow, ledger, context, observers, gentle))
            if comparing is not None and twice:
                observers = Observers(comparing.conversation, len(reactors) - 1 + PROBE, clock, Counter())
                # It has a ledger of its own, because what is sent twice was captured once.
                second.append(Reactor(addresses, its_spec, shadow, Ledger(), context, observers, gentle))
    return Replay(reactors + second)


def _with_connections(spec: TapSpec, most: int) -> TapSpec:
    return msgspec.structs.replace(spec, limits=msgspec.structs.replace(spec.limits, connections=most))


def load_hook(call: str, events: Counter[str]) -> Callable[[HookRequest], object]:
    """The user's function, wrapped so that its calls and its time are counted.

    Raises ImportError, AttributeError, or whatever its module raises.
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
    """Make the worker, and give up privileges.  Raises `SetupError` for errors that the user can correct."""
    spec = setup.spec.of_worker(setup.workers)
    ledger = Ledger()
    pipeline = None
    if spec.compare.level is not Level.OFF:
        # This is a quarter of what a worker imports, and other taps do not need it.  It is done now, while the files
        # can still be read.
        from tapmirror.worker import compared

        compared.load()
        pipeline = compared.pipeline
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
    tracer = _tracer(setup)
    comparing = None if pipeline is None else pipeline(setup, ledger, policy, tracer)
    replay = _replay(setup, contexts, ledgers, comparing)
    worker = Worker(spec, _source(setup, fds), replay, ledger, policy, comparing, tracer)
    worker.take_over(setup.past, setup.threshold)
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
