# SPDX-License-Identifier: Apache-2.0
"""A whole tap between real servers under load: what the shadow got is what production got, to the request."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from contextlib import ExitStack

import pytest

from e2e.mirror import PATIENCE, Mirror, connect, dropped, endpoint, read_until
from lab import Faults, HashSink, Lab, Load, LoadPlan, Nginx, Redis, body, load, redis_pipe, until

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

BIG = 100_000_000
PIECE = 8 << 20
"""Of the largest body is sent before the shadow has what came before: as much as ring and queue hold on any host."""


@pytest.mark.apart
@pytest.mark.parametrize(
    ("capture", "requests", "per_connection", "rate"),
    [
        pytest.param("ebpf", 100_000, 0, 0.0, id="ebpf-keep-alive"),
        pytest.param("ebpf", 10_000, 1, 0.0, id="ebpf-connection-each"),
        pytest.param("packet", 20_000, 0, 5_000.0, id="packet-keep-alive"),
        pytest.param("packet", 2_000, 1, 1_000.0, id="packet-connection-each"),
    ],
)
def test_the_shadow_counts_what_production_counts(
    lab: Lab, capture: str, requests: int, per_connection: int, rate: float
) -> None:
    """AF_PACKET is not asked for more than half of what it does here."""
    with Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as tap:
            result = load(
                lab.client,
                lab.node.addr4,
                requests=requests,
                connections=32,
                per_connection=per_connection,
                rate=rate,
            )
            shadow.wait_for(requests, PATIENCE)
            ledger = tap.final()
        assert (result.answered, result.failed) == (requests, 0)
        assert production.requests() == shadow.requests() == requests
        assert ledger["capture"] == capture
        assert (ledger["requests"]["seen"], ledger["requests"]["mirrored"]) == (requests, requests)
        assert dropped(ledger) == {}
        assert ledger["answers"] == {"2xx": requests}


@pytest.mark.apart
@pytest.mark.parametrize(
    ("mtu", "capture", "largest"), [(1500, "ebpf", BIG), (9000, "ebpf", BIG), (1500, "packet", 10_000_000)]
)
def test_bodies_arrive_byte_identical(mtu: int, capture: str, largest: int) -> None:
    sizes = (1, 1 << 10, 64 << 10, 1 << 20)
    with Lab(mtu=mtu) as lab, HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as tap:
            assert load(lab.client, lab.node.addr4, requests=40, connections=1, bodies=sizes).failed == 0
            shadow.wait_for(40, PATIENCE)
            with connect(lab.client, lab.node.addr4, 80) as client:
                before, content = shadow.received, body(7, largest)
                client.sendall(b"POST /big HTTP/1.1\r\nHost: big.test\r\nContent-Length: %d\r\n\r\n" % largest)
                for start in range(0, largest, PIECE):
                    client.sendall(content[start : start + PIECE])
                    until(lambda: shadow.received >= before + min(largest, start + PIECE), "the piece")  # noqa: B023
                assert read_until(client, b"ok\n").startswith(b"HTTP/1.1 200 ")
            shadow.wait_for(41, PATIENCE)
            ledger = tap.final()
        wanted = {f"/{n}": hashlib.sha256(body(n, sizes[n % 4])).hexdigest() for n in range(40)}
        wanted["/big"] = hashlib.sha256(body(7, largest)).hexdigest()
        assert {got.uri: got.sha256 for got in production.got} == wanted
        assert {got.uri: got.sha256 for got in shadow.got} == wanted
        assert len(shadow.got) == 41 and all(got.whole for got in shadow.got)
        assert shadow.bad == []
        assert dropped(ledger) == {}
        assert ledger["bytes"]["mirrored"] > largest


@pytest.mark.parametrize(("capture", "count"), [("ebpf", 30_000), ("packet", 5_000)])
def test_redis_holds_the_same_data(lab: Lab, capture: str, count: int) -> None:
    with Redis(lab.node) as production, Redis(lab.shadow) as shadow:
        shadow_at = endpoint(lab.shadow.addr4, 6379)
        with Mirror(lab.node, port=6379, shadow=shadow_at, capture=capture, protocol="raw") as tap:
            for part in ("a", "b"):
                commands: list[tuple[object, ...]] = []
                for i in range(count // 3):
                    commands += [
                        ("SET", f"{part}{i}", f"v{i}" * (i % 60)),
                        ("APPEND", f"{part}{i % 500}", i),
                        ("RPUSH", f"list {part}", i),
                    ]
                assert redis_pipe(lab.client, lab.node.addr4, commands) == len(commands)
            until(lambda: shadow.digest() == production.digest(), "equal data sets", PATIENCE)
            ledger = tap.final()
        assert production.keys() == shadow.keys() == count // 3 * 2 + 2
        assert dropped(ledger) == {}
        assert ledger["events"]["kernel_accepted"] == 2


@pytest.mark.parametrize("capture", ["ebpf", "packet"])
def test_all_requests_of_a_bad_link_arrive(capture: str) -> None:
    sizes = (0, 100, 5_000)
    faults = Faults(lose=0.02, delay=0.1, duplicate=0.05, seed=5)
    with Lab(faults=faults) as lab, HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as tap:
            result = load(lab.client, lab.node.addr4, requests=3_000, connections=30, bodies=sizes)
            assert (result.answered, result.failed) == (3_000, 0)
            shadow.wait_for(3_000, PATIENCE)
            ledger = tap.final()
        assert lab.relay is not None
        assert lab.relay.stop().lost > 50
        assert shadow.bad == []
        assert sorted((got.uri, got.sha256, got.whole) for got in shadow.got) == sorted(
            (f"/{n}", hashlib.sha256(body(n, sizes[n % 3])).hexdigest(), True) for n in range(3_000)
        )
        assert len(production.got) == 3_000
        assert dropped(ledger) == {}
        assert ledger["bytes"]["filtered"]["duplicate"] > 0


@pytest.mark.apart
@pytest.mark.parametrize("capture", ["ebpf", "packet"])
def test_attached_in_the_middle_nothing_is_torn(lab: Lab, capture: str) -> None:
    sizes = (10, 3_000, 30_000, 100_000)
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=100, rate=200, bodies=sizes)
        running = Load(lab.client, plan)
        until(lambda: len({got.connection for got in [*production.got]}) == 100, "100 busy connections", PATIENCE)
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as tap:
            shadow.wait_for(400, PATIENCE)
            assert running.stop().failed == 0
            until(lambda: {production.got[-1].uri} <= {got.uri for got in [*shadow.got]}, "the last one", PATIENCE)
            ledger = tap.final()
        assert shadow.bad == []
        assert all(got.whole for got in shadow.got)
        read = {got.uri: got for got in production.got}
        assert len(read) == len(production.got)
        streams: dict[int, list[str]] = defaultdict(list)
        for got in production.got:
            streams[got.connection].append(got.uri)
        mirrored: dict[int, list[str]] = defaultdict(list)
        for got in shadow.got:
            assert (got.head, got.sha256) == (read[got.uri].head, read[got.uri].sha256)
            mirrored[got.connection].append(got.uri)
        assert len(mirrored) == 100
        for uris in mirrored.values():  # from the first whole request on: all
            assert uris == streams[read[uris[0]].connection][-len(uris) :]
        assert ledger["requests"]["mirrored"] == len(shadow.got)
        assert set(ledger["bytes"]["dropped"]) <= {"midstream"}
        size = sum(len(got.head) + 4 + got.length for got in shadow.got)
        assert ledger["bytes"]["mirrored"] == size


@pytest.mark.apart
def test_the_share_is_of_connections_and_a_smaller_one_lies_in_a_larger(lab: Lab) -> None:
    count = 2_000
    shares = {81: 0, 82: 10, 83: 10, 84: 20, 85: 100}
    with ExitStack() as stack:
        stack.enter_context(Nginx(lab.node))
        shadows = {port: stack.enter_context(HashSink(lab.shadow, port)) for port in shares}
        taps = {
            port: stack.enter_context(
                Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, port), capture="ebpf", percent=percent, seed=4)
            )
            for port, percent in shares.items()
        }
        assert load(lab.client, lab.node.addr4, requests=count, connections=10, per_connection=1).answered == count
        shadows[85].wait_for(count, PATIENCE)
        ledgers = {port: tap.final() for port, tap in taps.items()}
        got = {port: {request.uri for request in sink.got} for port, sink in shadows.items()}
    assert got[81] == set()
    assert got[85] == {f"/{n}" for n in range(count)}
    assert got[82] == got[83] < got[84] < got[85]
    for port, percent in shares.items():
        account = ledgers[port]["segments"]
        assert (account["seen"], account["mirrored"]) == (count, len(got[port]))
        assert account["sampled_out"] == count - len(got[port])
        share = percent / 100
        assert abs(len(got[port]) - count * share) <= 5 * math.sqrt(count * share * (1 - share))
