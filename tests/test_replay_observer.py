# SPDX-License-Identifier: Apache-2.0
"""Times of what is sent and answered, by the kernel's stamps, on real connections."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lab import until
from tapmirror.events import END, NO_BODY, START, TUNNEL
from tapmirror.exchange import Unpaired
from tapmirror.framing import HeadMemory, ResponseFramer
from tapmirror.ledger import Ledger
from tapmirror.replay.observer import MSG_ERRQUEUE, OWED, SO_TIMESTAMPING, STAMPS, Clock, Observer
from tapmirror.replay.responses import LAZY_BYTES, Responses

WHOLE = START | END
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Talk:
    """In the place of a conversation: what it is told."""

    def __init__(self) -> None:
        self.asks: list[int] = []
        self.stamps: dict[int, int] = {}
        self.rtts: list[tuple[int, int]] = []
        self.responses: list[tuple[bytes, int]] = []
        self.skipped = 0
        self.skippable = 0
        self.timed = True
        self.owed: list[tuple[int, ...]] = []
        self.before: list[int] = []
        self.left: list[int] = []
        self.owing = False
        self.unfollowed = 0
        self.reasons: list[Unpaired] = []

    def follow(self, target: int, owed: tuple[int, ...], responses: int) -> None:
        self.owed.append(owed)
        self.before.append(responses)

    def owes(self, target: int) -> bool:
        return self.owing

    def unfollow(self, target: int) -> None:
        self.unfollowed += 1

    def left_out(self, target: int, number: int, reason: Unpaired) -> None:
        self.left.append(number)

    def times(self, number: int) -> bool:
        return self.timed

    def shadow_ended(self, target: int, time_ns: int, reset: bool) -> None:
        pass

    def asked(self, target: int, number: int, flags: int) -> bool:
        self.asks.append(number)
        return self.timed

    def sent(self, target: int, number: int, time_ns: int, rtt_ns: int, least_ns: int) -> None:
        self.stamps[number] = time_ns
        self.rtts.append((rtt_ns, least_ns))

    def shadow_data(self, target: int, data: Any, time_ns: int) -> None:
        self.responses.append((bytes(data), time_ns))

    def shadow_gap(self, target: int, size: int, time_ns: int) -> None:
        self.skipped += size

    def shadow_skippable(self, target: int) -> int:
        return self.skippable

    def given_up(self, target: int, reason: Unpaired) -> None:
        self.reasons.append(reason)


class Line:
    """A listener and its connection to a shadow that the test plays."""

    def __init__(self, family: int, address: str) -> None:
        with socket.socket(family, socket.SOCK_STREAM) as server:
            server.bind((address, 0))
            server.listen()
            self.sock = socket.create_connection(server.getsockname()[:2])
            self.shadow, _ = server.accept()
        self.sock.setblocking(False)
        self.talk = Talk()
        self.events: Counter[str] = Counter()
        talk: Any = self.talk
        self.observer = Observer(
            talk,
            0,
            Clock(),
            self.events,
            memoryview(bytearray(65_536)),
            memoryview(bytearray(1 << 20)),
        )
        self.observer.connected()
        self.framer = ResponseFramer(4096, HeadMemory(1 << 20))
        self.ledger = Ledger()
        self.responses = Responses(self.ledger, paced=False)
        self.lane: Any = SimpleNamespace(
            sock=self.sock,
            framer=self.framer,
            ready=True,
            lazy=False,
            finishing=False,
            switching=False,
            observer=self.observer,
            observing=None,
            sent=0,
            timed_lazy=False,
        )

    def ask(self, number: int, data: bytes = b"GET / HTTP/1.1\r\n\r\n", flags: int = WHOLE) -> int:
        self.observer.start_or_stop(self.lane, number)
        self.framer.expect(flags & TUNNEL)
        self.observer.asked(number, flags)
        return self.observer.send(self.lane, data, flags, float(number))

    def read(self) -> int:
        """What has come, when something has."""
        poll = select.poll()  # select(2) takes a stamp in the error queue for something to read
        poll.register(self.sock, select.POLLIN)
        until(lambda: any(found & select.POLLIN for _, found in poll.poll(0)), "something to read")
        return self.observer.read(self.lane, self.sock, self.responses)[1]

    def close(self) -> None:
        self.sock.close()
        self.shadow.close()


@pytest.fixture(scope="module")
def stamping() -> Iterator[None]:
    """The kernel stamps packets: it begins to a moment after the first socket asks for it (net_enable_timestamp)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, 1 << 3 | 1 << 4)
        sock.bind(("127.0.0.1", 0))

        def stamped() -> bool:
            sock.sendto(b"x", sock.getsockname())
            return bool(sock.recvmsg(1, 1000)[1])

        until(stamped, "stamps", 30.0)  # on a busy host the kernel may take seconds
        yield


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["4", "6"])
def line(request: pytest.FixtureRequest, stamping: None) -> Iterator[Line]:
    made = Line(*request.param)
    yield made
    made.close()


