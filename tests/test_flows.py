# SPDX-License-Identifier: Apache-2.0
"""The flow table: dialogues of segments in, stream events out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tapmirror.events import (
    ACCEPTED,
    ACK,
    FIN,
    FROM_SERVER,
    MULTIPATH,
    PSH,
    RST,
    SYN,
    UNACCEPTED,
    URG,
    DropReason,
    End,
    FilterReason,
    Gap,
    Segment,
    ServerFin,
)
from tapmirror.flows import BEGINS, SCAN, Event, FlowTable
from tapmirror.late import LATE
from tapmirror.ledger import Ledger
from tapmirror.spec import Limits
from tapmirror.standing import AWAITED

LIMITS = Limits()


def key(port: int = 40000) -> bytes:
    prefix = bytes(10) + b"\xff\xff"
    return (
        prefix + bytes([10, 0, 0, 1]) + prefix + bytes([10, 0, 0, 2]) + port.to_bytes(2, "big") + b"\x00\x50" + bytes(4)
    )


class Dialogue:
    """One table and what it said; offsets count from the first byte of each side."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.ledger = Ledger()
        self.table = FlowTable(limits, 0, self.ledger)
        self.now = 100.0
        self.out: dict[int, bytes] = {}
        self.after_response: list[bool] = []
        self.given = [0, 0]

    def take(self, events: Sequence[Event]) -> None:
        for flow, chunk, after_response in events:
            if isinstance(chunk, ServerFin):
                continue
            if isinstance(chunk, Gap):
                text = b"<%d>" % chunk.length
            elif isinstance(chunk, End):
                text = b"!" if chunk.reset else b"."
            else:
                text = bytes(chunk)  # type: ignore[arg-type]
                self.after_response.append(after_response)
            self.out[flow.id] = self.out.get(flow.id, b"") + text

    def put(self, flags: int, at: int, data: bytes = b"", ack: int = 0, port: int = 40000, base: int = 1000) -> None:
        if data and not flags & FROM_SERVER:
            self.given[0] += 1
            self.given[1] += len(data)
        segment: Segment = (key(port), flags, (base + at) & 0xFFFFFFFF, 5000 + ack, len(data), memoryview(data), 0)
        self.feed(segment)

    def feed(self, segment: Segment) -> None:
        """As the pipeline does."""
        if not segment[1] & BEGINS:
            self.take(self.table.feed(segment, self.now))
            return
        events, waited = self.table.accept(segment, self.now)
        self.take(events)
        for each in waited:
            self.take(self.table.feed(each, self.now))

    def accept(self, port: int = 40000, base: int = 1000) -> None:
        self.put(ACCEPTED, 0, port=port, base=base)

    def server(
        self, ack: int, flags: int = ACK, at: int = 0, base: int = 1000, port: int = 40000, length: int = 0
    ) -> None:
        segment: Segment = (key(port), FROM_SERVER | flags, 5000 + at, (base + ack) & 0xFFFFFFFF, length, b"", 0)
        self.take(self.table.feed(segment, self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(3):
            self.take(self.table.expire(self.now))

    @property
    def text(self) -> bytes:
        """What the only flow gave."""
        assert len(self.out) <= 1
        return b"".join(self.out.values())

    def unsettled(self) -> int:
        """Segments given that the ledger does not know and the table does not hold."""
        return self.given[0] - self.ledger.segments.settled() - self.table.held()[0]


def test_a_whole_connection() -> None:
    d = Dialogue()
    d.accept()
    d.put(PSH | ACK, 0, b"abc")
    d.put(PSH | ACK, 3, b"def", ack=10)
    d.put(FIN | ACK, 6)
    d.server(7, FIN | ACK)
    assert d.text == b"abcdef."
    assert d.after_response == [False, True]
    assert len(d.table) == 0
    assert d.unsettled() == 0


def test_second_segment_of_one_turn_is_no_turn() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"abc", ack=4)
    d.put(ACK, 3, b"def", ack=4)
    d.put(ACK, 6, b"ghi", ack=9)
    assert d.after_response == [True, False, True]


@pytest.mark.parametrize("late", [False, True])
def test_what_follows_a_gap_is_no_turn(late: bool) -> None:
    """The lost bytes may have acknowledged the same; `late`: it comes only after production acknowledged them."""
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"abc", ack=4)
    if late:
        d.put(ACK, 9, b"", ack=9)
        d.put(ACK, 10, b"x", ack=4)
        d.server(6)
        d.put(ACK, 6, b"ghi", ack=9)
    else:
        d.put(ACK, 6, b"ghi", ack=9)
        d.server(6)
    d.put(ACK, 9, b"jkl", ack=12)
    assert d.text.startswith(b"abc<3>ghijkl")
    assert d.after_response[:3] == [True, False, True]


def test_hole_asks_for_acknowledgements_and_becomes_a_gap_by_them() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"abc")
    d.put(ACK, 6, b"ghi", ack=5)
    assert d.table.ack_requests == [(key(), True)]
    d.server(3)
    assert d.text == b"abc"
    d.server(9)
    assert d.text == b"abc<3>ghi"
    assert d.table.ack_requests[:2] == [(key(), True), (key(), False)]


