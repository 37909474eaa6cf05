# SPDX-License-Identifier: Apache-2.0
"""Both directions of the connections of a capture: dialogues of segments in, streams out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapmirror.events import ACK, FIN, PSH, RST, SYN, URG, DropReason, End, FilterReason, Gap
from tapmirror.ledger import Ledger
from tapmirror.packet import MAPPED, Header, show_client, show_server
from tapmirror.spec import Limits
from tapmirror.streams import LINGER, Event, Stream, StreamTable

CLIENT, SERVER = MAPPED + bytes([10, 0, 0, 1]), MAPPED + bytes([10, 0, 0, 2])
ISN = {True: 1000, False: 5000}


class Capture:
    """One table and what it said.  Offsets count from the first byte of each side."""

    def __init__(self, limits: Limits | None = None, ports: Sequence[int] = ()) -> None:
        self.ledger = Ledger()
        self.table = StreamTable(limits or Limits(), self.ledger, ports)
        self.now = 100.0
        self.after_response: list[bool] = []

    def take(self, events: Sequence[Event]) -> None:
        for stream, chunk, after_response in events:
            assert not isinstance(chunk, End)
            text = b"<%d>" % chunk.length if isinstance(chunk, Gap) else bytes(chunk)
            stream.book = (stream.book or b"") + text
            if not isinstance(chunk, Gap):
                self.ledger.bytes.mirrored += len(chunk)
                self.after_response.append(after_response)
        segments, size = self.table.held()
        assert self.ledger.segments.seen == self.ledger.segments.settled() + segments
        assert self.ledger.bytes.seen == self.ledger.bytes.settled() + size

    def put(
        self,
        flags: int,
        at: int,
        data: bytes = b"",
        ack: int = 0,
        *,
        client: bool = True,
        port: int = 40000,
        base: int | None = None,
        length: int | None = None,
    ) -> None:
        """A segment of one side; `ack` counts from the first byte of the other."""
        ends = [(CLIENT, port.to_bytes(2, "big")), (SERVER, b"\0\x50")]
        (source, source_port), (destination, destination_port) = ends if client else ends[::-1]
        seq = ((ISN[client] if base is None else base) + at) & 0xFFFFFFFF
        acked = (ISN[not client] + ack) & 0xFFFFFFFF if flags & ACK else 0
        size = len(data) if length is None else length
        header = Header(
            source, destination, source_port, destination_port, 0, 0, False, seq, acked, flags, size, memoryview(data)
        )
        self.take(self.table.feed(header, self.now))

    def shake(self, port: int = 40000, base: int = 1000) -> None:
        """A handshake."""
        self.put(SYN, -1, port=port, base=base)
        self.put(SYN | ACK, -1, ack=base - ISN[True], client=False, port=port)
        self.put(ACK, 0, port=port, base=base)

    def streams(self) -> list[tuple[bytes, bytes]]:
        """(client's bytes, server's bytes) of each connection, in the order of their ends."""
        self.take(self.table.close())
        assert self.table.held() == (0, 0) and not len(self.table)
        return [(c.client.book or b"", c.server.book or b"") for c in self.table.finished]


def test_a_segment_that_lies_about_its_length_harms_no_other_stream() -> None:
    """One that would never find room, for its length on the wire; nothing of it was captured."""
    capture = Capture()
    capture.shake()
    capture.put(ACK, 0, b"0123456789")
    capture.put(ACK, 20, b"c" * 10)
    capture.shake(port=50_000)
    capture.put(ACK, 5, b"", port=50_000, length=1 << 31)
    capture.put(ACK, 10, b"b" * 10)
    assert (b"0123456789" + b"b" * 10 + b"c" * 10, b"") in capture.streams()


def test_a_dialogue() -> None:
    capture = Capture()
    capture.shake()
    capture.put(PSH | ACK, 0, b"GET", 0)
    capture.put(PSH | ACK, 0, b"200 ", 3, client=False)
    capture.put(PSH | ACK, 4, b"OK", 3, client=False)
    capture.put(PSH | ACK, 3, b"PUT", 6)
    capture.put(FIN | ACK, 6, b"", 6)
    capture.put(FIN | ACK, 6, b"", 7, client=False)
    assert capture.streams() == [(b"GETPUT", b"200 OK")]
    assert capture.after_response == [True, True, False, True]


def test_an_urgent_byte_was_captured_too() -> None:
    """A tap leaves it out; a file's streams are what was sent."""
    capture = Capture()
    capture.shake()
    capture.put(PSH | ACK | URG | 2 << 16, 0, b"aUb")
    assert capture.streams() == [(b"aUb", b"")]