def test_stamps_lie_between_the_calls(line: Line) -> None:
    for number in (1, 2, 3):
        began = time.monotonic_ns()
        line.ask(number)
        sent = time.monotonic_ns()
        assert began < line.talk.stamps[number] <= sent
        line.shadow.recv(1000)
        line.shadow.sendall(OK)
        answered = time.monotonic_ns()
        assert line.read() == len(OK)
        data, stamp = line.talk.responses[-1]
        assert data == OK
        assert sent < stamp <= answered, "when it came, not when it was read"
    assert line.events == {}
    assert line.ledger.responses == {"2xx": 3}
    smoothed, least = line.talk.rtts[0]
    assert 0 < least <= smoothed


def test_who_is_put_off_the_processor_as_the_clocks_are_read_has_the_right_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both sides' times are of one clock only if the difference to that of the stamps is not wrong by so long."""
    monotonic_ns, put_off = time.monotonic_ns, [True]

    def late() -> int:
        if put_off:
            put_off.clear()
            time.sleep(0.05)
        return monotonic_ns()

    monkeypatch.setattr(time, "monotonic_ns", late)
    clock = Clock()
    assert not put_off
    monkeypatch.undo()
    before, now, after = monotonic_ns(), time.time_ns(), monotonic_ns()
    assert now - after - 20_000_000 < clock.ahead < now - before + 20_000_000


def test_what_is_no_http_is_counted_once(line: Line) -> None:
    line.ask(1)
    for _ in range(3):
        line.shadow.sendall(b"garbage")
        assert line.read() == 7
    assert line.ledger.responses == {"garbage": 1}
    assert len(line.talk.responses) == 3, "all of it is told"


def test_the_least_round_trip_is_the_networks_and_not_the_shadows(line: Line) -> None:
    """Who answers at once acknowledges with the response: the smoothed one has that time in it."""
    for number in range(1, 30):
        line.ask(number)
        line.shadow.recv(1000)
        time.sleep(0.01)
        line.shadow.sendall(OK)
        assert line.read() == len(OK)
    smoothed, least = line.talk.rtts[-1]
    assert 0 < 4 * least < smoothed


def test_the_stamp_is_of_the_last_byte(line: Line) -> None:
    line.ask(1, b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n", START)
    assert line.talk.stamps == {}
    between = time.monotonic_ns()
    assert line.observer.send(line.lane, b"ok", END, 1.0) == 2
    assert line.talk.stamps[1] > between


def test_requests_on_one_connection_have_stamps_of_their_own(line: Line) -> None:
    for number in range(1, 200):
        line.ask(number, b"x" * (number % 7 + 1))
    stamps = [line.talk.stamps[number] for number in range(1, 200)]
    assert stamps == sorted(set(stamps))


def test_bodies_that_do_not_matter_are_discarded_in_the_kernel(line: Line) -> None:
    line.ask(1)
    line.shadow.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n")
    line.read()
    line.shadow.sendall(b"x" * 100_000)
    line.talk.skippable = 300_000
    skipped = line.read()
    assert line.talk.skipped == skipped > 0
    assert line.framer.skippable() == 300_000 - skipped
    assert len(line.talk.responses) == 1


def test_no_request_waits_for_an_acknowledgement(line: Line) -> None:
    line.observer.start_or_stop(line.lane, 1)
    assert line.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def low_water(line: Line) -> int:
    return line.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


def test_a_request_that_is_not_timed_asks_for_no_stamp(line: Line) -> None:
    line.talk.timed = False
    line.ask(1)
    assert line.talk.stamps == {1: 1_000_000_000}, "the time of the loop"
    with pytest.raises(BlockingIOError):
        line.sock.recvmsg(0, 1000, MSG_ERRQUEUE)


def test_a_busy_connection_is_woken_at_once_only_for_responses_that_are_timed(line: Line) -> None:
    line.responses.settle_in(line.lane)
    line.talk.timed = False
    line.ask(1)
    assert (line.lane.lazy, low_water(line)) == (True, LAZY_BYTES)
    line.talk.timed = True
    line.ask(2)
    assert (line.lane.lazy, low_water(line)) == (False, 1)
    line.talk.timed = False
    line.ask(3)
    assert not line.lane.lazy, "the second one's response is not there yet"
    line.shadow.sendall(OK * 3)
    line.read()
    assert line.ledger.responses == {"2xx": 3}
    assert line.talk.responses[0][1] <= time.monotonic_ns()
    line.ask(4)
    assert (line.lane.lazy, low_water(line)) == (True, LAZY_BYTES)


def test_where_turns_wait_for_responses_each_wakes_us(line: Line) -> None:
    Responses(line.ledger, paced=True).settle_in(line.lane)
    line.talk.timed = False
    line.ask(1)
    assert not line.lane.lazy and low_water(line) == 1


def test_a_connection_that_is_about_to_end_is_not_made_to_wait(line: Line) -> None:
    line.responses.settle_in(line.lane)
    line.lane.finishing = True
    line.talk.timed = False
    line.ask(1)
    assert not line.lane.lazy


def test_requests_whose_stamps_do_not_come_are_bounded(line: Line) -> None:
    line.observer.start_or_stop(line.lane, 1)
    line.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, 0)  # as a driver that makes none
    for number in range(1, STAMPS + 3):
        line.ask(number)
    assert line.events == {"sends_without_stamp": 2}


