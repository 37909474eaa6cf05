# SPDX-License-Identifier: Apache-2.0
"""Any protocol, as bytes: order, ends, servers that speak first, pacing by the responses."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from e2e.mirror import (
    PATIENCE,
    Line,
    Mirror,
    Talker,
    connect,
    dropped,
    endpoint,
)
from lab import Behaviour, Lab, Nginx, Recorded, RecordingTcp, Redis, body, load, redis_pipe, until

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

both = pytest.mark.usefixtures("each_capture")
"""For what depends on how it is captured; that what comes of both is the same is shown in `test_source_live`."""

ECHO = Behaviour(echo=True)
PATIENT = {"wait_time": PATIENCE}
"""Limits of a tap that waits for its shadow's response, however long the shadow gets no CPU."""


def echo(line: Line) -> None:
    while piece := line.receive():
        line.send(piece)


def mirrored(shadow: RecordingTcp) -> Recorded:
    """The only connection that carried something; the tap's probe at the start carries nothing."""
    found = [record for record in shadow.wait_ended(2, PATIENCE) if record.length]
    assert len(found) == 1
    return found[0]


@both
@pytest.mark.parametrize("protocol", ["raw", "auto"])
def test_a_half_close_is_carried_over(lab: Lab, protocol: str) -> None:
    sent = b"\0\1\2" + body(1, 200_000)
    with Talker(lab.node, 7000, echo), RecordingTcp(lab.shadow, 7001, ECHO) as shadow:
        target = endpoint(lab.shadow.addr4, 7001)
        with Mirror(lab.node, port=7000, shadow=target, protocol=protocol) as tap:
            with connect(lab.client, lab.node.addr4, 7000) as client:
                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)
                got = b""
                while piece := client.recv(1 << 16):
                    got += piece
            record = mirrored(shadow)
            ledger = tap.final()
        assert got == sent
        assert (bytes(record.content), record.end) == (sent, "eof")
        assert dropped(ledger) == {}
        assert ledger["bytes"]["mirrored"] == len(sent)


@both
def test_a_reset_is_carried_over(lab: Lab) -> None:
    with Talker(lab.node, 7000, echo), RecordingTcp(lab.shadow, 7001, ECHO) as shadow:
        target = endpoint(lab.shadow.addr4, 7001)
        with Mirror(lab.node, port=7000, shadow=target, protocol="raw") as tap:
            with connect(lab.client, lab.node.addr4, 7000) as client:
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"
                shadow.wait_for(5, PATIENCE)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            record = mirrored(shadow)
            ledger = tap.final()
        assert (bytes(record.content), record.end) == (b"hello", "reset")
        assert ledger["bytes"]["mirrored"] == 5


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_clients_that_leave_after_their_response_are_not_gone_for_a_shadow_that_is_slower(lab: Lab, how: str) -> None:
    """nginx gives up the requests of clients that are gone (499)."""
    with Nginx(lab.node), Nginx(lab.shadow, log=True, rate=800) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), protocol="raw") as tap:
            for _ in range(5):
                with connect(lab.client, lab.node.addr4, 80) as client:
                    client.sendall(b"GET /file/1k HTTP/1.1\r\nHost: a\r\n\r\n")
                    while not client.recv(4096).endswith(b"xxx"):
                        pass
                    if how == "RST":
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            until(lambda: len(shadow.logged()) == 5, "five responses of the shadow", PATIENCE)
            tap.final()
        assert [each.status for each in shadow.logged()] == [200] * 5


@both
def test_a_connection_that_is_over_before_the_shadows_stands_arrives_whole(lab: Lab) -> None:
    """Its end is a reset, as of a client that leaves bytes unread; production had read all it sent."""
    said = [b"hello %d" % number for number in range(20)]
    with Talker(lab.node, 7000, echo), RecordingTcp(lab.shadow, 7001) as shadow:
        target = endpoint(lab.shadow.addr4, 7001)
        with Mirror(lab.node, port=7000, shadow=target, protocol="raw", limits={"drain_time": 0.5}) as tap:
            for words in said:
                with connect(lab.client, lab.node.addr4, 7000) as client:
                    client.sendall(words)
                    assert client.recv(100) == words
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            shadow.wait_for(sum(map(len, said)), PATIENCE)
            ledger = tap.final()
        shadow.wait_ended(1 + len(said))  # and the probe
        heard = [(bytes(record.content), record.end) for record in shadow.records if record.content]
        assert sorted(heard) == [(words, "reset") for words in sorted(said)]
        assert dropped(ledger) == {}


@both
def test_a_server_that_speaks_first(lab: Lab) -> None:
    """The shadow is connected to when production's client is, not with its first word."""

    def greet(line: Line) -> None:
        line.send(b"220 ready\r\n")
        while line.receive_until(b"\r\n"):
            line.send(b"250 ok\r\n")

    with Talker(lab.node, 25, greet), Talker(lab.shadow, 25, greet) as shadow:
        target = endpoint(lab.shadow.addr4, 25)
        with Mirror(lab.node, port=25, shadow=target, protocol="raw") as tap:
            with connect(lab.client, lab.node.addr4, 25) as client:
                assert client.recv(100) == b"220 ready\r\n"
                until(lambda: bool(shadow.heard) or (tap.running() and _established(lab)), "a connection", PATIENCE)
                for word in (b"HELO x\r\n", b"QUIT\r\n"):
                    client.sendall(word)
                    assert client.recv(100) == b"250 ok\r\n"
            until(lambda: any(heard.data for heard in [*shadow.heard]), "the conversation's end", PATIENCE)
            ledger = tap.final()
        (heard,) = (heard for heard in shadow.heard if heard.data)  # the probe, which is greeted too, said nothing
        assert bytes(heard.data) == b"HELO x\r\nQUIT\r\n"
        assert dropped(ledger) == {}


