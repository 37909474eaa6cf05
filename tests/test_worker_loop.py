# SPDX-License-Identifier: Apache-2.0
"""The loop's parts that need no capture; as a process, see test_worker___main__."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tapmirror import privsep
from tapmirror.ledger import Ledger
from tapmirror.replay import Reactor, Replay
from tapmirror.source import Counters
from tapmirror.spec import Limits, TapSpec, parse_shadow
from tapmirror.tracer import Loop, Tracer
from tapmirror.worker.loop import BATCH, Worker
from tapmirror.worker.setup import MESSAGE

REST = {each.name for each in msgspec.structs.fields(Counters)} - {"seen", "emitted", "loop"}


def test_nothing_waits_for_a_supervisor_that_takes_a_long_state_slowly() -> None:
    state = {"samples": "x" * 5_000_000}
    comparing: Any = SimpleNamespace(state=lambda: state)
    nothing: Any = None
    worker = Worker(
        TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("a:80"),)), nothing, nothing, Ledger(), None, comparing
    )

    def held() -> bool:
        return worker._parcel is not None

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        worker._control = theirs
        privsep.send(ours, {"op": "compare"})
        worker._on_control()
        assert held(), "it came back before anything was taken"
        pieces = privsep.Pieces(1 << 24)
        found: dict[str, Any] = {}
        while not found:
            if held():
                worker._hand_over()
            found = pieces.take(privsep.receive(ours, MESSAGE)[0])
        assert found == {"compare": state}
        assert not held()
    os.close(worker._memory)


def test_a_worker_that_was_kept_off_the_cpu_catches_up_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that is in time, and not one whose ring fills."""
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    asked: list[int] = []
    here = SimpleNamespace(age=0.0, fill=0.0)

    def read(limit: int) -> Iterator[Any]:
        asked.append(limit)
        yield from ()

    source: Any = SimpleNamespace(age=lambda now: here.age, fill=lambda: here.fill, read=read)
    nothing: Any = SimpleNamespace(execute=None)
    worker = Worker(TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("a:80"),)), source, nothing, Ledger())

    worker._take(100.0)
    here.age = 0.05
    worker._take(101.0)
    here.fill = 0.5
    worker._take(101.01)
    os.close(worker._memory)

    assert asked[0] == BATCH
    assert asked[1] < BATCH // 8
    assert asked[2] == BATCH


def test_a_worker_that_gets_much_at_once_reads_it_in_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is late for that, and not for want of the CPU."""
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    asked: list[int] = []
    here = SimpleNamespace(age=0.0)

    def read(limit: int) -> Iterator[Any]:
        asked.append(limit)
        yield from [None] * limit

    source: Any = SimpleNamespace(age=lambda now: here.age, fill=lambda: 0.0, read=read)
    nothing: Any = SimpleNamespace(execute=None)
    worker = Worker(TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("a:80"),)), source, nothing, Ledger())
    worker._pipeline = SimpleNamespace(feed=lambda segment, now: (), flows=SimpleNamespace(ack_requests=()))  # type: ignore[assignment]

    for turn in range(4):
        here.age = 0.005 * turn
        worker._take(100.0 + here.age)
    os.close(worker._memory)

    assert asked == [BATCH] * 4


def test_what_waits_for_the_rest_of_its_request_is_sent_before_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: done.append("pause"))

    def stop(wait: float, clock: Callable[[], float]) -> None:
        worker.stop()

    source: Any = SimpleNamespace(age=lambda now: 0.0, read=lambda limit: iter([None] * 8))
    replay: Any = SimpleNamespace(
        execute=None,
        push=lambda: done.append("push"),
        expire=lambda now: None,
        next_deadline=lambda: None,
        run_once=stop,
    )
    worker = Worker(TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("a:80"),)), source, replay, Ledger())
    worker._pipeline = SimpleNamespace(  # type: ignore[assignment]
        feed=lambda segment, now: (),
        expire=lambda now: (),
        flows=SimpleNamespace(ack_requests=(), impatient=False),
    )

    worker.run(lambda: 0.001)
    os.close(worker._memory)

    assert done == ["push", "pause"]


def test_what_the_time_at_the_end_did_not_suffice_for_is_dropped_and_not_under_way() -> None:
    spec = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("127.0.0.1:80"),), limits=Limits(drain_time=0.001))
    ledger = Ledger()
    counters = Counters(seen=(10, 1000), emitted=(9, 900), loop=(1, 100), **dict.fromkeys(REST, (0, 0)))
    more = Counters(seen=(13, 1300), emitted=(12, 1200), loop=(1, 100), **dict.fromkeys(REST, (0, 0)))
    here = SimpleNamespace(counters=counters)
    source: Any = SimpleNamespace(
        age=lambda now: 0.0,
        fill=lambda: 0.5,
        read=lambda limit: iter(()),
        empty=lambda: False,
        stop=lambda: None,
        received=(2, 200),
        counters=lambda: here.counters,
        discard=lambda: setattr(here, "counters", more),  # of a source that judges only what it reads
    )
    reactor = Reactor([(socket.AF_INET, ("127.0.0.1", 9))], spec, spec.shadows[0], ledger)
    worker = Worker(spec, source, Replay([reactor]), ledger)
    ledger.segments.mirrored, ledger.bytes.mirrored = 2, 200

    assert worker.snapshot()["bytes"]["in_flight"] == 700
    worker._drain(time.monotonic)
    final = worker.snapshot()
    os.close(worker._memory)

    for unit, lost in (("segments", 10), ("bytes", 1000)):
        account = final[unit]
        assert (account["dropped"], account["in_flight"], account["unaccounted"]) == ({"shutdown": lost}, 0, 0)


def test_a_worker_that_finds_a_loop_says_so_and_reads_and_sends_no_more() -> None:
    spec = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("127.0.0.1:80"),))
    tracer = Tracer(b"0" * 32)
    read: list[int] = []

    def take(limit: int) -> Iterator[Any]:
        read.append(limit)
        tracer.loop = Loop(3, bytes(10) + b"\xff\xff\x0a\0\0\1")
        yield from ()

    ready, woken = os.pipe()
    source: Any = SimpleNamespace(
        age=lambda now: 0.0,
        fill=lambda: 0.0,
        read=take,
        empty=lambda: False,
        stop=lambda: None,
        woken=lambda: None,
        fileno=lambda: ready,
        received=(0, 0),
        counters=lambda: Counters(**dict.fromkeys([*REST, "seen", "emitted", "loop"], (0, 0))),
        discard=lambda: None,
    )
    ledger = Ledger()
    reactor = Reactor([(socket.AF_INET, ("127.0.0.1", 9))], spec, spec.shadows[0], ledger)
    worker = Worker(spec, source, Replay([reactor]), ledger, tracer=tracer)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        thread = threading.Thread(target=worker.serve, args=(theirs,))
        thread.start()
        try:
            os.write(woken, b"x")
            assert privsep.receive(ours, MESSAGE)[0] == {"loop": {"target": 3, "client": "10.0.0.1"}}
            privsep.send(ours, {"op": "snapshot"})
            assert "snapshot" in privsep.receive(ours, MESSAGE)[0]
        finally:
            privsep.send(ours, {"op": "drain"})
            thread.join(20.0)
        assert "final" in privsep.receive(ours, MESSAGE)[0]
    assert len(read) == 1
    for descriptor in (ready, woken, worker._memory):
        os.close(descriptor)