def test_what_follows_a_gap_is_no_turn() -> None:
    capture = Capture()
    capture.put(SYN, -1)
    capture.put(SYN | ACK, -1, b"", 0, client=False)
    capture.put(PSH | ACK, 0, b"abc", 0)
    capture.put(PSH | ACK, 6, b"ghi", 5)
    capture.put(PSH | ACK, 9, b"jkl", 9)
    assert capture.streams() == [(b"abc<3>ghijkl", b"")]
    assert capture.after_response == [True, False, True]


CLIENTS = {
    "the sender of the SYN": (SYN, False, 40000, ()),
    "the receiver of the SYN-ACK": (SYN | ACK, True, 40000, ()),
    "the higher port": (ACK, True, 40000, ()),
    "the higher port, seen second": (ACK, False, 40000, ()),
    "not the port that is known": (ACK, True, 10, (80,)),
    "the sender, where ports do not tell": (ACK, True, 80, ()),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_who_is_the_client(name: str) -> None:
    flags, from_client, port, ports = CLIENTS[name]
    capture = Capture(ports=ports)
    capture.put(flags, 0, b"x", client=from_client, port=port)
    capture.take(capture.table.close())
    (connection,) = capture.table.finished
    ends = (f"10.0.0.1:{port}", "10.0.0.2:80")
    wanted = ends[::-1] if name in ("the sender of the SYN", "the receiver of the SYN-ACK") else ends
    assert (show_client(connection.key), show_server(connection.key)) == wanted


def test_holes_stay_open_to_the_end() -> None:
    capture = Capture()
    capture.shake()
    capture.put(ACK, 0, b"a")
    capture.put(ACK, 3, b"d")
    capture.put(ACK, 0, b"", 100, client=False)  # an acknowledgement may stand before the data in a file
    capture.put(ACK, 1, b"bc")
    capture.put(ACK, 10, b"k")
    capture.put(FIN | ACK, 20)
    assert capture.streams() == [(b"abcd<6>k<9>", b"")]


def test_bytes_that_the_capture_cut_off() -> None:
    capture = Capture()
    capture.shake()
    capture.put(ACK, 0, b"abc", length=10)
    capture.put(ACK, 10, b"k")
    capture.put(ACK, 11, b"", length=5)
    assert capture.streams() == [(b"abc<7>k", b"")]
    assert capture.ledger.bytes.dropped[DropReason.CUT] == 12


def test_in_mid_stream() -> None:
    capture = Capture()
    capture.put(ACK, 500, b"abc", 700)
    capture.put(ACK, 700, b"xyz", 503, client=False)
    capture.put(ACK, 400, b"old")
    assert capture.streams() == [(b"abc", b"xyz")]
    (connection,) = capture.table.finished
    assert connection.client.midstream and connection.server.midstream


# what comes with the SYN, and behind it -> what the server read
EARLY: dict[str, tuple[list[tuple[str | int, bytes | int]], bytes]] = {
    "taken": ([("syn", b"early"), ("synack", 5), (5, b"more")], b"earlymore"),
    "not taken, sent again": ([("syn", b"early"), ("synack", 0), (0, b"early"), (5, b"more")], b"earlymore"),
    "not taken, something else is sent": ([("syn", b"early"), ("synack", 0), (0, b"other")], b"other"),
    "not taken": ([("syn", b"early"), ("synack", 0)], b""),
    "sent twice": ([("syn", b"early"), ("syn", b"early"), ("synack", 5)], b"early"),
    "without a reply in the capture": ([("syn", b"early"), (5, b"more")], b"earlymore"),
    "sent again too late": ([("syn", b"early"), ("synack", 5), (5, b"more"), ("syn", b"early")], b"earlymore"),
}


@pytest.mark.parametrize("name", EARLY)
def test_data_with_the_syn(name: str) -> None:
    steps, wanted = EARLY[name]
    capture = Capture()
    for what, value in steps:
        if what == "syn":
            assert isinstance(value, bytes)
            capture.put(SYN, -1, value)
            capture.now += 0.1
        elif what == "synack":
            assert isinstance(value, int)
            capture.put(SYN | ACK, -1, ack=value, client=False)
        else:
            assert isinstance(what, int) and isinstance(value, bytes)
            capture.put(ACK, what, value)
    # A SYN carries its data behind its own sequence number.
    assert [client for client, _ in capture.streams()] == [wanted]


def test_data_with_the_syn_ack() -> None:
    for acked, wanted in ((4, b"hellomore"), (0, b"")):
        capture = Capture()
        capture.put(SYN, -1)
        capture.put(SYN | ACK, -1, b"hell" if acked else b"hello", client=False)
        capture.put(ACK, 0, ack=acked)
        if acked:
            capture.put(ACK, 4, b"omore", client=False)
        assert capture.streams() == [(b"", wanted)]


def test_a_new_connection_after_the_end_of_the_old() -> None:
    capture = Capture()
    capture.shake()
    capture.put(FIN | ACK, 0, b"one")
    capture.put(FIN | ACK, 0, b"1", 4, client=False)
    capture.put(ACK, 0, b"one")  # late
    capture.shake(base=9000)
    capture.put(ACK, 0, b"two", base=9000)
    assert capture.streams() == [(b"one", b"1"), (b"two", b"")]
    assert capture.ledger.bytes.filtered[FilterReason.OUTSIDE] == 3


@pytest.mark.parametrize("answered", [True, False])
def test_a_new_connection_on_the_tuple_of_a_living_one(answered: bool) -> None:
    capture = Capture()
    capture.shake()
    capture.put(ACK, 0, b"one")
    capture.put(SYN, -1, base=9000)
    if answered:
        capture.put(SYN | ACK, 899_999, ack=8000, client=False)
    capture.put(ACK, 0, b"two", base=9000)
    capture.put(ACK, 3, b"!", base=9000)
    assert capture.streams() == [(b"one", b""), (b"two!", b"")]


def test_tuples_that_are_used_again_without_an_end() -> None:
    capture = Capture()
    for turn in range(3):
        for port in range(1_000, 3_000):
            base = (turn + 1) * 1_000_003 * port & 0xFFFFFFFF
            capture.shake(port=port, base=base)
            capture.put(ACK, 0, b"%d/%d" % (port, turn), port=port, base=base)
    wanted = {b"%d/%d" % (port, turn) for port in range(1_000, 3_000) for turn in range(3)}
    found = [client for client, _ in capture.streams()]
    assert (len(found), set(found)) == (6_000, wanted)


def test_a_forged_syn_changes_nothing() -> None:
    capture = Capture()
    capture.shake()
    capture.put(ACK, 0, b"one")
    capture.put(SYN, -1, base=9000)
    capture.put(ACK, 3, b"two")
    assert capture.streams() == [(b"onetwo", b"")]


def test_a_client_that_begins_anew_without_a_response() -> None:
    capture = Capture()
    capture.put(SYN, -1, base=100)
    capture.put(SYN, -1, base=200)
    capture.put(SYN | ACK, -1, ack=200 - ISN[True], client=False)
    capture.put(ACK, 0, b"x", base=200)
    assert capture.streams() == [(b"", b""), (b"x", b"")]


RESETS = {
    "in order": (True, 3, True),
    "elsewhere": (True, 4, False),
    "of the server": (False, 0, True),
    "of the server, elsewhere": (False, 1, False),
}


@pytest.mark.parametrize("name", RESETS)
def test_resets(name: str) -> None:
    client, at, taken = RESETS[name]
    capture = Capture()
    capture.shake()
    capture.put(ACK, 0, b"one")
    capture.put(RST, at, client=client)
    capture.put(ACK, 3, b"two")
    assert capture.streams() == [(b"one" if taken else b"onetwo", b"")]


def test_a_refused_connection_and_the_next_try() -> None:
    capture = Capture()
    capture.put(SYN, -1)
    capture.put(RST | ACK, -5000, client=False)
    capture.shake(base=2000)
    capture.put(ACK, 0, b"x", base=2000)
    assert capture.streams() == [(b"", b""), (b"x", b"")]


def test_an_ended_connection_is_told_of_after_a_while() -> None:
    capture = Capture()
    capture.shake()
    capture.put(FIN | ACK, 0, b"x")
    capture.put(FIN | ACK, 0, ack=2, client=False)
    capture.now += LINGER / 2
    capture.shake(port=40001)
    assert not capture.table.finished
    capture.now += LINGER
    capture.shake(port=40002)
    assert [c.client.book for c in capture.table.finished] == [b"x"]


def test_a_new_connection_when_the_old_one_is_just_told_of() -> None:
    capture = Capture()
    capture.shake()
    capture.put(FIN | ACK, 0, b"one")
    capture.put(FIN | ACK, 0, ack=4, client=False)
    capture.now += 2 * LINGER
    capture.put(SYN, -1, base=9000)
    capture.put(ACK, 0, b"two", base=9000)
    assert capture.streams() == [(b"one", b""), (b"two", b"")]


def test_at_the_bound_those_without_data_go_first() -> None:
    capture = Capture(msgspec.structs.replace(Limits(), flows=100))
    capture.shake()
    capture.put(ACK, 0, b"x")
    for port in range(1000, 3000):
        capture.put(SYN, -1, port=port)
    assert len(capture.table) == 100
    capture.put(ACK, 1, b"y")
    assert (b"xy", b"") in capture.streams()
    assert all(connection.whole for connection in capture.table.finished)


def test_at_the_bound_of_living_ones_the_longest_silent_goes() -> None:
    capture = Capture(msgspec.structs.replace(Limits(), flows=3))
    for port in (1001, 1002, 1003):
        capture.put(ACK, 0, b"x", port=port)
    capture.put(ACK, 1, b"y", port=1001)
    capture.put(ACK, 0, b"z", port=1004)
    assert [(show_client(c.key), c.whole) for c in capture.table.finished] == [("10.0.0.1:1002", False)]


@pytest.mark.parametrize("flows", [1, 4])
def test_at_the_bounds_of_memory_holes_are_given_up(flows: int) -> None:
    capture = Capture(msgspec.structs.replace(Limits(), flow_bytes=4_000, reassembly_bytes=10_000))
    for at in range(1, 100):
        for port in range(1000, 1000 + flows):
            capture.put(ACK, 0, b"", port=port)
            capture.put(ACK, 1000 * at, b"x" * 500, port=port)
            assert capture.table.held()[1] <= 10_000
    streams = capture.streams()
    assert len(streams) == flows
    for client, _ in streams:
        assert client == b"".join(b"<%d>" % (1000 if at == 1 else 500) + b"x" * 500 for at in range(1, 100))
    assert not capture.ledger.bytes.dropped.total()


def test_a_connection_with_itself() -> None:
    capture = Capture()
    capture.put(SYN, -1)
    header = Header(CLIENT, CLIENT, b"\0\x50", b"\0\x50", 0, 0, False, 1, 0, SYN, 0, memoryview(b""))
    capture.take(capture.table.feed(header, 100.0))
    capture.take(capture.table.feed(header._replace(flags=ACK, seq=2, length=1, payload=memoryview(b"x")), 100.0))
    assert len(capture.streams()) == 2


@settings(max_examples=200)
@given(st.data())
def test_any_slicing_order_and_repetition(data: st.DataObject) -> None:
    text = {True: bytes(range(97, 123)), False: bytes(range(65, 91))}
    base = data.draw(st.sampled_from([1000, 0xFFFFFFF5]))
    capture = Capture()
    capture.shake(base=base)
    segments = []
    for side in (True, False):
        places = sorted(data.draw(st.sets(st.integers(1, 25), max_size=8)))
        for start, end in zip([0, *places], [*places, 26], strict=True):
            segments.append((side, start, end))
            if data.draw(st.booleans()):
                segments.append((side, max(0, start - data.draw(st.integers(0, 5))), end))
    for side, start, end in data.draw(st.permutations(segments)):
        capture.put(ACK, start, text[side][start:end], client=side, base=base if side else None)
    assert capture.streams() == [(text[True], text[False])]


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([ACK, PSH | ACK, SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, 0, SYN | FIN, 63]),
            st.integers(-3, 20),
            st.binary(max_size=6),
            st.integers(-3, 20),
            st.booleans(),
            st.sampled_from([40000, 80]),
            st.integers(0, 8),
        ),
        max_size=40,
    )
)
def test_the_identity_holds_whatever_comes(steps: list[tuple[int, int, bytes, int, bool, int, int]]) -> None:
    capture = Capture(msgspec.structs.replace(Limits(), flows=2, flow_bytes=20, reassembly_bytes=30))
    for flags, at, payload, ack, client, port, more in steps:
        capture.put(flags, at, payload, ack, client=client, port=port, length=len(payload) + more // 7)
        capture.now += more
    capture.streams()


def test_streams_know_each_other() -> None:
    capture = Capture()
    capture.shake()
    capture.take(capture.table.close())
    (connection,) = capture.table.finished
    found: Stream = connection.client
    assert found.peer is connection.server and found.peer.peer is found