@pytest.mark.parametrize("flags", [ACK | PSH, ACK | FIN])
@pytest.mark.parametrize("ahead", [1, 1_000, 1 << 16, 1 << 20, 500 << 20])
def test_what_waits_behind_a_hole_goes_on_only_by_the_word_of_production(ahead: int, flags: int) -> None:
    """Anybody may have written it, and production have discarded it: nothing of the real client's is lost by it."""
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"abc")
    d.put(flags, 3 + ahead, b"GET /forged")
    for _ in range(9):
        d.server(3)
        d.wait(LIMITS.hole_time)
    assert d.text == b"abc"
    d.put(ACK, 3, b"d")
    d.put(ACK, 3, b"de")
    d.server(5)
    d.put(ACK, 5, b"fgh")
    assert d.text.startswith(b"abcd") and (ahead == 1 or d.text == b"abcdefgh")
    assert d.unsettled() == 0


@pytest.mark.parametrize("acknowledged", [-(1 << 24) - 1, (1 << 24) + 1, 1 << 30, 1 << 31])
def test_what_acknowledges_other_than_production_sent_is_none_of_the_connection(acknowledged: int) -> None:
    """As production's kernel discards it (RFC 5961, 5.2)."""
    d = Dialogue()
    d.accept()
    d.put(ACK, 1, b"XX", ack=acknowledged)
    d.put(ACK | FIN, 9, ack=acknowledged)
    d.put(ACK, 4, b"e")
    d.server(0)
    assert d.table.held() == (1, 1)
    for at in range(5):
        d.put(ACK | PSH, at, b"XXX", ack=acknowledged)
        d.put(ACK | FIN, at, ack=acknowledged)
    d.put(ACK, 0, b"abcd")
    d.put(ACK, 4, b"efghi", ack=acknowledged)  # nothing waits any more: production's number is not known
    assert d.text == b"abcdefghi"
    assert d.ledger.bytes.filtered == {FilterReason.OUTSIDE: 2 + 5 * 3, FilterReason.DUPLICATE: 1}
    assert d.unsettled() == 0


def test_what_production_sent_before_and_since_may_be_acknowledged() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"ab")
    d.server(1)  # it was not asked: nothing waits
    d.put(ACK, 1, b"bc", ack=1 << 29)
    d.put(ACK, 4, b"e", ack=(1 << 24) + 2)
    d.feed((key(), FROM_SERVER | ACK, 5000, 1003, 2, b"", 0))
    d.put(ACK, 5, b"f", ack=2 - (1 << 24))
    d.server(3, at=1 << 30)
    d.put(ACK, 6, b"g", ack=1 << 30)
    d.put(ACK, 3, b"d", ack=1 << 30)
    assert d.text == b"abcdefg"


@pytest.mark.parametrize(("spoke", "text"), [(False, b"abcd!"), (True, b"abc!")])
def test_a_reset_behind_what_waits_counts_once_production_has_spoken(spoke: bool, text: bytes) -> None:
    """Until then that may be somebody else's, as the reset: two segments, and numbers that anybody can guess."""
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"abc")
    d.put(ACK, 500 << 20, b"x")
    if spoke:
        d.server(3)
    d.put(RST, (500 << 20) + 1)
    d.put(ACK, 3, b"d")
    d.put(RST, 4)
    assert d.text == text
    assert d.unsettled() == 0


def test_no_reset_behind_forged_data_that_production_has_discarded() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 1_000, b"x")
    d.put(ACK, 2_000, b"x", ack=1 << 30)
    d.server(0)
    d.put(RST, 2_001)
    d.put(ACK, 0, b"abc")
    assert d.text == b"abc"
    d.put(RST, 1_001)
    assert d.text == b"abc!"


@pytest.mark.parametrize("others", [49, 50])
def test_old_holes_make_room_where_it_is_short(others: int) -> None:
    d = Dialogue(msgspec.structs.replace(LIMITS, reassembly_segments=100))
    d.accept()
    d.put(ACK, 1, b"b")
    d.wait(LIMITS.hole_time)
    d.accept(port=2)
    for n in range(others - 1):
        d.put(ACK, 2 * n + 1, b"x", port=2)
    d.wait(0.1)
    full = others == 50
    assert ((key(), False) in d.table.ack_requests) is full
    d.put(ACK, 0, b"a")
    assert d.text == (b"a" if full else b"ab")
    assert d.ledger.bytes.dropped == ({DropReason.MEMORY_LIMIT: 1} if full else {})
    assert d.unsettled() == 0


def test_old_holes_leave_room_for_a_connection_joined_in_mid_stream() -> None:
    """Just below the bound too: it would be refused for as long as they wait."""
    d = Dialogue(msgspec.structs.replace(LIMITS, reassembly_bytes=1 << 18))
    d.accept()
    d.put(ACK, 1, bytes((1 << 17) - 2))
    d.wait(LIMITS.hole_time)
    d.put(ACK, 0, b"abc", port=2)
    d.server(3, port=2)
    assert b"".join(d.out.values()) == b"abc"
    assert d.unsettled() == 0


def test_midstream_waits_for_production() -> None:
    d = Dialogue()
    d.put(ACK, 0, b"abc")
    d.put(ACK, 3, b"def")
    assert d.text == b""
    assert d.table.held() == (2, 6)
    d.server(3)
    assert d.text == b"abcdef"
    assert next(iter(d.table)).midstream
    d.put(ACK, 6, b"ghi")
    assert d.text == b"abcdefghi"
    assert d.unsettled() == 0


@pytest.mark.parametrize("late", [False, True])
def test_a_keep_alive_probe_with_a_byte_does_not_hide_that_a_request_begins_behind_it(late: bool) -> None:
    """Windows sends one on a connection that is idle; `late`: production's word comes behind both."""
    d = Dialogue()
    d.put(ACK, -1, b"\0")
    if not late:
        d.server(ack=0)
    d.put(ACK | PSH, 0, b"GET /")
    if late:
        d.server(ack=5)
    d.put(ACK, 5, b" HTTP")
    assert d.text == b"\0GET / HTTP"
    assert d.after_response == [True, True, False]
    assert d.unsettled() == 0


