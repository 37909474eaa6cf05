# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 by request, end to end: what a client said is what the shadow hears, and what could not be told is counted."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from e2e.driven import driven, serve, settled
from e2e.mirror import (
    PATIENCE,
    Line,
    Mirror,
    Talker,
    connect,
    dropped,
    endpoint,
    read_until,
)
from lab import Behaviour, HashSink, Lab, Nginx, RecordingTcp, body, load, unmarked, until

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

both = pytest.mark.usefixtures("each_capture")
"""For what depends on how it is captured; that what comes of both is the same is shown in `test_source_live`."""

CHUNKS: Final = b'3;ext="a;b"\r\nabc\r\n0\r\nTrailer: x\r\n\r\n'
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(("host", "wanted"), [(None, b"production.test"), ("shadow.test:81", b"shadow.test:81")])
def test_host_is_the_clients_or_the_one_asked_for(lab: Lab, host: str | None, wanted: bytes) -> None:
    options: dict[str, Any] = {} if host is None else {"host": host}
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), **options) as tap:
            assert load(lab.client, lab.node.addr4, requests=60, connections=3, bodies=(0, 5_000)).failed == 0
            shadow.wait_for(60, PATIENCE)
            ledger = tap.final()
        before, after = b"Host: production.test", b"Host: " + wanted
        sent = {got.uri: (got.head.replace(before, after), got.sha256) for got in production.got}
        assert {got.uri: (got.head, got.sha256) for got in shadow.got} == sent
        assert dropped(ledger) == {}


@both
@pytest.mark.parametrize("depth", [1, 8])
def test_chunked_and_pipelined(lab: Lab, depth: int) -> None:
    sizes = (0, 1, 10_000, 300_000)
    with HashSink(lab.node), HashSink(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80)) as tap:
            plan: dict[str, Any] = {"requests": 120, "connections": 4, "depth": depth, "bodies": sizes, "chunked": True}
            assert load(lab.client, lab.node.addr4, rate=200, **plan).failed == 0
            shadow.wait_for(120, PATIENCE)
            ledger = tap.final()
        assert shadow.bad == []
        assert {got.uri: got.sha256 for got in shadow.got} == {
            f"/{n}": hashlib.sha256(body(n, sizes[n % 4])).hexdigest() for n in range(120)
        }
        assert dropped(ledger) == {}
        assert ledger["answers"] == {"2xx": 120}


def test_a_head_split_anywhere_and_requests_of_every_kind(lab: Lab) -> None:
    requests = [
        b"GET /one HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"HEAD /two HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /three HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST /four HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%b" % CHUNKS,
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"DELETE /six HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ]
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80)) as tap:
            with connect(lab.client, lab.node.addr4, 80) as client:
                for number, request in enumerate(requests):
                    for byte in request:
                        client.send(bytes([byte]))
                    production.wait_for(number + 1, PATIENCE)
                    client.recv(1 << 16)
            shadow.wait_for(len(requests), PATIENCE)
            ledger = tap.final()
        assert [(got.method, got.uri, got.sha256, got.head) for got in shadow.got] == [
            (got.method, got.uri, got.sha256, got.head) for got in production.got
        ]
        assert dropped(ledger) == {}
        assert ledger["requests"]["mirrored"] == len(requests)


@both
def test_expect_continue(lab: Lab) -> None:
    """The client waits for production's 100; the shadow gets head and body, whatever it says itself."""
    with HashSink(lab.node), HashSink(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80)) as tap:
            with connect(lab.client, lab.node.addr4, 80) as client:
                for number in range(3):
                    client.sendall(
                        b"PUT /%d HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n" % number
                    )
                    assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 100")
                    client.sendall(b"nine byte")
                    assert read_until(client, b"ok\n").startswith(b"HTTP/1.1 200")
            shadow.wait_for(3, PATIENCE)
            ledger = tap.final()
        assert {got.sha256 for got in shadow.got} == {hashlib.sha256(b"nine byte").hexdigest()}
        assert dropped(ledger) == {}
        assert ledger["answers"] == {"2xx": 3}


UPGRADE: Final = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CONNECT: Final = b"CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\n\r\n"
SWITCHED: Final = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
TUNNELLED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
REFUSED: Final = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"


def switching(response: bytes, echo: bool) -> Callable[[Line], None]:
    """A conversation: one request, its response, then bytes."""

    def talk(line: Line) -> None:
        while line.receive_until(b"\r\n\r\n"):
            line.send(response)
            if echo:
                while piece := line.receive():
                    line.send(piece)

    return talk