def _at_shadow(lab: Lab, state: str) -> bool:
    """Whether the tap has a connection to the shadow in this state."""
    return bool(lab.node.run(["ss", "-Htn", "state", state, "dport", "=", ":7001"]).stdout.strip())


def _established(lab: Lab) -> bool:
    return bool(lab.shadow.run(["ss", "-Htn", "state", "established", "sport", "=", ":25"]).stdout.strip())


@both
def test_pacing_wait_holds_what_follows_until_the_shadow_answered(lab: Lab) -> None:
    """A shadow that answers late gets the second command only after it answered the first."""
    delay = 0.3
    early: list[bool] = []

    def slow(line: Line) -> None:
        while line.receive_until(b"\n"):
            time.sleep(delay)
            early.append(line.more_waits())
            line.send(b"done\n")

    def quick(line: Line) -> None:
        while line.receive_until(b"\n"):
            line.send(b"done\n")

    with Talker(lab.node, 7000, quick), Talker(lab.shadow, 7001, slow) as shadow:
        target = endpoint(lab.shadow.addr4, 7001)
        with Mirror(lab.node, port=7000, shadow=target, protocol="raw", pacing="wait", limits=PATIENT) as tap:
            with connect(lab.client, lab.node.addr4, 7000) as client:
                for number in range(5):
                    client.sendall(b"%d\n" % number)
                    assert client.recv(100) == b"done\n"
            heard = shadow.ended(1)[0]
            ledger = tap.final()
        assert bytes(heard.data) == b"0\n1\n2\n3\n4\n"
        assert early == [False] * 5
        assert dropped(ledger) == {}


def test_pacing_asap_does_not(lab: Lab) -> None:
    """The counterpart: without it the shadow finds the next command waiting."""
    early: list[bool] = []

    def slow(line: Line) -> None:
        while line.receive_until(b"\n"):
            if not early:
                until(line.more_waits, "the next command")
                early.append(True)
            line.send(b"done\n")

    def quick(line: Line) -> None:
        while line.receive_until(b"\n"):
            line.send(b"done\n")

    with Talker(lab.node, 7000, quick), Talker(lab.shadow, 7001, slow) as shadow:
        with Mirror(lab.node, port=7000, shadow=endpoint(lab.shadow.addr4, 7001), protocol="raw") as tap:
            with connect(lab.client, lab.node.addr4, 7000) as client:
                for number in range(3):
                    client.sendall(b"%d\n" % number)
                    assert client.recv(100) == b"done\n"
            shadow.ended(1)
            tap.final()
        assert early


@both
def test_redis_in_lock_step(lab: Lab) -> None:
    """Pacing `wait` with a real stateful server: commands one after the other, each with its response."""
    with Redis(lab.node) as production, Redis(lab.shadow) as shadow:
        target = endpoint(lab.shadow.addr4, 6379)
        with Mirror(lab.node, port=6379, shadow=target, protocol="raw", pacing="wait", limits=PATIENT) as tap:
            for number in range(20):
                assert redis_pipe(lab.client, lab.node.addr4, [("INCR", "n"), ("RPUSH", "l", number)]) == 2
            until(lambda: shadow.digest() == production.digest(), "equal data sets", PATIENCE)
            ledger = tap.final()
        assert dropped(ledger) == {}


LOCK_STEP = """
iface: eth0
port: 80
protocol: raw
capture: {capture}
pacing: wait
shadow: "{shadow}:80"
limits: {{queue_bytes: 3000000, ring_bytes: 67108864, drain_time: 30}}
"""


@both
@pytest.mark.alone  # it is about speed
def test_one_busy_connection_in_lock_step_does_not_fall_behind(lab: Lab) -> None:
    """20,000 exchanges at 3,000 a second, each after the one before.  The queue has room for those of four seconds: so
    long a busy host may hold the tap or the shadow.
    """
    with Nginx(lab.node), Nginx(lab.shadow) as shadow:
        with Mirror(lab.node, spec=LOCK_STEP.format(capture=Mirror.default, shadow=lab.shadow.addr4)) as tap:
            result = load(lab.client, lab.node.addr4, requests=20_000, connections=1, rate=3_000)
            assert (result.answered, result.failed) == (20_000, 0)
            ledger = tap.final()
        assert dropped(ledger) == {}
        assert shadow.requests() == 20_000


@pytest.mark.parametrize("behaviour", [Behaviour(reset_after=3), Behaviour(close_after=3)], ids=["reset", "close"])
def test_a_raw_stream_whose_shadow_left_is_given_up_and_counted(lab: Lab, behaviour: Behaviour) -> None:
    with Talker(lab.node, 7000, echo), RecordingTcp(lab.shadow, 7001, behaviour) as shadow:
        with Mirror(lab.node, port=7000, shadow=endpoint(lab.shadow.addr4, 7001), protocol="raw") as tap:
            with connect(lab.client, lab.node.addr4, 7000) as client:
                for number in range(50):
                    client.sendall(b"abc")
                    assert client.recv(100)
                    if number == 0:
                        shadow.wait_for(3)
                        until(lambda: not _at_shadow(lab, "established"), "that it has left")
                    elif number == 1:  # who only said that it sends nothing more is found out by sending
                        until(lambda: not _at_shadow(lab, "close-wait"), "that there is nobody")
            ledger = tap.final()
        assert [record.length for record in shadow.records if record.length] == [3], "once"
        sent = 3 if behaviour.reset_after else 6
        assert (ledger["bytes"]["seen"], ledger["bytes"]["mirrored"]) == (150, sent)
        assert ledger["bytes"]["dropped"] == {"shadow_closed": 150 - sent}
