# SPDX-License-Identifier: Apache-2.0
"""Faults and abuses: killed processes, shadows that are down or hostile, a full ring, lost bytes, floods."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from scapy.all import IP, TCP, Ether, Raw

from e2e.driven import attempts, driven, known_to_be_down, serve, settled
from e2e.mirror import PATIENCE, ROOM, Line, Mirror, Talker, connect, dropped, endpoint, read_until
from lab import (
    Behaviour,
    Faults,
    HashSink,
    Host,
    Lab,
    Load,
    LoadPlan,
    Nginx,
    RecordingTcp,
    Snapshot,
    Tap,
    load,
    resident_kb,
    unchanged,
    until,
)
from lab.starve import starved
from tapmirror.packet import BUCKETS, MAPPED, flow_hash, flow_key
from tapmirror.spec import Capture, Limits
from tapmirror.supervisor import tap as supervisor_tap

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

CAPTURES: Final = ("ebpf", "packet")
ETH_P_ALL: Final = 3
STARVED: Final = """
iface: eth0
port: 80
protocol: http
capture: ebpf
shadow: "{shadow}"
limits: {{ring_bytes: 1048576}}
"""


def worker_of(tap: Tap) -> int:
    """The worker's pid."""
    return tap.workers()[0]


@pytest.mark.apart
@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("victim", ["supervisor", "all"])
def test_killed_under_load_production_is_unharmed_and_nothing_stays(lab: Lab, capture: str, victim: str) -> None:
    before = Snapshot.of(lab.node)
    with Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=20, rate=2_000)
        running = Load(lab.client, plan)
        tap = Tap(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture)
        try:
            shadow.wait_for(500, PATIENCE)
            pids = {"supervisor": [tap.pid], "all": list(tap.processes())}[victim]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            unchanged(lab.node, before)
            read = production.requests()
            production.wait_for(read + 1_000, PATIENCE)
            result = running.stop()
            until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids if pid != tap.pid), "their end")
        finally:
            tap.end()
        assert result.failed == 0
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as again:
            seen = shadow.requests()
            assert load(lab.client, lab.node.addr4, requests=100, connections=5).failed == 0
            shadow.wait_for(seen + 100, PATIENCE)
            assert again.final()["requests"]["mirrored"] == 100


@contextlib.contextmanager
def held(worker: int) -> Iterator[None]:
    """What comes meanwhile it sees when it is over."""
    os.kill(worker, signal.SIGSTOP)
    until(lambda: ") T " in Path(f"/proc/{worker}/stat").read_text(encoding="utf-8"), "the worker's stop")
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def seen(tap: supervisor_tap.Tap) -> int:
    """Requests that the worker has read up to now."""
    return int(tap.snapshot()["requests"]["seen"])


@pytest.mark.parametrize("how", ["refused", "black-holed"])
def test_a_shadow_that_is_down_and_comes_back(lab: Lab, how: str) -> None:
    with Nginx(lab.node) as production, contextlib.ExitStack() as stack:
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=40, per_connection=5, rate=1_000)
        blocked = lab.shadow.blocked(80) if how == "black-holed" else contextlib.nullcontext()
        with blocked:
            tap = stack.enter_context(driven(lab.node, lambda _: None, capture=Capture.EBPF))
            running = Load(lab.client, plan)
            serve(tap, lambda: seen(tap) > 2_000 and known_to_be_down(tap), "that it is known to be down")
            worker = tap.snapshot()["worker"]["pid"]
            start, count = resident_kb(worker), seen(tap)
            began, before = time.monotonic(), attempts(tap)
            serve(tap, lambda: seen(tap) > count + 2_000, "more requests")
            made, seconds = attempts(tap) - before, time.monotonic() - began
            grown = resident_kb(worker) - start
        with Nginx(lab.shadow) as shadow:
            serve(tap, lambda: shadow.requests() > 500, "that it resumes by itself")
            result = running.stop()
            until(lambda: production.requests() == result.answered, "the last at production")
            ledger = settled(tap)
            got = shadow.requests()
        assert result.failed == 0
        assert grown < 4_096
        assert made <= 10 * seconds + 1  # ten a second
        lost = ledger["requests"]["dropped"]
        assert set(lost) <= {"shadow_down", "shadow_slow"}
        assert lost["shadow_down"] > 1_000
        assert ledger["requests"]["mirrored"] == got == result.answered - sum(lost.values())


