# SPDX-License-Identifier: Apache-2.0
"""Several workers of one tap: they share the connections, and together they do what one does."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from e2e.driven import driven
from e2e.mirror import PATIENCE, ROOM, Mirror, dropped
from lab import HashSink, Lab, Nginx, Tap, identity, load, until
from lab.shop import SlowShop
from tapmirror.spec import Capture, Limits
from tapmirror.supervisor.workers import WorkerSlot

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

CAPTURES = ["ebpf", "packet"]


@pytest.mark.apart
@pytest.mark.parametrize(("capture", "requests", "rate"), [("ebpf", 40_000, 0.0), ("packet", 20_000, 5_000.0)])
def test_two_workers_mirror_every_request(lab: Lab, capture: str, requests: int, rate: float) -> None:
    with (
        Nginx(lab.node),
        Nginx(lab.shadow) as shadow,
        Mirror(lab.node, shadow="10.77.2.2:80", capture=capture, workers=2) as tap,
    ):
        assert load(lab.client, lab.node.addr4, requests=requests, connections=40, rate=rate).answered == requests
        shadow.wait_for(requests, PATIENCE)
        ledger = tap.final()
    assert dropped(ledger) == {}
    assert ledger["requests"]["mirrored"] == ledger["requests"]["seen"] == requests
    assert ledger["answers"] == {"2xx": requests}
    one, two = ledger["workers"]
    assert one["pid"] != two["pid"]
    assert ledger["worker"]["cpu_s"] == pytest.approx(one["cpu_s"] + two["cpu_s"])
    assert min(one["cpu_s"], two["cpu_s"]) > ledger["worker"]["cpu_s"] / 5  # each had its part


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_connection_is_one_workers(lab: Lab, capture: str) -> None:
    """Its requests reach the shadow in order, on one connection of its own."""
    with HashSink(lab.node), HashSink(lab.shadow) as shadow:
        with Tap(lab.node, shadow="10.77.2.2:80", capture=capture, workers=3) as tap:
            plan = {"requests": 600, "connections": 30, "per_connection": 20}
            assert load(lab.client, lab.node.addr4, **plan).answered == 600
            shadow.wait_for(600)
            ledger = tap.stop()
        identity(ledger)
        assert ledger["events"]["shadow_connects"] == 30
        assert len(shadow.got) == 600 and shadow.bad == []


@pytest.mark.parametrize("capture", CAPTURES)
def test_what_one_loses_the_others_do_not(lab: Lab, capture: str) -> None:
    """A worker is killed: its part is lost and counted, the identity of the sum holds, and another takes its place."""
    with HashSink(lab.node), HashSink(lab.shadow):
        with Tap(lab.node, shadow="10.77.2.2:80", capture=capture, workers=2) as tap:
            assert load(lab.client, lab.node.addr4, requests=2_000, connections=20).answered == 2_000
            workers = [pid for pid, words in tap.processes().items() if "tapmirror.worker" in words]
            assert len(workers) == 2
            os.kill(workers[0], signal.SIGKILL)
            until(
                lambda: (
                    sum("tapmirror.worker" in words for words in tap.processes().values()) == 2
                    and workers[0] not in tap.processes()
                ),
                "another worker",
            )
            assert load(lab.client, lab.node.addr4, requests=2_000, connections=20).answered == 2_000
            ledger = tap.stop()
        identity(ledger)
        assert ledger["segments"]["seen"] == 4_000
        assert ledger["requests"]["mirrored"] > 2_000
        assert [worker["restarts"] for worker in ledger["workers"]] in ([1, 0], [0, 1])


@pytest.mark.parametrize("capture", CAPTURES)
def test_stopped_before_the_next_worker_has_begun(lab: Lab, capture: str) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow:
        with Tap(lab.node, shadow="10.77.2.2:80", capture=capture) as tap:
            assert load(lab.client, lab.node.addr4, requests=500, connections=5).answered == 500
            shadow.wait_for(500)
            (worker,) = (pid for pid, words in tap.processes().items() if "tapmirror.worker" in words)
            os.kill(worker, signal.SIGKILL)
            assert load(lab.client, lab.node.addr4, requests=500, connections=5).answered == 500
            ledger = tap.stop()
        identity(ledger)
        assert ledger["segments"]["seen"] == 1_000
        assert ledger["requests"]["mirrored"] >= 500


@pytest.mark.parametrize(("capture", "workers"), [("ebpf", 1), ("packet", 1), ("packet", 2)])
def test_killed_amid_the_end(lab: Lab, capture: str, workers: int) -> None:
    """It was told to send what it has, and never gets to it: the next one does."""
    with (
        HashSink(lab.node),
        HashSink(lab.shadow) as shadow,
        Tap(lab.node, shadow="10.77.2.2:80", capture=capture, workers=workers) as tap,
    ):
        assert load(lab.client, lab.node.addr4, requests=500, connections=5).answered == 500
        shadow.wait_for(500)
        those = [pid for pid, words in tap.processes().items() if "tapmirror.worker" in words]
        for worker in those:
            os.kill(worker, signal.SIGSTOP)
        assert load(lab.client, lab.node.addr4, requests=500, connections=5).answered == 500
        deaths = [threading.Timer(0.5, os.kill, (worker, signal.SIGKILL)) for worker in those]
        for death in deaths:
            death.start()
        ledger = tap.stop()
        for death in deaths:
            death.join()
    identity(ledger)
    assert ledger["segments"]["seen"] == 1_000
    assert ledger["requests"]["mirrored"] >= 500


@pytest.mark.parametrize("capture", CAPTURES)
def test_what_the_end_leaves_no_time_for_is_lost_and_counted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capture: str
) -> None:
    """It gets no CPU while requests come, and has no time at its end to read them."""
    limits = Limits(**{**ROOM, "drain_time": 0.001})
    with HashSink(lab.node), HashSink(lab.shadow), driven(lab.node, capture=Capture(capture), limits=limits) as tap:
        worker = tap.snapshot()["worker"]["pid"]
        begin_drain = WorkerSlot.begin_drain

        def told(slot: WorkerSlot, *, comparison: bool) -> None:
            begin_drain(slot, comparison=comparison)
            os.kill(worker, signal.SIGCONT)

        monkeypatch.setattr(WorkerSlot, "begin_drain", told)
        os.kill(worker, signal.SIGSTOP)
        assert load(lab.client, lab.node.addr4, requests=2_000, connections=5).answered == 2_000
        ledger = tap.stop()
    identity(ledger)
    segments, size = ledger["segments"], ledger["bytes"]
    assert (segments["seen"], segments["in_flight"]) == (2_000, 0)
    assert segments["dropped"]["shutdown"] > 500
    assert size["dropped"]["shutdown"] > 500 * size["seen"] / 2_000 / 2


@pytest.mark.parametrize("per_connection", [0, 1])
def test_the_shadows_times_are_measured_and_outlive_a_worker(lab: Lab, per_connection: int) -> None:
    """It takes 10 ms and more by its own clock: no response can have come sooner, on whatever connection."""
    sent = {"requests": 200, "connections": 20, "rate": 200, "per_connection": per_connection}
    with HashSink(lab.node), SlowShop(lab.shadow), Tap(lab.node, shadow="10.77.2.2:80", workers=2) as tap:
        load(lab.client, lab.node.addr4, **sent)
        until(lambda: " requests: 200 mirrored, " in tap.said(), "a look at all")
        workers = [pid for pid, words in tap.processes().items() if "tapmirror.worker" in words]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not {*workers} & {*tap.processes()}, "others")
        until(lambda: len([1 for words in tap.processes().values() if "tapmirror.worker" in words]) == 2, "two")
        time.sleep(1.0)
        load(lab.client, lab.node.addr4, **sent)
        ledger = tap.stop()
    identity(ledger)
    (shadow,) = ledger["shadows"].values()
    found = shadow["latency"]
    answered = shadow["answers"]["2xx"]
    assert found["count"] == sum(found["buckets"].values())
    assert answered > 200 and answered // 4 < found["count"] <= answered
    assert all(float(name) > 0.0075 for name in found["buckets"])
    assert found["sum_s"] >= found["count"] * 0.010
    assert 10.0 <= found["p50_ms"] <= found["p99_ms"]


def test_a_sampled_share_goes_to_all_workers(lab: Lab) -> None:
    with HashSink(lab.node), HashSink(lab.shadow):
        with Tap(lab.node, shadow="10.77.2.2:80", workers=2, percent=20) as tap:
            assert load(lab.client, lab.node.addr4, requests=1_000, connections=20, per_connection=1).answered == 1_000
            ledger = tap.stop()
        identity(ledger)
        assert 120 < ledger["requests"]["mirrored"] < 280
        assert ledger["segments"]["sampled_out"] == 1_000 - ledger["requests"]["mirrored"]
        assert min(worker["cpu_s"] for worker in ledger["workers"]) > 0


def test_loopback_and_an_interface_that_comes_back(lab: Lab) -> None:
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with Tap(lab.node, shadow="10.77.2.2:80", iface="lo", capture="packet", workers=2) as tap:
            assert load(lab.node, "127.0.0.1", requests=200, connections=20).answered == 200
            lab.node.run(["ip", "link", "set", "lo", "down"])
            lab.node.run(["ip", "link", "set", "lo", "up"])
            assert load(lab.node, "127.0.0.1", requests=200, connections=20).answered == 200
            shadow.wait_for(400)
            ledger = tap.stop()
        identity(ledger)
        assert ledger["segments"]["seen"] == len(shadow.got) == len(production.got) == 400
