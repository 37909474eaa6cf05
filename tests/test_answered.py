# SPDX-License-Identifier: Apache-2.0
"""Production's direction of a flow: in order, gaps at once, what was not copied."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tapmirror import answered
from tapmirror.answered import RESPONSE, AnsweredTable
from tapmirror.events import ACCEPTED, ACK, FIN, FROM_SERVER, PSH, RST, Cut, End, Gap, Segment, ServerFin
from tapmirror.ledger import Ledger
from tapmirror.spec import Limits

KEY = bytes(10) + b"\xff\xff\x0a\0\0\1" + bytes(10) + b"\xff\xff\x0a\0\0\2" + b"\x9c\x40\0\x50" + bytes(4)


class Dialogue:
    """One connection; offsets count from each side's first byte, `<n>` is a gap, `(n)` what was not copied."""

    def __init__(self, first: int = 5000, accepted: bool = True) -> None:
        self.ledger = Ledger()
        self.counts: Counter[str] = Counter()
        self.table = AnsweredTable(Limits(), 0, self.ledger, self.counts)
        self.first = first
        self.said: list[str] = []
        if accepted:
            assert self.table.accept((KEY, ACCEPTED, 1000, first, 0, b"", 0), 1.0) == ([], [])

    def put(self, segment: Segment) -> None:
        flow = self.table.goes_on(segment, 1.0)
        for _, chunk, after_response in ((flow, segment[5], RESPONSE),) if flow else self.table.feed_both(segment, 1.0):
            who = "server" if after_response is RESPONSE else "client"
            if isinstance(chunk, ServerFin):
                continue
            if isinstance(chunk, Gap):
                text = f"<{chunk.length}>"
            elif isinstance(chunk, Cut):
                text = f"{bytes(chunk.data).decode()}({chunk.length - len(chunk.data)})"
            elif isinstance(chunk, End):
                text = "reset" if chunk.reset else "end"
            else:
                text = bytes(chunk).decode()  # type: ignore[arg-type]
            self.said.append(f"{who}: {text}")

    def client(self, at: int, text: str, heard: int, flags: int = ACK) -> None:
        self.put((KEY, flags, 1000 + at, (self.first + heard) & 0xFFFFFFFF, len(text), text.encode(), 0))

    def server(self, at: int, text: str, flags: int = ACK, length: int | None = None) -> None:
        size = len(text) if length is None else length
        self.put((KEY, flags | FROM_SERVER, (self.first + at) & 0xFFFFFFFF, 1000, size, text.encode(), 0))


def test_both_sides_in_their_order() -> None:
    talk = Dialogue()
    talk.client(0, "ask", 0)
    talk.server(0, "answer")
    talk.client(3, "again", 6)
    talk.server(6, "", FIN | ACK)
    assert talk.said == ["client: ask", "server: answer", "client: again", "server: end"]


@pytest.mark.parametrize("seed", range(20))
def test_the_short_way_of_what_is_in_order_comes_to_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of both sides, most of them in order; some late, lost, cut, or behind what the tap has of the client."""

    def talk() -> tuple[Dialogue, list[tuple[int | bool | None, ...]]]:
        rand = random.Random(seed)
        talk = Dialogue(first=rand.choice((5000, 0xFFFFFFF0)), accepted=rand.random() < 0.8)
        asked = said = 0
        states: list[tuple[int | bool | None, ...]] = []
        for _ in range(60):
            flags = rand.choice((ACK, ACK | PSH, ACK | PSH, FIN | ACK))
            text = "x" * rand.randint(0, 5)
            if rand.random() < 0.4:
                talk.client(asked + rand.choice((0, 0, 0, 0, 2, -2)), text, said, flags & ~FIN)
                asked += len(text)
            else:
                cut = rand.choice((0, 0, 0, 3))
                at = said + rand.choice((0, 0, 0, 0, 0, 3, -3))
                if rand.random() < 0.95:
                    talk.server(at, text, flags if rand.random() < 0.1 else flags & ~FIN, len(text) + cut)
                said += len(text) + cut
            flow = talk.table.get(KEY)
            if flow is not None:
                states.append((flow.followed_to, flow.answered, flow.server_next, flow.last > 0, flow.rx.next))
        return talk, states

    short, its_states = talk()
    monkeypatch.setattr(answered, "_PLAIN", ())
    long, states = talk()
    assert short.said == long.said
    assert its_states == states
    assert (short.counts, short.ledger.saved()) == (long.counts, long.ledger.saved())


def test_sequence_numbers_wrap_around() -> None:
    talk = Dialogue(first=0xFFFFFFFE)
    talk.server(0, "answer")
    talk.server(6, "more")
    assert talk.said == ["server: answer", "server: more"]


def test_what_was_lost_is_a_gap_at_once_and_what_is_repeated_is_cut_off() -> None:
    talk = Dialogue()
    talk.server(4, "efgh")
    talk.server(0, "abcd")
    talk.server(6, "ghij")
    assert talk.said == ["server: <4>", "server: efgh", "server: ij"]
    assert (talk.counts["gaps"], talk.counts["gap_bytes"], talk.counts["duplicate"]) == (1, 4, 1)


def test_a_loss_with_nothing_behind_it_shows_in_the_clients_next_data() -> None:
    talk = Dialogue()
    talk.client(0, "ask", 0)
    talk.client(3, "again", 7)
    talk.server(7, "x")
    assert talk.said == ["client: ask", "server: <7>", "client: again", "server: x"]


@pytest.mark.parametrize("first", [5000, 0xC0000000])
def test_a_reset_that_acknowledges_nothing_shows_no_loss(first: int) -> None:
    """That of a client that had closed when a response came (RFC 9293, 3.5.2): its field is 0, half a circle behind."""
    talk = Dialogue(first=first)
    talk.client(0, "ask", 0)
    talk.server(0, "answer")
    talk.put((KEY, RST, 1003, 0, 0, b"", 0))
    assert talk.said == ["client: ask", "server: answer", "client: reset"]


def test_what_was_not_copied_is_no_gap() -> None:
    talk = Dialogue()
    talk.server(0, "head", length=100)
    talk.server(100, "next")
    talk.server(50, "", length=60)
    assert talk.said == ["server: head(96)", "server: next", "server: (6)"]
    assert talk.counts["gaps"] == 0


def test_of_a_connection_joined_in_the_middle_the_first_byte_seen_is_the_first() -> None:
    talk = Dialogue(accepted=False)
    talk.client(0, "ask", 700)
    talk.put((KEY, ACK | FROM_SERVER, 5700, 1003, 6, b"answer", 0))
    assert talk.said == ["client: ask", "server: answer"]


def test_nothing_of_it_is_in_the_clients_books() -> None:
    talk = Dialogue()
    talk.server(10, "x" * 1000)
    talk.server(5, "y" * 10)
    assert talk.ledger.bytes.settled() == talk.ledger.segments.settled() == 0
    assert talk.table.held() == (0, 0)


def test_what_is_far_away_is_not_of_this_connection() -> None:
    talk = Dialogue()
    talk.server(1 << 30, "x")
    talk.server(0, "answer")
    assert talk.said == ["server: answer"]
    assert talk.counts["outside"] == 1