def listens(line: Line) -> bool:
    observing = line.lane.observing is line.observer
    assert observing is bool(line.sock.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING))
    return observing


def test_it_listens_from_a_request_that_is_compared_until_its_response_has_come(line: Line) -> None:
    line.responses.settle_in(line.lane)
    line.observer.start_or_stop(line.lane, 0)
    assert not listens(line) and low_water(line) == LAZY_BYTES
    line.framer.expect(0)
    line.framer.expect(NO_BODY)
    line.talk.timed = False
    line.lane.sent = 5
    line.ask(1)
    assert listens(line)
    assert (line.talk.owed, line.talk.before) == ([(0, NO_BODY)], [3])
    assert low_water(line) == LAZY_BYTES
    line.talk.owing = True
    line.observer.start_or_stop(line.lane, 0)
    assert listens(line)
    line.talk.owing = False
    line.observer.start_or_stop(line.lane, 0)
    assert not listens(line) and line.talk.unfollowed == 1
    assert low_water(line) == LAZY_BYTES


def test_it_begins_to_listen_to_a_connection_that_the_shadow_has_just_reset(line: Line) -> None:
    line.shadow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.shadow.close()
    until(lambda: line.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x07", "the reset")  # TCP_CLOSE
    with pytest.raises(ConnectionResetError):
        line.ask(1)
    assert line.talk.asks == [1]


def test_it_does_not_begin_to_listen_amid_a_response(line: Line) -> None:
    line.framer.expect(0)
    line.framer.feed(memoryview(OK[:20]))
    line.observer.start_or_stop(line.lane, 5)
    assert not listens(line) and line.talk.left == [5] and line.talk.owed == []
    line.framer.feed(memoryview(OK[20:]))
    line.observer.start_or_stop(line.lane, 6)
    assert listens(line) and line.talk.owed == [()]


def test_stamps_are_of_their_requests_when_it_listens_again(line: Line) -> None:
    line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for number in (1, 2, 3):
        line.sock.send(b"x" * 1000)  # of no interest
        line.ask(number)
        assert not line.observer._awaited, "the stamp has come and was the request's"
        line.shadow.sendall(OK)
        line.read()
        line.observer.start_or_stop(line.lane, 0)
    assert line.events == {}


def test_a_busy_connection_does_not_owe_many_responses(line: Line) -> None:
    """However short they are."""
    line.responses.settle_in(line.lane)
    line.talk.timed = False
    for number in range(1, OWED + 1):
        line.ask(number)
    assert low_water(line) == LAZY_BYTES
    line.ask(OWED + 1)
    assert low_water(line) == 1
    line.shadow.sendall(OK * (OWED + 1))
    while line.framer.outstanding:
        line.read()
    line.ask(OWED + 2)
    assert low_water(line) == LAZY_BYTES