@both
@pytest.mark.parametrize(
    ("request_head", "yes"), [(UPGRADE, SWITCHED), (CONNECT, TUNNELLED)], ids=["Upgrade", "CONNECT"]
)
@pytest.mark.parametrize("shadow_accepts", [True, False], ids=["accepted", "refused by the shadow"])
def test_what_leaves_http_goes_on_as_bytes(lab: Lab, request_head: bytes, yes: bytes, shadow_accepts: bool) -> None:
    frames = [b"\x81\x05hello", bytes(range(256)) * 40, b"GET /looks-like HTTP/1.1\r\n\r\n", b"\x88\x00"]
    with (
        Talker(lab.node, 80, switching(yes, True)),
        Talker(lab.shadow, 80, switching(yes if shadow_accepts else REFUSED, shadow_accepts)) as shadow,
    ):
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80)) as tap:
            with connect(lab.client, lab.node.addr4, 80) as client:
                client.sendall(request_head)
                assert read_until(client, b"\r\n\r\n") == yes
                for frame in frames:
                    client.sendall(frame)
                    got = b""
                    while len(got) < len(frame):
                        got += client.recv(1 << 16)
                    assert got == frame
            heard = shadow.ended(1)[0]
            ledger = tap.final()
        if shadow_accepts:
            assert unmarked(heard.data) == request_head + b"".join(frames)
            assert dropped(ledger) == {}
        else:
            assert unmarked(heard.data) == request_head
            assert set(ledger["bytes"]["dropped"]) == {"tunnel_refused"}
            assert ledger["bytes"]["dropped"]["tunnel_refused"] == sum(map(len, frames))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (b"GET /x HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "unparsed"),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "unparsed"),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", "unparsed"),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n", "unparsed"),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", "unparsed"),
        (b"GET /x HTTP/1.1\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", "oversize"),
        (b"GET /x HTTP/1.1\r\n" + b"a: b\r\n" * 100_000 + b"\r\n", "oversize"),
    ],
    ids=["two lengths", "chunk size", "negative", "2^64", "chunk of 2^64", "line of 1 MB", "100,000 fields"],
)
def test_after_what_cannot_be_told_the_next_request_is_found(lab: Lab, what: bytes, reason: str) -> None:
    """Production reads what it likes and answers; the client goes on with a request, which is mirrored."""

    def lenient(line: Line) -> None:
        size = 0
        while piece := line.receive():
            size += len(piece)
            if size in (len(what), len(what) + len(good)) or piece.endswith(b"good\r\n\r\n"):
                line.send(OK)

    good = b"GET /after HTTP/1.1\r\nHost: good\r\n\r\n"
    with Talker(lab.node, 80, lenient), RecordingTcp(lab.shadow, 80, Behaviour(response=OK)) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), protocol="http") as tap:
            with connect(lab.client, lab.node.addr4, 80) as client:
                client.sendall(what)
                assert client.recv(1 << 16) == OK
                client.sendall(good)
                assert client.recv(1 << 16) == OK
                until(
                    lambda: any(good in unmarked(each.content) for each in [*shadow.records]), "the good one", PATIENCE
                )
            ledger = tap.final()
        whole = b"".join(bytes(each.content) for each in shadow.records)
        assert whole.count(b"GET /after") == 1
        assert ledger["bytes"]["dropped"][reason] > 0
        # Nothing of the bad one looks whole: it was not sent at all, or its connection was reset.
        for record in shadow.records:
            assert unmarked(record.content) in (b"", good) or record.end == "reset"


def test_a_shadow_that_closes_after_each_response_gets_every_request_once(lab: Lab) -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def talk(line: Line) -> None:
        if line.receive_until(b"\r\n\r\n"):
            line.send(response)

    with Nginx(lab.node), Talker(lab.shadow, 80, talk) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80)) as tap:
            result = load(lab.client, lab.node.addr4, requests=200, connections=4, rate=200)
            assert (result.answered, result.failed) == (200, 0)
            ledger = tap.final()
        heard = shadow.ended(ledger["events"]["shadow_connects"])
        lines = [bytes(each.data).split(b" ")[1] for each in heard if each.data]
        assert len(lines) == len(set(lines))
        lost = sum(ledger["requests"]["dropped"].values())
        assert set(ledger["requests"]["dropped"]) <= {"shadow_closed"}
        assert ledger["requests"]["mirrored"] == 200 - lost
        assert len(lines) >= 200 - lost - ledger["answers"].get("unanswered", 0)
        assert lost <= 10