@pytest.mark.parametrize("after", [pytest.param(0, id="at once"), pytest.param(1, id="with the request")])
def test_a_forwarder_with_nobody_behind_it_is_a_shadow_that_is_down(lab: Lab, after: int) -> None:
    """It takes connections and resets them, as containers' port forwarders and balancers do."""
    with Nginx(lab.node) as production, contextlib.ExitStack() as stack:
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=40, per_connection=5, rate=1_000)
        with RecordingTcp(lab.shadow, 80, Behaviour(reset_after=after)):
            tap = stack.enter_context(driven(lab.node, lambda _: None, capture=Capture.EBPF))
            running = Load(lab.client, plan)
            serve(tap, lambda: known_to_be_down(tap), "that it is known to be down")
            began, before, count = time.monotonic(), attempts(tap), seen(tap)
            serve(tap, lambda: seen(tap) > count + 2_000, "more requests")
            made, seconds = attempts(tap) - before, time.monotonic() - began
        with Nginx(lab.shadow) as shadow:
            serve(tap, lambda: shadow.requests() > 500, "that it resumes by itself")
            result = running.stop()
            until(lambda: production.requests() == result.answered, "the last at production")
            ledger = settled(tap)
        assert result.failed == 0
        assert made <= 10 * seconds + 1
        assert ledger["requests"]["dropped"]["shadow_down"] > 1_000
        assert ledger["requests"]["mirrored"] == result.answered - sum(ledger["requests"]["dropped"].values())


PROBES: Final = itertools.count()


def passed(lab: Lab, shadow: HashSink) -> bool:
    """Whether a new connection's request comes through within a moment: what was in the ring before it was read."""
    uri = f"/probe{next(PROBES)}"
    with connect(lab.client, lab.node.addr4, 80) as client:
        client.sendall(f"GET {uri} HTTP/1.1\r\nHost: p\r\n\r\n".encode())
        client.recv(1 << 16)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        if any(got.uri == uri for got in [*shadow.got]):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("factor", [1, 10])
def test_a_stopped_worker_loses_what_the_ring_cannot_hold_and_says_so(lab: Lab, factor: int) -> None:
    sizes = (0, 40_000, 3_000) if factor == 10 else (0, 100)
    limits = Limits(**{**ROOM, **({"ring_bytes": 2 << 20} if factor == 10 else {})})
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with driven(lab.node, capture=Capture.EBPF, limits=limits) as tap:  # nobody asks the worker while it is held
            plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=20, rate=1_000, bodies=sizes)
            running = Load(lab.client, plan)
            shadow.wait_for(200, PATIENCE)
            with held(tap.snapshot()["worker"]["pid"]):
                count = len(production.got)
                production.wait_for(count + 600, PATIENCE)
            production.wait_for(len(production.got) + 300, PATIENCE)
            assert running.stop().failed == 0
            until(lambda: passed(lab, shadow), "that it goes on", PATIENCE)
            ledger = settled(tap)
        assert shadow.bad == []
        sent = {got.uri: (got.head, got.sha256) for got in production.got}
        for got in shadow.got:
            if got.whole:
                assert (got.head, got.sha256) == sent[got.uri]
        whole = [got.uri for got in shadow.got if got.whole]
        assert len(whole) == len(set(whole)) == ledger["requests"]["mirrored"]
        if factor == 1:
            assert len(whole) == len(sent)  # the ring took it all
        else:
            assert ledger["segments"]["dropped"]["ring_full"] > 0
            assert len(whole) < len(sent)


class Wire:
    """One TCP connection to a server of the node, made of frames: what the tap sees is what is sent here.

    The client's kernel knows nothing of it; a firewall there keeps its resets back.
    """

    def __init__(self, lab: Lab, port: int, client_port: int, seq: int = 1_000) -> None:
        self._lab = lab
        self._ports = client_port, port
        self.seq = seq
        near = lab.client.json("ip", "-j", "link", "show", "eth0")[0]["address"]
        far = lab.node.json("ip", "-j", "link", "show", "eth0")[0]["address"]
        self._ether = Ether(src=near, dst=far) / IP(src=lab.client.addr4, dst=lab.node.addr4)
        with lab.client.enter():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._sock.bind(("eth0", 0x0800))
        self._sock.settimeout(PATIENCE)
        self.ack = 0

    def send(self, flags: str, data: bytes = b"", at: int | None = None, *, damaged: bool = False) -> None:
        """One segment, at `at` of the stream or where it has come to; one that is damaged has a wrong checksum."""
        seq, ack = (self.seq if at is None else at) & 0xFFFFFFFF, self.ack & 0xFFFFFFFF
        segment = TCP(sport=self._ports[0], dport=self._ports[1], seq=seq, ack=ack, flags=flags, window=65_535)
        if damaged:
            segment.chksum = 1
        packet = self._ether / segment / Raw(data) if data else self._ether / segment
        self._sock.send(bytes(packet))
        if at is None:
            self.seq += len(data) + ("S" in flags) + ("F" in flags)

    def receive(self) -> Any:
        """The next segment of the server."""
        while True:
            packet = Ether(self._sock.recv(65_536))
            if TCP in packet and (packet[TCP].dport, packet[TCP].sport) == self._ports:
                return packet[TCP]

    def open(self) -> None:
        """The handshake."""
        self.send("S")
        response = self.receive()
        assert response.flags == "SA"
        self.ack = response.seq + 1
        self.send("A")

    def close(self, *, silently: bool = False) -> None:
        """Let go of the socket; the server is told by a reset, unless `silently`."""
        if not silently:
            self.send("R")
        self._sock.close()