@pytest.mark.parametrize("ahead", [0, -1, 25, -(1 << 20), (1 << 20) + 1, (1 << 30) - 1])
def test_midstream_is_not_confirmed_by_a_response_to_what_production_does_not_take(ahead: int) -> None:
    """RFC 5961: who knows a connection's addresses and ports can write anything, and production answers each segment
    beyond its window with the number that it waits for.
    """
    d = Dialogue()
    for _ in range(20):
        d.put(ACK | PSH, 0, b"GET /forged HTTP/1.1\r\n\r\n")
        d.server(ahead)
        d.wait(LIMITS.accept_time / 10)
    d.wait(LIMITS.accept_time)
    assert d.text == b""
    assert d.table.held() == (0, 0)
    assert d.unsettled() == 0


def test_midstream_of_a_fast_upload() -> None:
    """Production's word comes behind much of it, or is about what was sent long before."""
    d = Dialogue()
    size = 1 << 16
    for number in range(32):
        d.put(ACK, number * size, bytes(size))
    d.server(-(1 << 23))
    assert d.text == b""
    d.server(32 * size)
    assert len(d.text) == 32 * size
    assert d.unsettled() == 0


@pytest.mark.parametrize("forged", [(1 << 24) + 6, 1 << 30, -(1 << 30)])
def test_a_forged_segment_hides_nothing_of_a_connection_joined_in_mid_stream(forged: int) -> None:
    """Once production answered it."""
    d = Dialogue()
    d.put(ACK | PSH, forged, b"GET /forged HTTP/1.1\r\n\r\n")
    d.server(0)
    d.put(ACK | PSH, 0, b"abc")
    d.server(3)
    assert d.text == b"abc"
    assert d.ledger.bytes.filtered == {FilterReason.NOT_ACCEPTED: 24}
    assert d.unsettled() == 0


@pytest.mark.parametrize("before", [-20, -(1 << 20), -(1 << 23)])
def test_midstream_goes_on_where_production_has_all_that_the_client_sent(before: int) -> None:
    """Of what was sent before, not all was seen; or somebody else had written it."""
    d = Dialogue()
    d.put(ACK | PSH, before, b"GET /forged")
    for at in range(0, 3 << 20, 1 << 15):
        d.put(ACK, at, bytes(1 << 15))
    d.server((3 << 20) - 100)
    assert d.text == b""
    d.server(3 << 20)
    d.put(ACK | PSH, 3 << 20, b"GET / HTTP/1.1\r\n\r\n", ack=100)
    assert d.text == b"GET / HTTP/1.1\r\n\r\n"
    d.wait(LIMITS.accept_time)
    assert d.table.held() == (0, 0)
    assert d.unsettled() == 0


def test_midstream_goes_on_at_once_with_what_production_waits_for() -> None:
    """It spoke before the client did, and nobody has to be asked."""
    d = Dialogue()
    d.server(0, length=9)
    d.put(ACK | PSH, 0, b"abc")
    assert d.text == b"abc" and d.after_response == [True]
    d.put(ACK | PSH, 3, b"def")
    d.put(FIN | ACK, 6)
    d.server(7, FIN | ACK)
    assert d.text == b"abcdef."
    assert d.ledger.events["flows_joined"] == 1
    assert d.table.ack_requests == []
    assert d.unsettled() == 0


@pytest.mark.parametrize(
    ("flags", "at", "base"), [(ACK, -1, 1000), (ACK, 1, 1000), (FIN | ACK, 0, 1000), (RST, 0, 1000), (ACK, 0, 2000)]
)
def test_midstream_production_waits_for_other_data_or_for_none(flags: int, at: int, base: int) -> None:
    d = Dialogue()
    d.server(0, length=9)
    d.server(0, flags, base=base, length=9 if flags == ACK else 0)
    d.put(ACK | PSH, at, b"abc")
    assert d.text == b"" and d.table.ack_requests == [(key(), True)]
    d.server(at + 3)
    assert d.text == b"abc"


def test_a_bare_acknowledgement_tells_of_no_connection() -> None:
    """Whoever sent a SYN under another's address gets one, without any connection."""
    d = Dialogue()
    d.server(0)
    d.put(ACK | PSH, 0, b"abc")
    d.wait(LIMITS.accept_time)
    assert d.text == b""
    assert d.ledger.bytes.filtered == {FilterReason.NOT_ACCEPTED: 3}


@pytest.mark.parametrize(("at", "length", "text"), [(0, 0, b"abc"), (1, 0, b""), (-1, 0, b""), (1, 9, b"abc")])
def test_midstream_goes_on_by_a_bare_acknowledgement_where_the_client_knows_productions_number(
    at: int, length: int, text: bytes
) -> None:
    """One of a handshake comes to whoever sent the SYN, but he does not see production's number, and has to guess."""
    d = Dialogue()
    d.put(ACK | PSH, 0, b"abc")
    d.server(3, at=at, length=length)
    assert d.text == text