def test_a_slow_shadow_that_closes_after_so_many_responses_gets_every_request_once(lab: Lab) -> None:
    """What was sent ahead of its notice goes again, also before it is known after how many it comes."""
    count = 3_000
    with (
        Nginx(lab.node),
        RecordingTcp(lab.shadow, 81, Behaviour(response=OK, delay=0.002)),
        Nginx(lab.shadow, each=100, passes_to="127.0.0.1:81", log=True) as shadow,
        Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), loop_check=False) as tap,
    ):
        result = load(lab.client, lab.node.addr4, requests=count, connections=10)
        assert (result.answered, result.failed) == (count, 0)
        until(lambda: shadow.requests() >= count, "all of them at the shadow", PATIENCE)
        ledger = tap.final()
        targets = [each.uri for each in shadow.logged()]
    assert len(set(targets)) == len(targets) == count
    assert ledger["requests"]["mirrored"] == count
    assert ledger["answers"] == {"2xx": count}
    assert ledger["events"]["sent_again"] > 0


@both
def test_what_a_client_sends_on_a_connection_that_production_has_closed_is_not_for_the_shadow(lab: Lab) -> None:
    """As a pool that does not look: the request goes again on another connection, and production reads it once."""

    def asked(client: socket.socket, number: int) -> bytes:
        client.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        return read_until(client, b"ok\n")

    with Nginx(lab.node, each=2) as production, Nginx(lab.shadow, log=True) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), protocol="http", loop_check=False) as tap:
            for first in range(0, 40, 2):
                with connect(lab.client, lab.node.addr4, 80) as client:
                    assert asked(client, first) and asked(client, first + 1)
                    assert client.recv(1) == b""
                    with contextlib.suppress(OSError):
                        asked(client, first + 2)
            until(lambda: shadow.requests() >= 40, "all of them at the shadow", PATIENCE)
            ledger = tap.final()
        assert production.requests() == 40
        assert sorted(int(each.uri[1:]) for each in shadow.logged()) == list(range(40))
        assert ledger["requests"]["mirrored"] == 40
        assert ledger["bytes"]["filtered"]["outside"] > 0


def asks(lab: Lab, requests: list[bytes], response: bytes) -> None:
    """A client that waits for each response of production."""
    with connect(lab.client, lab.node.addr4, 80) as client:
        for request in requests:
            client.sendall(request)
            assert read_until(client, response) == response


def test_a_shadow_that_keeps_back_the_second_of_two_requests_gets_them_one_by_one(lab: Lab) -> None:
    """As gunicorn's threads: what came with a request is looked at when the next comes, or never."""
    done: list[bytes] = []
    each_time = 30
    asked = threading.Event()

    def talk(line: Line) -> None:
        assert asked.wait(PATIENCE)  # slower than production and its client together
        held = whole = b""
        while whole.count(b"\r\n\r\n") < each_time:  # then it closes, as if it had been idle for too long
            piece = line.receive_within(PATIENCE)
            if not piece:
                return
            whole += piece
            head, end, held = (held + piece).partition(b"\r\n\r\n")
            if end:
                done.append(head.split(b" ")[1])
                line.send(OK)

    def round_of(name: str) -> list[bytes]:
        targets = [f"/{name}/{each}".encode() for each in range(each_time)]
        for _ in range(2):
            asks(lab, [b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target for target in targets], OK)
        return targets * 2

    with (
        Talker(lab.node, 80, switching(OK, False)),
        Talker(lab.shadow, 80, talk) as shadow,
        driven(lab.node, loop_check=False) as tap,
    ):
        first = round_of("first")
        serve(tap, lambda: tap.snapshot()["requests"]["mirrored"] == len(first), "all of the first round")
        asked.set()
        shadow.ended(2)
        serve(tap, lambda: tap.snapshot()["events"].get("singly", 0) == 1, "that it is known")
        lost = len(first) - len(done)
        assert 0 < lost < len(first)
        second = round_of("second")
        serve(tap, lambda: len(done) >= len(first) - lost + len(second), "all of the second round")
        ledger = settled(tap)
    assert sorted(done[-len(second) :]) == sorted(second)
    assert ledger["answers"]["unanswered"] == lost
    assert ledger["events"]["singly"] == 1


def test_a_shadow_that_keeps_no_connection_of_http_1_0_gets_every_request(lab: Lab) -> None:
    """As uvicorn: it closes without a word, which is the word for HTTP/1.0."""
    keeps = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"
    count = 40

    def close(line: Line) -> None:
        line.receive_until(b"\r\n\r\n")
        time.sleep(0.002)
        line.send(OK)

    def keep(line: Line) -> None:
        while line.receive_until(b"\r\n\r\n"):
            line.send(keeps)

    with Talker(lab.node, 80, keep), Talker(lab.shadow, 80, close) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), loop_check=False) as tap:
            requests = [b"GET /%d HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n" % each for each in range(count)]
            asks(lab, requests[:1], keeps)
            shadow.ended(1)
            asks(lab, requests[1:], keeps)
            heard = shadow.ended(count)
            ledger = tap.final()
        assert {bytes(each.data) for each in heard} == set(requests)
        assert ledger["answers"] == {"2xx": count}