def test_a_tap_that_gets_little_cpu_drops_and_goes_on(lab: Lab) -> None:
    """A fiftieth of one: what the ring cannot hold is given up and counted, nothing waits for it, nothing grows."""
    with Nginx(lab.node), HashSink(lab.shadow) as shadow:
        spec = STARVED.format(shadow=endpoint(lab.shadow.addr4, 80))
        with Mirror(lab.node, spec=spec) as tap:
            worker = worker_of(tap)
            with starved(worker, 0.02):  # too little also for what a busy host sends
                plan = LoadPlan(address=lab.node.addr4, requests=10_000, connections=20, rate=4_000, bodies=(4_096,))
                result = Load(lab.client, plan).result()
            assert (result.answered, result.failed) == (10_000, 0)
            assert worker_of(tap) == worker
            assert resident_kb(worker, peak=True) < 100 << 10
            until(lambda: passed(lab, shadow), "that it goes on", PATIENCE)
            before = len(shadow.got)
            assert load(lab.client, lab.node.addr4, requests=500, connections=5).failed == 0
            shadow.wait_for(before + 500, PATIENCE)
            ledger = tap.final()
        assert ledger["segments"]["dropped"]["ring_full"] > 1_000


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_tuple_that_is_used_again_without_any_end_mixes_nothing(fresh: Lab, capture: str) -> None:
    """Production forgets each connection and says nothing; the next client has the same address and port."""
    lab = fresh
    count, port = 30, 7100
    texts = [b"%04d " % number * 50 for number in range(count)]
    reset = Behaviour(reset_after=len(texts[0]))
    with (
        lab.client.silent(),
        lab.node.silent(),
        RecordingTcp(lab.node, port, reset) as production,
        RecordingTcp(lab.shadow, port) as shadow,
        Mirror(lab.node, port=port, shadow=endpoint(lab.shadow.addr4, port), protocol="raw", capture=capture) as tap,
    ):
        for number, text in enumerate(texts):
            wire = Wire(lab, port, 40_100, seq=number * 1_000_003)
            wire.open()
            wire.send("PA", b"behind a hole", at=wire.seq + 1_000)
            wire.send("PA", text)
            until(lambda: production.received() == (number + 1) * len(text), "production", PATIENCE)  # noqa: B023
            until(lambda: not production._open, "the end that nobody sees", PATIENCE)
            wire.close(silently=True)
        until(lambda: shadow.received() == len(texts[0]) * count, "all bytes", PATIENCE)
        ledger = tap.final()
    assert [bytes(record.content) for record in shadow.records if record.length] == texts  # a probe said nothing
    assert [bytes(record.content) for record in production.records] == texts
    assert ledger["events"]["flows"] == count


@pytest.mark.parametrize("capture", CAPTURES)
def test_forged_segments_neither_put_requests_into_the_shadow_nor_hide_those_of_the_client(
    fresh: Lab, capture: str
) -> None:
    """Of somebody who knows its addresses and ports and guesses numbers: production discards them and goes on."""
    lab = fresh
    forged = b"GET /forged HTTP/1.1\r\nHost: a\r\n\r\n"
    with lab.client.silent(), HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        target = endpoint(lab.shadow.addr4, 80)
        with Mirror(lab.node, shadow=target, capture=capture, limits={"hole_time": 0.1}) as tap:
            wire = Wire(lab, 80, 40_200)
            wire.open()

            def ask(path: str) -> None:
                wire.send("PA", b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
                while (response := wire.receive()).seq != wire.ack or not response.payload:
                    pass
                wire.ack = (wire.ack + len(response.payload)) & 0xFFFFFFFF
                wire.send("A")
                until(lambda: path in [got.uri for got in shadow.got], f"{path} at the shadow", PATIENCE)

            ask("/first")
            right = wire.ack
            for ahead in (1_000, 1 << 16, 1 << 20, 500 << 20):
                for number, data in enumerate((b"x", forged, forged)):  # the second would begin at a certain boundary
                    wire.ack = right + (1 << 29) + number
                    wire.send("PA", data, at=wire.seq + ahead + number * len(forged) + 1 - len(data))
            wire.ack = right
            time.sleep(1)  # ten times as long as holes were waited for
            ask("/second")
            right = wire.ack
            wire.ack += 1 << 29
            wire.send("PA", forged, at=wire.seq + (500 << 20))
            wire.send("R", at=wire.seq + (500 << 20) + len(forged))
            wire.ack = right
            ask("/third")
            wire.close()
            ledger = tap.final()
    paths = ["/first", "/second", "/third"]
    assert [got.uri for got in shadow.got] == [got.uri for got in production.got] == paths
    assert ledger["requests"]["mirrored"] == 3 and dropped(ledger) == {}
    assert ledger["bytes"]["filtered"] == {"outside": ledger["bytes"]["seen"] - ledger["bytes"]["mirrored"]}


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_handshake_that_nobody_completes_lets_nothing_into_the_shadow(fresh: Lab, where: str) -> None:
    """Production answers what is out of its window, with the number that whoever sent the SYN has chosen, under any
    address; the capture remembers it no more, for others came in its place (`places` of bpf/tap.c).
    """
    lab, forged = fresh, b"GET /forged HTTP/1.1\r\nHost: a\r\n\r\n"
    with (
        lab.client.silent(),
        HashSink(lab.node) as production,
        HashSink(lab.shadow) as shadow,
        Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80)) as tap,
        contextlib.ExitStack() as stack,
    ):
        wires = [Wire(lab, 80, port) for port in same_place(lab.client.addr4, lab.node.addr4, 9)]
        for wire in wires:
            stack.callback(wire.close, silently=True)
            wire.send("S")
            assert wire.receive().flags == "SA"
        first = wires[0]
        start = first.seq - (len(forged) if where == "before" else 0)
        if where == "before":
            first.send("PA", forged, at=start, damaged=True)  # the worker asks for production's word
            until(lambda: passed(lab, shadow), "that the worker goes on", PATIENCE)
        first.send("S", at=first.seq + (1 << 28))
        while (response := first.receive()).flags != "A":
            pass
        assert response.ack == first.seq
        if where == "behind":
            first.send("PA", forged, at=start)
        until(lambda: passed(lab, shadow), "that the worker goes on", PATIENCE)
        ledger = tap.final()
    assert {got.uri for got in shadow.got} == {got.uri for got in production.got}
    assert ledger["bytes"]["mirrored"] == ledger["bytes"]["seen"] - len(forged)