@pytest.mark.parametrize("why", ["idle", "share"])
def test_a_connection_that_was_followed_goes_on_where_it_was_left(why: str) -> None:
    """Unless something came meanwhile."""
    for missed in (0, 1):
        d = Dialogue()
        d.accept()
        d.put(ACK | PSH, 0, b"abc")
        if why == "idle":
            d.wait(LIMITS.flow_idle)
        else:
            d.table.drop_above(0, d.now)
            d.table.drop_above(1 << 32, d.now)
        assert len(d.table) == 0
        d.put(ACK | PSH, 3 + missed, b"def", ack=1)
        assert b"".join(d.out.values()).replace(b"!", b"") == (b"abc" if missed else b"abcdef")


def test_what_production_says_behind_a_connections_end_is_not_of_the_next() -> None:
    d = Dialogue()
    d.accept()
    d.put(FIN | ACK, 0)
    d.server(1, FIN | ACK)
    d.server(1, length=9)
    d.wait(2 * LATE)
    d.put(ACK | PSH, 1, b"abc")
    assert d.text == b"."


def test_midstream_that_was_not_heard_in_time_is_heard_the_next_time() -> None:
    """Its bucket is wanted until production says something: of the same, or to what comes next."""
    for early in (True, False):
        d = Dialogue()
        d.put(ACK, 0, b"abc")
        d.wait(LIMITS.accept_time)
        assert d.table.ack_requests == [(key(), True)] and len(d.table) == 0
        if early:
            d.server(3)
            assert d.table.ack_requests == [(key(), True)]
            d.server(3, length=9)
            assert d.table.ack_requests == [(key(), True), (key(), False)]
        d.put(ACK, 3, b"def")
        d.server(6)
        assert d.text == b"def"
        assert d.table.ack_requests == [(key(), True), (key(), False)]
        assert d.ledger.bytes.filtered == {FilterReason.NOT_ACCEPTED: 3}
        assert d.unsettled() == 0


def test_a_new_connection_ends_the_wait_for_the_old_one() -> None:
    d = Dialogue()
    d.put(ACK, 0, b"abc")
    d.wait(LIMITS.accept_time)
    d.accept(base=900_000)
    assert d.table.ack_requests == [(key(), True), (key(), False)]


def test_of_many_that_are_waited_for_the_first_is_given_up() -> None:
    d = Dialogue()
    for port in range(AWAITED + 1):
        d.put(ACK, 0, b"abc", port=10_000 + port)
    for _ in range(AWAITED // SCAN + 1):
        d.wait(LIMITS.accept_time)
    assert len(d.table) == 0
    wanted = dict(d.table.ack_requests)
    assert [k for k, asked in wanted.items() if not asked] == [key(10_000)]


def test_midstream_refused_by_production() -> None:
    d = Dialogue()
    d.put(ACK, 0, b"abc")
    d.server(3, RST)
    assert d.text == b""
    assert d.ledger.bytes.filtered[FilterReason.NOT_ACCEPTED] == 3
    assert len(d.table) == 0


def test_midstream_that_production_never_answers() -> None:
    d = Dialogue()
    d.put(ACK, 0, b"abc")
    d.wait(LIMITS.accept_time + 0.1)
    assert d.text == b""
    assert d.ledger.bytes.filtered[FilterReason.NOT_ACCEPTED] == 3
    assert d.unsettled() == 0


@pytest.mark.parametrize("flags", [RST, RST | ACK, RST | SYN, FIN | SYN | RST | PSH | ACK])
def test_reset_by_the_client_needs_the_next_sequence_number(flags: int) -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"abc")
    d.put(flags, 100)
    assert d.text == b"abc"
    d.put(flags, 3, b"def")
    assert d.text == b"abc!"
    d.put(ACK, 3, b"ghi")
    assert d.text == b"abc!"
    assert d.unsettled() == 0


def test_reset_by_production_discards_what_waits() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 3, b"def")
    d.server(0, RST | ACK)
    assert d.text == b"!"
    assert d.ledger.bytes.filtered[FilterReason.OUTSIDE] == 3


def test_late_retransmission_is_not_a_new_connection() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"abc")
    d.put(FIN | ACK, 3)
    d.server(4, FIN | ACK)
    d.put(ACK, 0, b"abc")
    d.server(4)
    d.wait(2 * LATE)
    assert d.text == b"abc."
    assert d.ledger.bytes.filtered[FilterReason.DUPLICATE] == 3
    assert d.unsettled() == 0


def test_new_connection_on_the_tuple_of_one_that_never_ended() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"old")
    d.put(ACK, 9, b"waits")
    d.accept(base=900_000)
    d.put(ACK, 0, b"new", base=900_000)
    d.put(ACK, 3, b"OLD")
    assert sorted(d.out.values()) == [b"new", b"old!"]


def test_repeated_handshake_report_changes_nothing() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"abc")
    d.accept()
    d.put(ACK, 3, b"def")
    assert d.text == b"abcdef"


@pytest.mark.parametrize(("taken", "want"), [(True, b"earlydata"), (False, b"data")])
def test_data_on_the_syn(taken: bool, want: bytes) -> None:
    d = Dialogue()
    d.put(SYN, -1, b"early")
    d.put(ACCEPTED, 5 if taken else 0)
    d.put(ACK, 5 if taken else 0, b"data")
    assert d.text == want
    assert d.unsettled() == 0


def test_data_on_syns_that_production_never_answers_is_bounded() -> None:
    d = Dialogue()
    for port in range(5000):
        d.put(SYN, -1, b"early", port=port)
    assert d.table.held()[0] <= 1024
    assert d.unsettled() == 0


