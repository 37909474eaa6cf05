# SPDX-License-Identifier: Apache-2.0
"""Reassembly against the Linux kernel: of the same packets, what production's application read and what a tap takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.oracle import Oracle, Step
from lab.schedules import ambiguous, differs, reading, reading_of_file, show
from tapmirror.events import ACK, FIN, PSH, RST, SYN, URG

pytestmark = pytest.mark.e2e

BASES = (1000, 0xFFFFFFFE)
"""Sequence numbers of the first byte: the second wraps behind two bytes."""


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as made:
        yield made


# schedule -> what the application read, and how its stream ended
CASES: dict[str, tuple[list[Step], bytes, str]] = {
    "in order": ([Step(0, b"abc"), Step(3, b"def")], b"abcdef", ""),
    "out of order": ([Step(3, b"def"), Step(0, b"abc")], b"abcdef", ""),
    "sent again, other data": ([Step(0, b"abc"), Step(0, b"XYZ"), Step(3, b"d")], b"abcd", ""),
    "sent again with more": ([Step(0, b"abc"), Step(1, b"XYdef")], b"abcdef", ""),
    "from before the stream": ([Step(-3, b"XXXabc"), Step(3, b"def")], b"abcdef", ""),
    "old data only": ([Step(0, b"abc"), Step(-5, b"XXXXX"), Step(3, b"d")], b"abcd", ""),
    "held, the front comes with other data": ([Step(2, b"cde"), Step(0, b"abXX")], b"abXXe", ""),
    "held twice, the longer replaces": ([Step(2, b"XX"), Step(2, b"cdef"), Step(0, b"ab")], b"abcdef", ""),
    "held twice, the same": ([Step(2, b"cd"), Step(2, b"XX"), Step(0, b"ab")], b"abcd", ""),
    "held, covers two": ([Step(3, b"X"), Step(5, b"X"), Step(2, b"cdefg"), Step(0, b"ab")], b"abcdefg", ""),
    "held, over the front of another": ([Step(4, b"XXg"), Step(2, b"cdef"), Step(0, b"ab")], b"abcdefg", ""),
    "held, over the end of another": ([Step(2, b"cdef"), Step(4, b"XXg"), Step(0, b"ab")], b"abcdefg", ""),
    "joined: the seam is covered": ([Step(2, b"cd"), Step(4, b"ef"), Step(3, b"XY"), Step(0, b"ab")], b"abcdef", ""),
    "not joined from behind": ([Step(4, b"ef"), Step(2, b"cd"), Step(3, b"XY"), Step(0, b"ab")], b"abcdYf", ""),
    "FIN with data": ([Step(0, b"abc", ACK | FIN)], b"abc", "fin"),
    "FIN, nothing behind it": ([Step(0, b"abc", ACK | FIN), Step(3, b"X"), Step(4, b"X")], b"abc", "fin"),
    "FIN before the data": ([Step(3, b"", ACK | FIN), Step(0, b"abc")], b"abc", "fin"),
    "FIN before the data, data over it": ([Step(3, b"", ACK | FIN), Step(0, b"abcd")], b"abcd", ""),
    "FIN sent again with data": ([Step(0, b"abc"), Step(1, b"bc", ACK | FIN)], b"abc", "fin"),
    "two FINs": ([Step(3, b"d", ACK | FIN), Step(3, b"", ACK | FIN), Step(0, b"abc")], b"abcd", "fin"),
    "data behind a FIN that waits": ([Step(2, b"c", ACK | FIN), Step(4, b"d"), Step(0, b"ab")], b"abcd", "fin"),
    "RST in order": ([Step(0, b"abc"), Step(3, b"", RST), Step(3, b"X")], b"abc", "reset"),
    "RST in the window": ([Step(0, b"abc"), Step(4, b"", RST), Step(3, b"d")], b"abcd", ""),
    "RST of the past": ([Step(0, b"abc"), Step(2, b"", RST), Step(3, b"d")], b"abcd", ""),
    "RST behind what is held": ([Step(0, b"a"), Step(2, b"c"), Step(3, b"", RST), Step(1, b"b")], b"a", "reset"),
    "RST with an acknowledgement": ([Step(0, b"abc"), Step(3, b"", RST | ACK)], b"abc", "reset"),
    "SYN again": ([Step(0, b"abc"), Step(-1, b"", SYN), Step(3, b"d")], b"abcd", ""),
    "SYN in the window, with data": ([Step(0, b"abc"), Step(3, b"X", SYN | ACK), Step(3, b"d")], b"abcd", ""),
    "no acknowledgement": ([Step(0, b"XYZ", PSH), Step(0, b"abc")], b"abc", ""),
    "no flags at all": ([Step(0, b"XYZ", 0), Step(0, b"abc")], b"abc", ""),
    "urgent byte, in front": ([Step(0, b"abc", ACK | URG, 1), Step(3, b"d")], b"bcd", ""),
    "urgent byte, at the end": ([Step(0, b"abc", ACK | URG, 3), Step(3, b"d")], b"abd", ""),
    "urgent byte, to come": ([Step(0, b"abc", ACK | URG, 5), Step(3, b"def")], b"abcdf", ""),
    "urgent byte, of a pure acknowledgement": ([Step(0, b"", ACK | URG, 2), Step(0, b"abc")], b"ac", ""),
    "urgent byte, pointer of 0": ([Step(0, b"abc", ACK | URG, 0), Step(3, b"d")], b"bcd", ""),
    "urgent byte, moved on": ([Step(3, b"d", ACK | URG, 1), Step(4, b"e", ACK | URG, 1), Step(0, b"abc")], b"abcd", ""),
    "urgent byte, two": ([Step(0, b"abc", ACK | URG, 1), Step(3, b"def", ACK | URG, 3)], b"bcde", ""),
    "urgent byte, of old data": ([Step(0, b"abc"), Step(0, b"abc", ACK | URG, 2), Step(3, b"d")], b"abcd", ""),
    "keep-alive probe, empty": ([Step(0, b"abc"), Step(2), Step(3, b"d")], b"abcd", ""),
    "keep-alive probe, a byte": ([Step(0, b"abc"), Step(2, b"X"), Step(3, b"d")], b"abcd", ""),
    "decoy: a header that is too short": ([Step(0, b"XYZ", words=4), Step(0, b"abc")], b"abc", ""),
    "decoy: a header longer than the segment": ([Step(0, b"XYZ", words=15), Step(0, b"abc")], b"abc", ""),
    "decoy: data taken for options": ([Step(0, b"XXXXabc", words=6), Step(3, b"d")], b"abcd", ""),
    "decoy: FIN without an acknowledgement": ([Step(0, b"XYZ", FIN), Step(0, b"abc")], b"abc", ""),
    "decoy: RST far away": ([Step(0, b"abc"), Step(1 << 20, b"", RST), Step(3, b"d")], b"abcd", ""),
    "decoy: SYN-ACK with data": ([Step(0, b"XYZ", SYN | ACK), Step(0, b"abc")], b"abc", ""),
    "decoy: SYN with FIN": ([Step(0, b"abc"), Step(3, b"X", SYN | FIN), Step(3, b"d")], b"abcd", ""),
    "PSH makes no difference": ([Step(3, b"def", ACK | PSH), Step(0, b"abc", ACK | PSH)], b"abcdef", ""),
}


@pytest.mark.parametrize("first", BASES)
@pytest.mark.parametrize("name", CASES)
def test_case(name: str, first: int, oracle: Oracle) -> None:
    steps, read, ended = CASES[name]
    outcome = oracle.ask(steps, first)
    assert (outcome.read, outcome.ended) == (read, ended), "the kernel is another than the one this was written with"
    assert differs(oracle, steps, first) is None
    if not any(step.flags & URG or not step.flags & (ACK | RST) for step in steps):
        assert reading_of_file(outcome) == read


STEPS = st.builds(
    Step,
    st.integers(-3, 14),
    st.binary(max_size=6),
    st.sampled_from(
        [ACK] * 8 + [ACK | PSH, ACK | FIN, ACK | FIN, RST, RST | ACK, SYN, SYN | ACK, ACK | URG, ACK | URG, 0, PSH, FIN]
    ),
    st.integers(0, 8),
)


@settings(max_examples=3_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=1, max_size=9), st.sampled_from(BASES))
def test_any_schedule(oracle: Oracle, steps: list[Step], first: int) -> None:
    if ambiguous(steps):
        return
    difference = differs(oracle, steps, first)
    assert difference is None, f"{show(steps)}: {difference}"


@settings(max_examples=1_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(Step, st.integers(-3, 14), st.binary(max_size=6)), min_size=1, max_size=9))
def test_any_overlap_from_a_file(oracle: Oracle, steps: list[Step]) -> None:
    if not ambiguous(steps):
        outcome = oracle.ask(steps)
        assert reading_of_file(outcome) == outcome.read, show(steps)


def test_data_with_the_syn(oracle: Oracle) -> None:
    """Without Fast Open the server leaves it out, and the client sends it again."""
    for steps in ([Step(0, b"abc")], [Step(0, b"XYZ"), Step(3, b"d")], [Step(3, b"d"), Step(0, b"abc")]):
        outcome = oracle.ask(steps, with_syn=b"abc")
        assert outcome.read and reading(outcome).read == outcome.read == reading_of_file(outcome)


# What the tap cannot know; see the theory of operation in tapmirror/tcp.py.


def test_beyond_the_window_an_honest_client_sends_again(oracle: Oracle) -> None:
    """Production discards what lies beyond its window, the tap keeps it: the same bytes come again."""
    text = bytes(range(256)) * 8
    far = 1 << 20
    steps = [Step(far + at, text[at : at + 512]) for at in range(0, 2048, 512)]
    filling = bytes(1024)
    steps += [Step(at, filling) for at in range(0, far, 1024)]
    steps += [Step(far + at, text[at : at + 512]) for at in range(0, 2048, 512)]
    outcome = oracle.ask(steps)
    assert outcome.read == filling * (far // 1024) + text
    assert reading(outcome).read == outcome.read


def test_zero_window_and_its_probes(oracle: Oracle) -> None:
    """While the application does not read, production discards even what is in order; it comes again later."""
    text = bytes(range(256)) * 1024
    outcome = oracle.ask_slow(text, probes=5)
    assert len(outcome.read) > 10_000
    assert reading(outcome).read == outcome.read == text[: len(outcome.read)]


def test_an_acknowledgement_of_what_was_never_sent(oracle: Oracle) -> None:
    """Production discards the segment, the tap takes it: it does not know how much production has sent."""
    outcome = oracle.ask([Step(0, b"XYZ", ack=5), Step(0, b"abc")])
    assert outcome.read == b"abc"
    assert reading(outcome).read == b"XYZ"


def test_a_wrong_checksum(oracle: Oracle) -> None:
    """Production discards the segment, the tap takes it: with offload, checksums on the wire are not what counts."""
    outcome = oracle.ask([Step(0, b"XYZ", spoil=1), Step(0, b"abc")])
    assert outcome.read == b"abc"
    assert reading(outcome).read == b"XYZ"