def overflows(host: Host) -> int:
    """How often a full accept queue turned something away there."""
    return host.counter("netstat", "TcpExt", "ListenOverflows")


def served(listener: socket.socket) -> str:
    """Take one connection and answer its request; the path."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(listener.gettimeout())
        path = connection.recv(1 << 16).split(b" ")[1].decode()
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    return path


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_connection_that_a_full_accept_queue_turns_away_is_mirrored_when_production_takes_it(capture: str) -> None:
    """All SYNs arrive before the queue is full, so each is answered; then it has room for two of the 20 connections.

    Production's kernel says nothing to the others, whose clients take them for open and send their requests again.
    """
    count = 20
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab(faults=Faults(delay=1.0, delay_s=0.03)))
        # If the relay stalls, both ends take it for the link's delay, and send again after many seconds.
        patience = 3 * PATIENCE
        lab.node.sysctl("ipv4.tcp_synack_retries", 7)
        with lab.node.enter():
            listener = stack.enter_context(socket.create_server((lab.node.addr4, 80), backlog=1))
        listener.settimeout(patience)
        shadow = stack.enter_context(HashSink(lab.shadow))
        target, limits = endpoint(lab.shadow.addr4, 80), {"accept_time": patience}
        tap = stack.enter_context(Mirror(lab.node, shadow=target, capture=capture, limits=limits))
        with lab.client.enter():
            clients = [stack.enter_context(socket.socket()) for _ in range(count)]
        with pytest.raises(ConnectionRefusedError), connect(lab.client, lab.node.addr4, 81):
            pass  # from here on the neighbours are known
        assert lab.relay is not None
        with lab.relay.held():
            for client in clients:
                client.setblocking(False)
                client.connect_ex((lab.node.addr4, 80))
        for number, client in enumerate(clients):
            client.settimeout(PATIENCE)
            select.select([], [client], [], PATIENCE)
            client.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        turned_away = overflows(lab.node)
        until(lambda: overflows(lab.node) >= turned_away + count, "all of it sent again", patience)
        shadow.wait_for(2, patience)
        mirrored = {got.uri for got in shadow.got}
        assert mirrored == {served(listener), served(listener)}
        others = {served(listener) for _ in range(count - 2)}
        shadow.wait_for(count, patience)
        ledger = tap.final()
        assert mirrored | others == {f"/{number}" for number in range(count)}
        assert sorted(got.uri for got in shadow.got) == sorted(mirrored | others)
        assert ledger["requests"]["seen"] == count
        assert dropped(ledger) == {}


@pytest.mark.parametrize("where", ["header", "body", "between", "disguise"])
def test_bytes_around_a_gap_are_never_joined(lab: Lab, where: str) -> None:
    """The tap loses a segment that production got: here the ring is full at that moment (the worker is stopped)."""
    filler = b"POST /fill HTTP/1.1\r\nHost: f\r\nContent-Length: %d\r\n\r\n" % (2 << 20)
    parts = {
        "header": [b"GET /torn HTTP/1.1\r\nHost: a\r\nX-One: ", b"lost\r\nX-Two: ", b"end\r\n\r\n"],
        "body": [b"POST /torn HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", b"def", b"ghi"],
        "between": [b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /lost HTTP/1.1\r\nHost: a\r\n\r\n", b""],
        "disguise": [
            b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST /torn HTTP/1.1\r\nHost: a\r\nContent-Length: 37\r\n\r\n",
            b"GET /never-sent HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    }[where]
    after = b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n"
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        small = Limits(**{**ROOM, "ring_bytes": 1 << 20})  # soon full
        with driven(lab.node, capture=Capture.EBPF, limits=small) as tap:  # nobody asks the worker while it is held
            with connect(lab.client, lab.node.addr4, 80) as client, connect(lab.client, lab.node.addr4, 80) as flood:
                client.sendall(parts[0])
                until(lambda: bool(tap.snapshot()["segments"]["seen"]), "its first part")
                with held(tap.snapshot()["worker"]["pid"]):
                    flood.sendall(filler + bytes(2 << 20))
                    for _ in range(600):  # and the rest, where a large record has no room any more
                        flood.sendall(b"GET /small HTTP/1.1\r\nHost: f\r\n\r\n")
                        flood.recv(1 << 16)
                    before = len(production.got)
                    client.sendall(parts[1])
                    if not parts[2]:
                        production.wait_for(before + 1, PATIENCE)
                until(lambda: passed(lab, shadow), "the tap to have read its ring", PATIENCE)
                if parts[2]:
                    client.sendall(parts[2])
                until(lambda: any(got.uri in ("/torn", "/lost") for got in [*production.got]), "production", PATIENCE)
                client.recv(1 << 16)

                def taken_up() -> bool:
                    """One shows the hole to the tap, another one is where it goes on."""
                    client.sendall(after)
                    client.recv(1 << 16)
                    return any(got.uri == "/after" for got in [*shadow.got])

                until(taken_up, "the next one", PATIENCE)
            ledger = settled(tap)
        sent = {(got.uri, got.head, got.sha256) for got in production.got}
        assert {(got.uri, got.head, got.sha256) for got in shadow.got if got.whole} <= sent
        assert not any(got.whole and got.uri in ("/torn", "/lost") for got in shadow.got)
        assert shadow.bad == [] or all("ended with" in bad for bad in shadow.bad)
        assert ledger["bytes"]["dropped"]["ring_full"] > 0
        assert ledger["segments"]["dropped"]["ring_full"] > 0


@pytest.mark.apart
@pytest.mark.parametrize("capture", CAPTURES)
def test_a_worker_without_cpu_for_a_second_loses_nothing(lab: Lab, capture: str) -> None:
    """However it captures, and however little comes meanwhile."""
    limits = Limits(drain_time=30.0)
    with Nginx(lab.node), Nginx(lab.shadow) as shadow:
        with driven(lab.node, capture=Capture(capture), limits=limits) as tap:  # nobody asks the worker meanwhile
            plan: dict[str, Any] = {"connections": 16, "rate": 500}
            assert load(lab.client, lab.node.addr4, requests=50, **plan).answered == 50
            shadow.wait_for(50, PATIENCE)
            with held(tap.snapshot()["worker"]["pid"]):  # for longer where the host stalls, but nothing comes then
                assert load(lab.client, lab.node.addr4, requests=500, **plan).answered == 500
            shadow.wait_for(550, PATIENCE)
            ledger = settled(tap)
        assert dropped(ledger) == {}
        assert ledger["requests"]["mirrored"] == 550


@pytest.mark.apart
@pytest.mark.parametrize("capture", CAPTURES)
def test_a_syn_flood_costs_counters(lab: Lab, capture: str) -> None:
    """Half-open connections from random sources: no flow, no connection to the shadow; real requests go on."""
    count = 70_000 if capture == "ebpf" else 20_000  # more than a table of flows holds
    with Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as tap:
            worker = worker_of(tap)
            start = resident_kb(worker)
            running = Load(lab.client, LoadPlan(address=lab.node.addr4, requests=10**9, connections=10, rate=300))
            flood(lab, count)
            until(lambda: production.requests() > 300, "real requests beside it", PATIENCE)
            result = running.stop()
            until(lambda: shadow.requests() >= 0.99 * result.answered, "them at the shadow", PATIENCE)
            grown = resident_kb(worker) - start
            ledger = tap.final()
        assert result.failed == 0
        assert ledger["events"]["kernel_syn"] > count * 0.9
        assert ledger["events"]["flows"] <= 10
        assert ledger["events"]["shadow_connects"] <= 10
        assert ledger["requests"]["mirrored"] >= 0.99 * result.answered
        assert grown <= 32 << 10


def flood(lab: Lab, count: int) -> None:
    """SYNs to port 80 of the node, each from another source."""
    far = lab.node.json("ip", "-j", "link", "show", "eth0")[0]["address"]
    near = lab.client.json("ip", "-j", "link", "show", "eth0")[0]["address"]
    frame = bytearray(bytes(Ether(src=near, dst=far) / IP(src="10.0.0.1", dst=lab.node.addr4) / TCP(dport=80)))
    with lab.client.enter():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sock:
        sock.bind(("eth0", 0x0800))
        for number in range(count):
            struct.pack_into("!I", frame, 26, 0x0B000000 + number)  # 11.x.y.z: routed nowhere
            struct.pack_into("!H", frame, 24, 0)
            struct.pack_into("!H", frame, 24, checksum(frame[14:34]))
            struct.pack_into("!H", frame, 34, 1024 + number % 60_000)
            struct.pack_into("!H", frame, 50, 0)
            pseudo = bytes(frame[26:34]) + b"\0\6\0\x14"
            struct.pack_into("!H", frame, 50, checksum(pseudo + frame[34:54]))
            with contextlib.suppress(OSError):
                sock.send(frame)


def checksum(data: bytes | bytearray) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


@pytest.fixture
def lab_with_small_buffers() -> Iterator[Lab]:
    """The kernel keeps 128 KiB a connection at most: all of them together less than is sent."""
    with Lab() as built:
        for host in (built.node, built.shadow):
            host.sysctl("ipv4.tcp_wmem", "4096 16384 131072")
            host.sysctl("ipv4.tcp_rmem", "4096 131072 131072")
        yield built


@pytest.mark.apart
@pytest.mark.parametrize(
    ("behaviour", "connections"),
    [
        *((each, 40) for each in (Behaviour(read=False), Behaviour(accept=False), Behaviour(read_rate=100.0))),
        (Behaviour(read=False), 1_000),
    ],
    ids=str,
)
def test_a_shadow_that_does_not_read(lab_with_small_buffers: Lab, behaviour: Behaviour, connections: int) -> None:
    """Memory is bounded, what does not fit is dropped by whole requests, the other tap goes on at full rate."""
    lab, size = lab_with_small_buffers, 50_000
    # 40 MB: more than the sockets and the stuck tap's queues hold, and less than the ring and the other's queues do.
    requests, queues = max(800, 5 * connections), 8 << 20
    few = Limits(**{**ROOM, "drain_time": 0.5, "queue_bytes": 1 << 20, "queues_bytes": queues})
    with (
        Nginx(lab.node),
        RecordingTcp(lab.shadow, 81, behaviour) as slow,
        Nginx(lab.shadow, ports=(80,)) as fine,
        driven(lab.node, shadow=endpoint(lab.shadow.addr4, 81), capture=Capture.EBPF, limits=few) as stuck,
        Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture="ebpf") as other,
    ):
        worker = stuck.snapshot()["worker"]["pid"]
        before = resident_kb(worker)
        result = load(lab.client, lab.node.addr4, requests=requests, connections=connections, rate=500, bodies=(size,))
        assert result.failed == 0
        fine.wait_for(requests, PATIENCE)
        serve(stuck, lambda: seen(stuck) == requests, "all of them read")
        grown = resident_kb(worker) - before
        ledger = settled(stuck)
        assert other.final()["requests"]["mirrored"] == requests
        assert len(slow.records) <= 1 + 2 * connections
    assert grown < (queues + (12 << 20)) >> 10  # what is queued, with its overhead, and what it reads at once
    assert set(ledger["requests"]["dropped"]) <= {"shadow_slow", "shutdown", "shadow_down"}
    assert ledger["requests"]["dropped"]["shadow_slow"] > 0


ENDLESS: Final = {
    "10 GB body": (b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", 0.0, 300_000_000),
    "endless headers": (b"HTTP/1.1 200 OK\r\nX: ", 0.0, 300_000_000),
    "chunks of one byte": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0.0, 0),
    "garbage": (b"\x00\xff\x00garbage", 0.0, 100_000_000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_responses_without_end_are_discarded(lab: Lab, name: str) -> None:
    start, drip, size = ENDLESS[name]

    def chunks(line: Line) -> None:
        line.receive()
        line.send(start)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            line.send(b"1\r\nx\r\n" * 1_000)

    shadow: Any = (
        RecordingTcp(lab.shadow, 80, Behaviour(flood=size, flood_start=start, drip=drip))
        if size
        else Talker(lab.shadow, 80, chunks)
    )
    few = Limits(drain_time=0.5)  # and an ordinary ring, which counts as memory
    with Nginx(lab.node), shadow:
        with driven(lab.node, capture=Capture.EBPF, limits=few) as tap:
            result = load(lab.client, lab.node.addr4, requests=200, connections=2, rate=200)
            assert (result.answered, result.failed) == (200, 0)
            until(lambda: not size or shadow.written > size / 4, "much to be written", PATIENCE)
            serve(tap, lambda: seen(tap) == 200, "all of them read")
            memory = resident_kb(tap.snapshot()["worker"]["pid"], peak=True)
            ledger = settled(tap)
        assert memory < 60 << 10
        assert ledger["requests"]["mirrored"] > 0


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(reset_after=40),
        Behaviour(close_after=40),
        Behaviour(response=b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", close_after=3_000),
        Behaviour(response=b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    ],
    ids=["reset in the request", "closed in the request", "answers and closes early", "says close, reads on"],
)
def test_a_shadow_that_leaves_in_the_middle(lab: Lab, behaviour: Behaviour) -> None:
    """Only that connection suffers; every request is sent once at most, and each is settled."""
    with Nginx(lab.node), RecordingTcp(lab.shadow, 80, behaviour) as shadow:
        few = Limits(**{**ROOM, "drain_time": 0.5})
        with driven(lab.node, capture=Capture.EBPF, limits=few) as tap:
            result = load(lab.client, lab.node.addr4, requests=300, connections=5, rate=300, bodies=(0, 2_000, 20_000))
            assert result.failed == 0
            serve(tap, lambda: seen(tap) == 300, "all of them read")
            ledger = settled(tap)
        content = b"".join(bytes(record.content) for record in shadow.records)
        for number in range(300):
            assert content.count(b"POST /%d HTTP" % number) <= 1
        account = ledger["requests"]
        # One that breaks off all of them without a byte is down.
        down = set() if behaviour.response else {"shadow_down"}
        assert set(account["dropped"]) <= {"shadow_closed", "shadow_slow", "shutdown"} | down


@pytest.mark.apart
def test_ten_thousand_connections_joined_in_mid_stream(lab: Lab) -> None:
    """Each is mirrored from its first whole request on, and nothing partial is sent."""
    count = 10_000
    with Nginx(lab.node) as production, HashSink(lab.shadow) as shadow:
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=count, rate=4_000)
        running = Load(lab.client, plan)
        production.wait_for(count + 5_000, PATIENCE)
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture="ebpf") as tap:
            begun = production.requests()
            production.wait_for(begun + 2 * count, PATIENCE)
            result = running.stop()
            assert result.failed == 0
            until(lambda: len({got.uri for got in [*shadow.got]}) > count, "many requests", PATIENCE)
            ledger = tap.final()
        assert shadow.bad == []
        assert all(got.whole for got in shadow.got)
        uris = [got.uri for got in shadow.got]
        assert len(uris) == len(set(uris)) == ledger["requests"]["mirrored"]
        assert set(dropped(ledger).get("bytes", {})) <= {"midstream"}
        numbers = sorted(int(uri[1:]) for uri in uris)
        assert numbers[-1] == result.sent - 1
        assert len(numbers) >= result.sent - begun - 2 * count - count


class Asked:
    """A server that answers at once, but requests for `/before` when it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def talk(self, line: Line) -> None:
        while head := line.receive_until(b"\r\n\r\n"):
            assert b"/before" not in head or self.go_on.wait(PATIENCE)
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def ask(sock: socket.socket, path: str) -> None:
    sock.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())