def test_data_on_a_syn_that_production_never_answers_is_not_held_to_the_end() -> None:
    d = Dialogue()
    d.put(SYN, -1, b"early")
    d.wait(LIMITS.accept_time - 0.1)
    assert d.table.held() == (1, 5)
    d.wait(0.1)
    assert d.table.held() == (0, 0)
    assert d.ledger.bytes.filtered == {FilterReason.NOT_ACCEPTED: 5}


def test_data_on_the_syn_of_a_connection_that_fell_out_of_the_share() -> None:
    d = Dialogue()
    d.put(SYN, -1, b"early")
    d.table.drop_above(0, d.now)
    d.put(ACCEPTED, 5)
    assert (d.table.held(), d.text) == ((0, 0), b"")
    assert d.ledger.bytes.dropped == {DropReason.SHARE: 5}


def test_full_table_refuses_and_counts() -> None:
    d = Dialogue(msgspec.structs.replace(LIMITS, flows=2))
    for port in (1, 2, 3):
        d.accept(port=port)
    d.put(ACK, 0, b"abc", port=3)
    assert len(d.table) == 2
    assert d.ledger.events["flows_refused"] == 1
    assert d.ledger.bytes.dropped[DropReason.TABLE_FULL] == 3


def test_idle_flow_is_forgotten_and_joins_again() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"abc")
    d.wait(LIMITS.flow_idle + 1)
    assert d.text == b"abc!"
    d.wait(2 * LATE)
    d.put(ACK, 3, b"def")
    d.server(6)
    assert sorted(d.out.values()) == [b"abc!", b"def"]
    assert d.ledger.events["flows_joined"] == 1


def test_midstream_is_not_confirmed_by_what_the_client_says() -> None:
    """Whoever a firewall drops can acknowledge what was never sent; production's word counts."""
    d = Dialogue()
    for ack in range(5):
        d.put(ACK, 0, b"abc", ack=ack)
        d.put(ACK, 3, b"def", ack=ack)
    assert d.text == b""
    d.server(6, at=4)
    assert d.text == b"abcdef"


def test_what_is_refused_for_want_of_room_is_no_less_tentative() -> None:
    d = Dialogue(msgspec.structs.replace(LIMITS, reassembly_segments=2))
    for port in (1, 2):
        d.put(ACK, 0, b"x", port=port)
    for _ in range(3):
        d.put(ACK, 0, b"GET", port=3)
    assert d.out == {}
    assert d.unsettled() == 0


@pytest.mark.parametrize("bound", ["reassembly_bytes", "reassembly_segments"])
def test_what_nobody_accepted_leaves_half_of_the_room_to_accepted_connections(bound: str) -> None:
    d = Dialogue(msgspec.structs.replace(LIMITS, **{bound: 100}))
    for n in range(300):
        d.put(ACK, n // 3, b"x", port=1_000 + n % 3)
    assert d.table.held() == (50, 50)
    d.accept()
    for n in range(1, 51):
        d.put(ACK, n, b"b")
    d.put(ACK, 0, b"a")
    assert d.text == b"a" + b"b" * 50
    assert d.unsettled() == 0


def test_fins_out_of_order_are_bounded_and_cost_what_they_cost() -> None:
    d = Dialogue(msgspec.structs.replace(LIMITS, flow_segments=100))
    d.accept()
    for n in range(5_000):
        d.put(FIN | ACK, 1_000 + 3 * n)
    (flow,) = d.table
    assert len(flow.rx._queue) == flow.rx._count == d.table._memory.entries == 100
    assert d.table.held() == (0, 0)
    d.put(RST, 0)
    assert d.table._memory.entries == 0


def test_an_evicted_flow_is_told_of() -> None:
    d = Dialogue(msgspec.structs.replace(LIMITS, flows=1))
    d.accept(port=1)
    d.put(ACK, 0, b"GE", port=1)
    d.wait(20)
    d.accept(port=2)
    assert next(iter(d.out.values())) == b"GE!"


def test_a_flood_pushes_out_itself_and_no_busy_flow() -> None:
    """Connections that are accepted and say nothing, ten times what the table holds, beside old ones that speak."""
    d = Dialogue(msgspec.structs.replace(LIMITS, flows=1_000))
    real = range(600)  # more than one look goes through
    for port in real:
        d.accept(port=port)
        d.put(ACK, 0, b"hello", port=port)
        flow = d.table.get(key(port))
        assert flow is not None
        d.table.framed(flow)
    for port in range(1_000, 11_000):
        d.now += 0.05
        d.accept(port=port)
    assert d.ledger.events["flows_idle"] + d.ledger.events["flows_refused"] == 10_000 - 400
    assert d.ledger.events["flows_idle"] > 9_000
    assert all(d.table.get(key(port)) is not None for port in real)
    d.now += LIMITS.accept_time
    before = d.ledger.events["flows_idle"]
    for port in range(20_000, 20_400):
        d.accept(port=port)
    assert d.ledger.events["flows_idle"] == before + 400, "room for all of them, at once"


def test_a_flood_of_segments_without_a_handshake_leaves_room_for_accepted_connections() -> None:
    """They come from anywhere, and a firewall discards them: production says nothing to them, not even RST."""
    d = Dialogue(msgspec.structs.replace(LIMITS, flows=1_000))
    for port in range(1_000, 3_000):
        d.put(ACK, 0, b"GET /", port=port)
    assert len(d.table) == 500
    assert d.ledger.segments.dropped[DropReason.TABLE_FULL] == 1_500
    for port in range(500):
        d.accept(port=port)
        d.put(ACK, 0, b"hello", port=port)
    assert d.ledger.events["flows_refused"] == 0
    assert d.ledger.segments.mirrored == 500
    d.wait(LIMITS.accept_time)
    d.put(ACK, 0, b"GET /", port=4_000)
    assert d.ledger.events["flows_joined"] == 501, "there is room again"


def test_room_is_made_by_those_that_are_silent_in_their_order() -> None:
    d = Dialogue(msgspec.structs.replace(LIMITS, flows=3))
    for port in (1, 2, 3):
        d.accept(port=port)
    d.now += LIMITS.accept_time
    d.put(ACK, 0, b"G", port=1)  # its protocol is not known yet, but it lives
    d.accept(port=4)
    d.accept(port=5)
    d.accept(port=6)
    assert [d.table.get(key(port)) is not None for port in (1, 2, 3, 4, 5, 6)] == [
        True,
        False,
        False,
        True,
        True,
        False,
    ]
    assert d.ledger.events["flows_refused"] == 1


def test_time_outs_are_acted_on_a_few_at_a_time() -> None:
    d = Dialogue()
    for port in range(3_000):
        d.put(ACK, 0, b"x", port=port)
    d.now += 60
    before = len(d.table)
    for _ in range(3):
        d.table.expire(d.now)
        assert before - len(d.table) <= 2 * SCAN
        before = len(d.table)
    for _ in range(20):
        d.table.expire(d.now)
    assert len(d.table) == 0 and d.unsettled() == 0


def test_what_waits_behind_the_fin_of_a_connection_joined_in_mid_stream_is_let_go() -> None:
    d = Dialogue()
    d.put(FIN | ACK, 0, b"a")
    d.put(ACK, 2, b"b")
    d.server(2, FIN | ACK)
    assert d.text == b"a."
    assert d.table.held() == (0, 0)
    assert d.unsettled() == 0


def test_a_segment_without_an_acknowledgement_is_none() -> None:
    d = Dialogue()
    d.put(PSH, 0, b"X")
    assert not len(d.table)
    d.accept()
    d.put(0, 0, b"XX")
    d.put(ACK, 0, b"abc")
    assert d.text == b"abc"
    assert d.ledger.bytes.filtered[FilterReason.OUTSIDE] == 3
    assert d.unsettled() == 0


def test_an_urgent_byte_leaves_the_stream() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK | URG | 2 << 16, 0, b"abc")
    d.put(ACK, 3, b"d")
    assert d.text == b"acd"
    assert d.ledger.bytes.filtered[FilterReason.URGENT] == 1
    assert d.unsettled() == 0


