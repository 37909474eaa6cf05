# SPDX-License-Identifier: Apache-2.0
"""The loop's parts that need no capture; as a process, see test_worker___main__."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lab import PATIENCE
from tapmirror import privsep
from tapmirror.ledger import Ledger
from tapmirror.replay import Reactor, Replay
from tapmirror.source import Counters
from tapmirror.spec import Limits, TapSpec, parse_shadow
from tapmirror.tracer import Loop, Tracer
from tapmirror.worker.loop import BATCH, BATCH_BYTES, TICK, TOGETHER, Worker
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

    def read(limit: int, size: int, finish: Any) -> Iterator[Any]:
        asked.append(limit)
        yield from ()

    source: Any = SimpleNamespace(age=lambda now: here.age, fill=lambda: here.fill, read=read, cut=False)
    nothing: Any = SimpleNamespace(execute=nothing_to_do)
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

    def read(limit: int, size: int, finish: Any) -> Iterator[Any]:
        asked.append(limit)
        yield from [None] * limit

    source: Any = SimpleNamespace(age=lambda now: here.age, fill=lambda: 0.0, read=read, cut=False)
    nothing: Any = SimpleNamespace(execute=nothing_to_do)
    worker = Worker(TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("a:80"),)), source, nothing, Ledger())
    worker._pipeline = SimpleNamespace(  # type: ignore[assignment]
        feed=lambda segment, now: (), flows=SimpleNamespace(ack_requests=()), rest=()
    )

    for turn in range(4):
        here.age = 0.005 * turn
        worker._take(100.0 + here.age)
    os.close(worker._memory)

    assert asked == [BATCH] * 4


@pytest.mark.parametrize("cut", [False, True])
def test_after_a_batch_that_ended_for_its_bytes_there_is_no_pause(monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    asked: list[int] = []

    def read(limit: int, size: int, finish: Any) -> Iterator[Any]:
        asked.append(size)
        return iter([None] * 8)

    worker = looping(SimpleNamespace(age=lambda now: 0.0, read=read, cut=cut), SimpleNamespace(rest=()))
    worker.run(lambda: 0.001)
    os.close(worker._memory)

    assert asked == [BATCH_BYTES]
    assert bool(pauses) is not cut


@pytest.mark.parametrize("held", [0.0, 5.0])
def test_a_worker_that_was_stopped_looks_at_its_sockets_before_it_judges_by_the_time(held: float) -> None:
    """What has been answered meanwhile would be taken for silence, else."""
    done: list[str] = []
    now = 100.0

    def read(limit: int, size: int, finish: Any) -> Iterator[Any]:
        done.append("read")
        return iter(())

    def turn(wait: float, clock: Callable[[], float]) -> None:
        nonlocal now
        done.append("wait" if wait else "look")
        if wait:
            if done.count("wait") == 2:
                worker.stop()
            now += TICK + held  # stopped in here, it comes out without a look (signal(7))

    worker = looping(
        SimpleNamespace(age=lambda now: 0.0, read=read, cut=False),
        SimpleNamespace(rest=(), flows=SimpleNamespace(ack_requests=(), impatient=True)),
        turn,
        lambda now: done.append("judge"),
    )
    worker.run(lambda: now)
    os.close(worker._memory)

    assert done == ["read", "judge", "wait", *(["look"] if held else []), "read", "judge", "wait"]


def test_what_is_left_of_a_segment_is_done_before_the_next_one_is_read_and_others_get_their_turns_between() -> None:
    done: list[str] = []
    rest: list[int] = []

    def feed(segment: Any, now: float) -> tuple[()]:
        done.append("feed")
        rest.extend([1, 2])
        return ()

    def work(now: float) -> tuple[()]:
        done.append("work")
        rest.pop()
        return ()

    def expire(now: float) -> tuple[()]:
        done.append("expire")
        return ()

    def turn(wait: float, clock: Callable[[], float]) -> None:
        done.append("turn")
        assert wait == 0.0 or not rest
        if done.count("turn") == 3:
            worker.stop()

    source = SimpleNamespace(
        age=lambda now: 0.0, fill=lambda: 0.0, read=lambda limit, size, finish: iter([None] * 2), cut=False
    )
    worker = looping(
        source,
        SimpleNamespace(feed=feed, work=work, expire=expire, rest=rest),
        turn,
        overdue=lambda now: done.append("overdue"),
    )
    worker.run(lambda: 0.001)
    os.close(worker._memory)

    turns = [["feed", "overdue"], ["work", "overdue"], ["work", "expire", "overdue"]]
    assert done == [each for one in turns for each in [*one, "turn"]]


def test_what_a_time_out_releases_is_not_waited_with() -> None:
    waits: list[float] = []
    rest: list[int] = []

    def expire(now: float) -> tuple[()]:
        rest.append(1)
        return ()

    def turn(wait: float, clock: Callable[[], float]) -> None:
        waits.append(wait)
        worker.stop()

    source = SimpleNamespace(age=lambda now: 0.0, read=lambda limit, size, finish: iter(()), cut=False)
    worker = looping(source, SimpleNamespace(expire=expire, rest=rest), turn)
    worker.run(lambda: 0.001)
    os.close(worker._memory)

    assert waits == [0.0]


def test_a_loop_that_shows_in_what_was_left_of_a_segment_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = Tracer(b"0" * 32)
    found: list[Loop] = []

    def work(now: float) -> tuple[()]:
        tracer.loop = Loop(3, bytes(16))
        return ()

    worker = looping(SimpleNamespace(), SimpleNamespace(work=work, rest=[1]))
    worker._tracer = tracer
    monkeypatch.setattr(worker, "_stand_still", found.append)
    worker.run(lambda: 0.001)
    os.close(worker._memory)

    assert found == [tracer.loop]


@pytest.mark.parametrize(("each", "together"), [(1, True), (TOGETHER, False)])
def test_commands_are_carried_out_together_and_before_room_is_given_back(each: int, together: bool) -> None:
    done: list[str] = []

    def read(limit: int, size: int, finish: Callable[[], None]) -> Iterator[Any]:
        yield from "ab"
        finish()
        done.append("given back")
        yield "c"
        finish()

    def feed(segment: str, now: float) -> list[str]:
        done.append(f"fed {segment}")
        return [segment] * each

    worker = looping(SimpleNamespace(age=lambda now: 0.0, read=read, cut=False), SimpleNamespace(rest=()))
    worker._pipeline.feed = feed  # type: ignore[assignment,method-assign]
    worker._replay.execute = lambda commands, now: done.extend(f"sent {each}" for each in commands)
    worker._take(0.0)
    os.close(worker._memory)

    first = ["fed a", "fed b", "sent a", "sent b"] if together else ["fed a", "sent a", "fed b", "sent b"]
    assert list(dict.fromkeys(done)) == [*first, "given back", "fed c", "sent c"]


def nothing_to_do(commands: Iterable[Any], now: float) -> None:
    """Carry out no command: there must be none."""
    assert not list(commands)


def looping(
    source: Any,
    pipeline: SimpleNamespace,
    turn: Callable[..., None] | None = None,
    overdue: Callable[[float], None] = lambda now: None,
) -> Worker:
    """A worker whose loop runs with these, and `turn` in place of the shadows' sockets; without one it ends there."""
    replay: Any = SimpleNamespace(
        execute=nothing_to_do,
        push=lambda: None,
        expire=overdue,
        next_deadline=lambda: None,
        run_once=turn or (lambda wait, clock: worker.stop()),
    )
    worker = Worker(TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("a:80"),)), source, replay, Ledger())
    flows = SimpleNamespace(ack_requests=(), impatient=False)
    defaults = {"feed": lambda segment, now: (), "expire": lambda now: (), "flows": flows}
    worker._pipeline = SimpleNamespace(**{**defaults, **vars(pipeline)})  # type: ignore[assignment]
    return worker


def test_what_waits_for_the_rest_of_its_request_is_sent_before_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: done.append("pause"))

    def stop(wait: float, clock: Callable[[], float]) -> None:
        worker.stop()

    source: Any = SimpleNamespace(age=lambda now: 0.0, read=lambda limit, size, finish: iter([None] * 8), cut=False)
    replay: Any = SimpleNamespace(
        execute=nothing_to_do,
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
        rest=(),
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
        read=lambda limit, size, finish: iter(()),
        cut=False,
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

    def take(limit: int, size: int, finish: Any) -> Iterator[Any]:
        read.append(limit)
        tracer.loop = Loop(3, bytes(10) + b"\xff\xff\x0a\0\0\1")
        yield from ()

    ready, woken = os.pipe()
    source: Any = SimpleNamespace(
        age=lambda now: 0.0,
        fill=lambda: 0.0,
        read=take,
        cut=False,
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
            thread.join(PATIENCE)
        assert "final" in privsep.receive(ours, MESSAGE)[0]
    assert len(read) == 1
    for descriptor in (ready, woken, worker._memory):
        os.close(descriptor)