def given_up(tap: supervisor_tap.Tap) -> dict[str, int]:
    filtered: dict[str, int] = tap.snapshot()["bytes"]["filtered"]
    return filtered


@pytest.mark.parametrize("capture", [Capture.EBPF, Capture.PACKET])
def test_the_first_request_behind_the_response_to_one_from_before_the_tap(lab: Lab, capture: Capture) -> None:
    """Its own response is gone before the worker can ask for one, and nothing more comes."""
    asked = Asked()
    with (
        Talker(lab.node, 80, asked.talk),
        HashSink(lab.shadow) as shadow,
        connect(lab.client, lab.node.addr4, 80) as sock,
    ):
        ask(sock, "/before")
        with driven(lab.node, capture=capture, limits=Limits(accept_time=1.0)) as tap:
            asked.go_on.set()
            read_until(sock, b"\r\n\r\n")
            with held(tap.snapshot()["worker"]["pid"]):
                ask(sock, "/after")
                read_until(sock, b"\r\n\r\n")
            serve(tap, lambda: bool(shadow.got or given_up(tap)), "its fate")
            ledger = tap.stop()
    assert [got.uri for got in shadow.got] == ["/after"]
    assert ledger["requests"]["mirrored"] == 1 and ledger["bytes"]["filtered"] == {}