def test_a_reset_after_the_end_of_the_client_must_be_in_order_too() -> None:
    for at, text in ((1, b"abc."), (3, b"abc.!"), (4, b"abc.!")):
        d = Dialogue()
        d.accept()
        d.put(ACK | FIN, 0, b"abc")
        d.put(RST, at)
        assert d.text == text


def test_nothing_follows_on_a_connection_that_is_over() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 0, b"abc")
    d.server(3, RST | ACK)
    d.put(ACK, 3, b"def", ack=1)
    d.put(ACK, 6, b"ghi", ack=2)
    assert d.text == b"abc!"
    assert d.ledger.bytes.filtered[FilterReason.OUTSIDE] == 6
    assert d.unsettled() == 0


def test_50_000_tuples_that_are_used_again_without_an_end() -> None:
    """No byte of one client's connection in another's stream; what waits behind a hole goes with its connection."""
    d = Dialogue()
    texts: dict[int, bytes] = {}
    for turn in range(3):
        for port in range(10_000, 60_000):
            base = (turn + 1) * 1_000_003 * port & 0xFFFFFFFF
            d.accept(port=port, base=base)
            text = b"%d/%d" % (port, turn)
            d.put(ACK, 0, text, port=port, base=base)
            d.put(ACK, 500, b"behind a hole", port=port, base=base)
            flow = d.table.get(key(port))
            assert flow is not None
            texts[flow.id] = text
    assert len(texts) == 150_000
    for ident, text in texts.items():
        assert d.out[ident] in (text, text + b"!")
    assert len(d.table) == 50_000
    d.table.close()
    assert d.unsettled() == 0


@pytest.mark.parametrize(("most", "reason"), [(32, DropReason.FLOW_LIMIT), (64, DropReason.MEMORY_LIMIT)])
def test_tiny_segments_behind_holes_that_never_fill_harm_only_themselves(most: int, reason: DropReason) -> None:
    """Every second byte, on 100 flows: segments are bounded, of each flow and of all; one in order loses nothing."""
    limits = msgspec.structs.replace(LIMITS, flow_segments=most, reassembly_segments=4_096)
    d = Dialogue(limits)
    for port in (1, *range(1_000, 1_100)):
        d.accept(port=port)
    for at in range(100):
        for port in range(1_000, 1_100):
            d.put(ACK, 2 + 2 * at, b"x", port=port)
        d.put(ACK, 3 * at, b"abc", port=1)
        assert d.table.held()[0] <= 4_096
    busy = d.table.get(key(1))
    assert busy is not None
    assert d.out[busy.id] == b"abc" * 100
    assert d.ledger.segments.dropped == {reason: 100 * 100 - min(most * 100, 4_096)}
    assert d.unsettled() == 0


def test_closing_accounts_for_what_is_held() -> None:
    d = Dialogue()
    d.accept()
    d.put(ACK, 5, b"abc")
    d.put(ACK, 0, b"xyz", port=2)
    d.put(SYN, 0, b"early", port=3)
    d.table.close()
    assert d.table.held() == (0, 0)
    assert d.unsettled() == 0
    assert d.ledger.bytes.dropped[DropReason.SHUTDOWN] == 11


STEP = st.tuples(
    st.sampled_from(
        [
            *(ACK, ACK | PSH, FIN | ACK, RST, SYN, ACCEPTED),
            *(ACK | UNACCEPTED, FIN | ACK | UNACCEPTED, RST | ACK | UNACCEPTED, URG | ACK | UNACCEPTED),
            *(FROM_SERVER | ACK, FROM_SERVER | RST, FROM_SERVER | FIN | ACK),
        ]
    ),
    st.integers(-3, 30),
    st.binary(max_size=8),
    st.integers(0, 3),
    st.sampled_from([1, 2, 3]),
    st.floats(0, 5),
)


@given(st.lists(STEP, max_size=60))
@settings(max_examples=300, deadline=None)
def test_identity_after_every_segment(steps: list[tuple[int, int, bytes, int, int, float]]) -> None:
    d = Dialogue(msgspec.structs.replace(LIMITS, flows=2, flow_bytes=10, flow_segments=3))
    for flags, at, data, ack, port, pause in steps:
        d.wait(pause)
        if flags & FROM_SERVER:
            d.server(at, flags & 0xFF, port=port)
        else:
            d.put(flags, at, b"" if flags & ACCEPTED else data, ack=ack, port=port)
        assert d.unsettled() == 0
        assert len(d.table) <= 2
        delivered = sum(len(text.replace(b".", b"").replace(b"!", b"")) for text in d.out.values())
        assert delivered >= 0
    d.table.close()
    assert d.table.held() == (0, 0)
    assert d.unsettled() == 0


def test_what_a_client_sends_before_production_accepted_waits_for_that() -> None:
    d = Dialogue()
    d.put(PSH | ACK | UNACCEPTED, 0, b"abc")
    d.put(PSH | ACK | UNACCEPTED, 3, b"def")
    d.put(PSH | ACK | UNACCEPTED, 0, b"abc")  # sent again, as production discarded it
    assert (d.text, d.table.held(), d.table.impatient) == (b"", (2, 6), True)
    d.accept()
    d.put(PSH | ACK, 6, b"ghi", ack=5)
    d.put(FIN | ACK, 9)
    assert d.text == b"abcdefghi."
    assert d.after_response == [False, False, True]
    assert d.ledger.bytes.filtered == {FilterReason.DUPLICATE: 3}
    assert d.unsettled() == 0 and not d.table.impatient
    assert d.table.ack_requests == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ACK, ACK | PSH, FIN | ACK, RST | ACK, URG | ACK | 3 << 16]),
            st.integers(-2, 12),
            st.binary(max_size=6),
        ),
        max_size=8,
    ),
    st.integers(0, 8),
)
@example([(ACK, 0, b""), (RST | ACK, 6, b""), (ACK, 0, bytes(6)), (RST | ACK, 6, b"")], 4)
def test_what_waited_amounts_to_the_same_as_if_the_acceptance_had_come_first(
    steps: list[tuple[int, int, bytes]], waiting: int
) -> None:
    assume(not steps or not steps[0][0] & RST)  # of which production says nothing more
    first, later = Dialogue(), Dialogue()
    first.accept()
    for number, (flags, at, data) in enumerate(steps):
        first.put(flags, at, data)
        if number == waiting:
            later.accept()
        later.put(flags | (UNACCEPTED if number < waiting else 0), at, data)
    if len(steps) <= waiting:
        later.accept()
    assert (first.out, first.after_response) == (later.out, later.after_response)
    assert first.ledger.segments.settled() == later.ledger.segments.settled()
    assert first.ledger.bytes.settled() == later.ledger.bytes.settled()
    assert first.table.held() == later.table.held()
    assert later.unsettled() == 0


def test_who_sends_what_production_may_not_know_takes_no_room_from_connections_that_it_accepts() -> None:
    d = Dialogue(Limits(reassembly_bytes=1 << 16))
    for port in range(50_000, 50_005):
        d.put(ACK, 0, bytes(1 << 13), port=port)
    d.accept(port=50_006)
    for number in range(4):
        d.put(ACK, 1 + 8_193 * number, bytes(1 << 13), port=50_006)
    assert d.ledger.bytes.dropped == {DropReason.MEMORY_LIMIT: 1 << 13}
    d.put(PSH | ACK | UNACCEPTED, 0, b"GET")
    d.accept()
    assert d.text == b"GET"


def test_what_production_turns_away_goes_nowhere() -> None:
    """It is silent where its accept queue is full, or sends an RST (net.ipv4.tcp_abort_on_overflow)."""
    d = Dialogue()
    for port in (40000, 40001):
        d.put(PSH | ACK | UNACCEPTED, 0, b"abc", port=port)
    d.server(0, RST)
    assert d.table.held() == (1, 3)
    d.wait(LIMITS.accept_time)
    assert d.text == b""
    assert d.ledger.bytes.filtered == {FilterReason.NOT_ACCEPTED: 6}
    assert d.unsettled() == 0


def test_what_another_processor_saw_before_the_acceptance_that_is_told_already_goes_on() -> None:
    d = Dialogue()
    d.accept()
    d.put(PSH | ACK, 0, b"abc")
    d.put(PSH | ACK | UNACCEPTED, 3, b"def")
    d.put(FIN | ACK | UNACCEPTED, 6)
    assert d.text == b"abcdef."