@pytest.mark.parametrize(("capture", "ports"), [(Capture.EBPF, 20_000), (Capture.PACKET, 30_000)])
def test_a_connection_whose_first_response_was_not_heard_is_heard_then(
    fresh: Lab, capture: Capture, ports: int
) -> None:
    """The one packet of production that is captured unasked was of another connection in its bucket.

    AF_PACKET's filter is in the worker: where a stall parts a request from its response, so that these are in two
    blocks of the ring, the worker asks for the response in time, and hears the first one too.
    """
    lab = fresh
    asked = Asked()
    first, second = same_bucket(lab.client.addr4, lab.node.addr4, ports)
    with Talker(lab.node, 80, asked.talk), HashSink(lab.shadow) as shadow, contextlib.ExitStack() as stack:
        other, sock = (stack.enter_context(connect(lab.client, lab.node.addr4, 80, own)) for own in (first, second))
        ask(other, "/before")
        with driven(lab.node, capture=capture, limits=Limits(accept_time=1.0)) as tap:
            asked.go_on.set()
            read_until(other, b"\r\n\r\n")
            worker = tap.snapshot()["worker"]["pid"]
            for number in range(3):
                with held(worker):
                    ask(sock, f"/{number}")
                    read_until(sock, b"\r\n\r\n")
                serve(tap, lambda: len(shadow.got) + len(given_up(tap)) > number, "its fate")  # noqa: B023
            ledger = tap.stop()
    heard = [got.uri for got in shadow.got] == ["/0", "/1", "/2"]
    assert heard or [got.uri for got in shadow.got] == ["/1", "/2"]
    assert set(ledger["bytes"]["filtered"]) == (set() if heard else {"not_accepted"})
    assert capture is Capture.PACKET or not heard