@pytest.mark.parametrize("flags", [SYN | UNACCEPTED, SYN | ACK, SYN | ACK | UNACCEPTED])
@pytest.mark.parametrize("known", [False, True])
def test_the_data_of_a_syn_that_production_did_not_answer_is_none_of_the_connection(flags: int, known: bool) -> None:
    d = Dialogue()
    if known:  # an earlier one
        d.accept(base=90_000)
    d.put(flags, -3, b"xy")
    d.put(PSH | ACK | UNACCEPTED, 0, b"abc", ack=900)
    d.put(ACCEPTED, 0, ack=900)
    assert b"".join(d.out.values()).removeprefix(b"!") == b"abc"
    assert d.ledger.bytes.filtered == {FilterReason.OUTSIDE: 2}
    assert d.unsettled() == 0


@pytest.mark.parametrize("marked", [ACCEPTED, MULTIPATH])
def test_what_waits_cannot_be_forgotten(marked: int) -> None:
    d = Dialogue()
    with pytest.raises(ValueError, match="accept"):
        d.table.feed((key(40000), marked, 1000, 5000, 0, b"", 0), d.now)


@pytest.mark.parametrize("turned_away", [False, True])
def test_the_next_connection_with_the_same_ports_waits_beside_one_whose_end_was_not_seen(turned_away: bool) -> None:
    d = Dialogue()
    d.accept()
    d.put(PSH | ACK, 0, b"abc")
    d.put(PSH | ACK | UNACCEPTED, 3, b"new", ack=900)
    assert d.text == b"abc"
    if turned_away:
        d.server(6, RST, at=900)
        assert d.text == b"abc!"
        assert d.ledger.bytes.filtered == {FilterReason.NOT_ACCEPTED: 3}
    else:
        d.feed((key(40000), ACCEPTED, 1003, 5900, 0, b"", 0))
        assert d.out == {1: b"abc!", 2: b"new"}
    assert d.unsettled() == 0


def test_what_waits_goes_with_the_share_and_with_the_tap() -> None:
    d = Dialogue()
    d.put(PSH | ACK | UNACCEPTED, 0, b"abc")
    assert d.table.drop_above(0, d.now) == []
    d.table.drop_above(1 << 32, d.now)
    d.put(PSH | ACK | UNACCEPTED, 0, b"de")
    d.table.close()
    assert d.ledger.bytes.dropped == {DropReason.SHARE: 3, DropReason.SHUTDOWN: 2}
    assert d.table.held() == (0, 0) and d.unsettled() == 0


def test_a_connection_of_multipath_tcp_is_left_out_whole() -> None:
    d = Dialogue()
    d.put(MULTIPATH, 0)
    d.put(PSH | ACK, 0, b"abc")
    d.server(9, ACK)
    d.put(PSH | ACK, 3, b"def", ack=10)
    d.server(9, FIN | ACK)
    d.put(ACK, 6, b"ghi", ack=10)
    d.put(FIN | ACK, 9)
    d.put(FIN | ACK, 6, b"ghi")
    assert (d.text, len(d.table)) == (b"", 0)
    assert d.ledger.bytes.dropped[DropReason.MULTIPATH] == 9
    assert d.ledger.bytes.filtered[FilterReason.OUTSIDE] == 3
    assert d.unsettled() == 0


def test_what_came_before_it_was_known_to_be_multipath_is_left_out_too() -> None:
    """The data before the record (of another processor), and that of a SYN."""
    d = Dialogue()
    d.put(PSH | ACK, 0, b"abc")
    d.put(MULTIPATH, 0)
    d.server(3, ACK)
    d.put(PSH | ACK | UNACCEPTED, 3, b"def")
    d.put(SYN, -1, b"ghi", port=40001)
    d.put(MULTIPATH, 3, port=40001)
    d.put(RST | ACK, 3, port=40001)
    d.wait(LIMITS.accept_time + 1)
    assert d.text == b""
    assert d.ledger.bytes.dropped[DropReason.MULTIPATH] == 9
    assert (len(d.table), d.unsettled()) == (1, 0)
    d.put(ACCEPTED, 0, base=90_000)  # the same ports, and plain TCP
    d.put(PSH | ACK, 0, b"new", base=90_000)
    assert b"".join(d.out.values()) == b"!new"


def test_a_connection_of_multipath_tcp_stays_left_out_while_the_share_is_lower() -> None:
    """Joined again in mid-stream it would be taken for plain TCP."""
    d = Dialogue()
    d.put(MULTIPATH, 0)
    d.accept(port=40001)
    assert [flow.key for flow in d.table.drop_above(0, d.now)] == [key(40001)]
    assert d.table.drop_above(1 << 32, d.now) == []
    for port in (40000, 40001):
        d.put(PSH | ACK, 0, b"abc", port=port)
        d.server(3, port=port)
    assert list(d.out.values()) == [b"abc"]
    assert d.ledger.bytes.dropped[DropReason.MULTIPATH] == 3
    assert d.unsettled() == 0


def test_a_connection_that_was_taken_up_before_it_was_known_to_be_multipath_is_given_up() -> None:
    d = Dialogue()
    d.put(PSH | ACK, 0, b"abc")
    d.server(3)
    d.put(MULTIPATH, 0)
    d.put(PSH | ACK, 3, b"def")
    d.put(MULTIPATH, 0)
    d.put(PSH | ACK, 6, b"ghi")
    assert d.text == b"abc!"
    assert d.ledger.bytes.dropped[DropReason.MULTIPATH] == 6
    assert (len(d.table), d.unsettled()) == (1, 0)