def same_place(client: str, server: str, count: int) -> list[int]:
    """Ports of the client whose handshakes share a place of the capture program (PLACES)."""
    ends = MAPPED + socket.inet_aton(client), MAPPED + socket.inet_aton(server)
    places: dict[int, list[int]] = {}
    for port in range(10_000, 1 << 16):
        place = flow_hash(flow_key(*ends, port.to_bytes(2), (80).to_bytes(2), 0), 0) % 16_384
        there = places.setdefault(place, [])
        there.append(port)
        if len(there) == count:
            return there
    raise AssertionError("no place has so many")


def same_bucket(client: str, server: str, start: int) -> tuple[int, int]:
    """Two ports of the client, behind `start`, whose connections have a byte of `wants` in common."""
    ends = MAPPED + socket.inet_aton(client), MAPPED + socket.inet_aton(server)
    ports: dict[int, int] = {}
    for port in range(start, 1 << 16):
        bucket = flow_hash(flow_key(*ends, port.to_bytes(2), (80).to_bytes(2), 0), 0) % BUCKETS
        if bucket in ports:
            return ports[bucket], port
        ports[bucket] = port
    raise AssertionError("no two")


def test_an_idle_connection_costs_little_and_goes_on_after_a_pause(lab: Lab) -> None:
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture="ebpf") as tap:
            socks = []
            for _ in range(500):
                with lab.client.enter():
                    socks.append(socket.create_connection((lab.node.addr4, 80)))
                socks[-1].sendall(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
            production.wait_for(500, PATIENCE)
            shadow.wait_for(500, PATIENCE)
            before = tap.cpu()
            time.sleep(3)
            used = tap.cpu() - before
            for sock in socks:
                sock.sendall(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")
            shadow.wait_for(1_000, PATIENCE)
            for sock in socks:
                sock.close()
            ledger = tap.final()
        assert used < 0.3
        assert ledger["requests"]["mirrored"] == 1_000
        assert ledger["events"]["shadow_connects"] == 500


def test_overlaps_on_the_wire_reach_the_shadow_as_production_read_them(fresh: Lab) -> None:
    """Frames of our own: disorder, a repetition with other bytes, data beyond a hole; the sequence wraps around."""
    lab = fresh
    read: list[bytes] = []

    def keep(line: Line) -> None:
        while piece := line.receive():
            read.append(piece)

    with lab.client.silent(), Talker(lab.node, 7000, keep), RecordingTcp(lab.shadow, 7001) as shadow:
        target = endpoint(lab.shadow.addr4, 7001)
        with Mirror(lab.node, port=7000, shadow=target, protocol="raw", capture="ebpf") as tap:
            wire = Wire(lab, 7000, 40_000, seq=0xFFFFFFF0)
            wire.open()
            base = wire.seq
            wire.send("PA", b"abcdefgh", at=base)
            wire.send("PA", b"XXXXklmn", at=base + 16)  # beyond a hole
            wire.send("PA", b"ZZZZYYYY", at=base + 4)  # half old with other bytes, half new
            wire.send("PA", b"12345678", at=base + 10)  # fills the hole, overlaps both
            wire.send("PA", b"end", at=base + 24)
            until(lambda: len(b"".join(read)) == 27, "production to read it all", PATIENCE)
            shadow.wait_for(27, PATIENCE)
            wire.close()
            ledger = tap.final()
        assert next(bytes(each.content) for each in shadow.records if each.length) == b"".join(read)
        assert ledger["bytes"]["seen"] == 8 * 4 + 3
        assert ledger["bytes"]["filtered"] == {"duplicate": 8 * 4 + 3 - 27}
