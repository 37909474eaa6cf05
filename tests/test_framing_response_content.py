# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tracemalloc
from hashlib import blake2b

import pytest

from tapmirror.events import CONNECT, NO_BODY, TUNNEL
from tapmirror.exchange import Response, Unpaired
from tapmirror.framing.response_content import (
    DIGEST_BYTES,
    NOTHING,
    ContentReader,
    ReaderBounds,
    ResponseMemory,
    memory_of,
)

BOUNDS = ReaderBounds(head_bytes=1000, hash_bytes=10_000, awaited=8)


def make(*flags: int, body_limit: int = 100, memory: int = 1 << 20) -> ContentReader:
    reader = ContentReader(BOUNDS, ResponseMemory(memory))
    for n, each in enumerate(flags):
        reader.expect(each, body_limit, n)
    return reader


def plain(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n"

CASES: dict[str, tuple[tuple[int, ...], bytes, list[tuple[int, bytes]]]] = {
    "length": ((0,), plain(b"hello"), [(200, b"hello")]),
    "empty": ((0,), plain(b""), [(200, b"")]),
    "pipelined": ((0, 0), plain(b"one") + plain(b"two", 404), [(200, b"one"), (404, b"two")]),
    "chunked": ((0, 0), CHUNKED + plain(b"x"), [(200, b"abcde"), (200, b"x")]),
    "HEAD": (
        (NO_BODY, 0),
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n" + plain(b"x"),
        [(200, b""), (200, b"x")],
    ),
    "204": ((0, 0), b"HTTP/1.1 204 No\r\n\r\n" + plain(b"x"), [(204, b""), (200, b"x")]),
    "304": ((0, 0), b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n" + plain(b"x"), [(304, b""), (200, b"x")]),
    "100": ((0,), b"HTTP/1.1 100 Continue\r\n\r\n" + plain(b"x"), [(200, b"x")]),
    "103": ((0,), b"HTTP/1.1 103 Hints\r\nLink: <x>\r\n\r\n" + plain(b"x"), [(200, b"x")]),
    "bare LF": ((0,), b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx", [(200, b"x")]),
    "same length twice": ((0,), b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", [(200, b"x")]),
    "refused upgrade": ((TUNNEL, 0), plain(b"no", 400) + plain(b"x"), [(400, b"no"), (200, b"x")]),
    "CONNECT": ((TUNNEL | CONNECT,), b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0", [(200, b"")]),
    "101": ((TUNNEL,), b"HTTP/1.1 101 Up\r\nUpgrade: x\r\n\r\nbinary", [(101, b"")]),
}


def read(reader: ContentReader, pieces: list[bytes]) -> list[tuple[int, Response]]:
    return [found for n, piece in enumerate(pieces) for found in reader.feed(memoryview(piece), 10 + n)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_responses_come_with_their_requests(name: str, size: int) -> None:
    flags, data, want = CASES[name]
    reader = make(*flags)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found = read(reader, pieces)
    assert [(token, response.status, response.body) for token, response in found] == [
        (n, status, body) for n, (status, body) in enumerate(want)
    ]
    assert all(response.whole and response.length == len(response.body) for _, response in found)


def test_times_are_of_the_first_byte_of_the_final_head_and_of_the_last_byte() -> None:
    reader = make(0)
    data = plain(b"hello")
    found = read(reader, [b"HTTP/1.1 100 Continue\r\n\r\n", data[:5], data[5:-1], data[-1:]])
    assert (found[0][1].first_ns, found[0][1].last_ns) == (11, 13)


def test_until_the_end_of_the_connection() -> None:
    reader = make(0)
    assert not reader.feed(b"HTTP/1.0 200 OK\r\n\r\nab", 1)
    assert not reader.feed(b"c", 2)
    ((_, response),) = reader.end(3, False)
    assert (response.body, response.last_ns) == (b"abc", 3)


def test_a_reset_does_not_complete_a_response() -> None:
    reader = make(0)
    reader.feed(b"HTTP/1.0 200 OK\r\n\r\nab", 1)
    assert not reader.end(3, True)
    assert reader.give_up() == [0]


@pytest.mark.parametrize("size", [7, 1 << 20])
def test_a_long_body_is_kept_in_part_and_hashed_whole(size: int) -> None:
    body = bytes(range(256)) * 4
    reader = make(0)
    data = plain(body)
    ((_, response),) = read(reader, [data[at : at + size] for at in range(0, len(data), size)])
    assert response.length == 1024
    assert response.body == body[: len(response.body)]
    assert 93 <= len(response.body) <= 100
    assert response.digest == blake2b(body, digest_size=DIGEST_BYTES).digest()


def test_a_body_longer_than_is_hashed_has_no_digest_and_may_be_skipped() -> None:
    reader = make(0, body_limit=0)
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", 1)
    assert not reader.skippable()
    reader.feed(bytes(10_001), 1)
    assert reader.skippable() == 10_000_000_000 - 10_001
    ((_, response),) = reader.gap(reader.skippable(), 2)
    assert (response.length, response.digest, response.body) == (10_000_000_000, b"", b"")


def test_a_body_that_does_not_matter_is_skipped() -> None:
    reader = make(0, body_limit=NOTHING)
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab", 1)
    assert reader.skippable() == 8
    ((_, response),) = reader.gap(8, 2)
    assert (response.length, response.body) == (10, b"")


def test_a_response_like_the_last_one_is_known() -> None:
    reader = make(0, 0, 0, NO_BODY, body_limit=NOTHING)
    one, other = plain(b"one"), plain(b"one", 404)
    for data, status in ((one, 200), (one, 200), (other, 404)):
        ((_, response),) = reader.feed(memoryview(data), 1)
        assert (response.status, response.head, response.length) == (status, data[:-3], 3)
    ((_, response),) = reader.feed(other[:-3], 1)
    assert (response.status, response.length) == (404, 0)


@pytest.mark.parametrize("body_limit", [NOTHING, 100])
@pytest.mark.parametrize("cut", [0, 1, 40])
def test_several_responses_in_one_piece(body_limit: int, cut: int) -> None:
    reader = make(0, 0, NO_BODY, 0, 0, body_limit=body_limit)
    whole = (
        plain(b"one")
        + plain(b"two")
        + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
        + plain(b"four")
        + plain(b"five")
    )
    found = read(reader, [whole[: len(whole) - cut], whole[len(whole) - cut :]])
    assert [(token, response.length) for token, response in found] == [(0, 3), (1, 3), (2, 0), (3, 4), (4, 4)]
    assert reader.idle and not reader.outstanding


def test_all_readers_share_the_room_for_bodies() -> None:
    head = len(plain(b"12345678")) - 8
    memory = ResponseMemory(2 * head + 10)
    one, other = ContentReader(BOUNDS, memory), ContentReader(BOUNDS, memory)
    one.expect(0, 100, 1)
    other.expect(0, 100, 2)
    ((_, first),) = one.feed(plain(b"12345678"), 1)
    ((_, second),) = other.feed(plain(b"12345678"), 1)
    assert (first.body, second.body, memory.free) == (b"12345678", b"12", 0)
    assert second.digest
    one.expect(0, 100, 3)
    memory.free += head + 8
    one.feed(plain(b"12345678")[:-1], 1)
    assert memory.free == 1
    assert one.give_up() == [3]
    assert memory.free == head + 8


@pytest.mark.parametrize("chunk", [b"1\r\na\r\n", b"3\r\nabc\r\n"])
def test_what_is_kept_takes_no_more_memory_than_the_room_counts(chunk: bytes) -> None:
    """In chunks of a byte too: whether to send these is the shadow's choice."""
    reader = make(0, body_limit=1 << 20)
    memory = reader._memory.free
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 1)
    data = chunk * 200
    tracemalloc.start()
    try:
        for _ in range(100):
            reader.feed(data, 1)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1.5 * (memory - reader._memory.free)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
@pytest.mark.parametrize("how", ["plain", "other"])
def test_a_head_without_room_is_not_kept(whole: bool, how: str) -> None:
    """A shadow may stop amid long heads, on every connection."""
    length = "Content-Length: 0" if how == "plain" else "Transfer-Encoding: chunked"
    head = f"HTTP/1.1 200 OK\r\nX: {'x' * 300}\r\n{length}\r\n\r\n".encode()
    memory = ResponseMemory(500)
    readers = [ContentReader(BOUNDS, memory) for _ in range(3)]
    for n, reader in enumerate(readers):
        reader.expect(0, 100, n)
        reader.feed(head if whole else head[:-2], 1)
        if reader.broken is not None:
            assert reader.give_up() == ([n] if n else [])
    assert [reader.broken for reader in readers] == [None, Unpaired.LIMIT, Unpaired.LIMIT]
    assert 0 < memory.free < 500 - 300
    readers[0].give_up()
    if how == "other" or not whole:
        assert memory.free == 500


def test_a_hole_in_a_body_is_that_bodys_loss_only() -> None:
    reader = make(0, 0)
    assert not reader.feed(plain(b"0123456789")[:-8], 1)
    ((_, response),) = reader.gap(8, 2)
    assert not response.whole
    assert response.length == 10
    ((_, response),) = reader.feed(plain(b"x"), 3)
    assert response.body == b"x"


def test_a_hole_in_a_chunk_is_that_bodys_loss_only() -> None:
    reader = make(0)
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", 1)
    reader.gap(5, 2)
    ((_, response),) = reader.feed(b"\r\n0\r\n\r\n", 3)
    assert (response.length, response.whole) == (5, False)


@pytest.mark.parametrize("seen", [b"5\r\nab", b"5", b"5\r\nhello", b"5\r\nhello\r\n0\r\n", b"5\r\nhello\r\n0\r\nA: "])
def test_after_a_hole_beyond_a_chunk_the_response_goes_on_until_somebody_says(seen: bytes) -> None:
    reader = make(0)
    memory = reader._memory.free
    assert not reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + seen, 1)
    assert not reader.gap(500, 7) and reader.end_unknown
    assert not reader.feed(b"HTTP", 8) and not reader.gap(20, 9) and reader.end_unknown
    ((token, response),) = reader.finish_implied()
    assert (token, response.status, response.whole, response.first_ns, response.last_ns) == (0, 200, False, 1, 8)
    assert reader._memory.free == memory - memory_of(response)
    reader.expect(0, 10, "next")
    assert [token for token, _ in reader.feed(plain(b"x"), 4)] == ["next"]


@pytest.mark.parametrize("reason", [Unpaired.GAP, Unpaired.CUT])
def test_amid_such_a_response_another_one_begins(reason: Unpaired) -> None:
    reader = make(0)
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 1)
    reader.gap(500, 2, reason)
    assert not reader.feed(plain(b"x"), 3)
    assert reader.broken is reason and not reader.end_unknown


@pytest.mark.parametrize(("reset", "count"), [(False, 1), (True, 0)])
def test_the_end_of_the_connection_is_the_end_of_such_a_response(reset: bool, count: int) -> None:
    reader = make(0)
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 1)
    reader.gap(500, 2)
    assert [response.last_ns for _, response in reader.end(3, reset=reset)] == [1] * count


@pytest.mark.parametrize(
    ("before", "size"),
    [(b"", 5), (plain(b"abc")[:10], 1), (plain(b"abc")[:-1], 2), (CHUNKED[: CHUNKED.index(b"3;")], 1)],
)
def test_any_other_hole_ends_what_is_certain(before: bytes, size: int) -> None:
    reader = make(0, 0)
    reader.feed(before, 1)
    assert not reader.gap(size, 2)
    assert reader.broken is Unpaired.GAP
    assert not reader.feed(plain(b"x"), 3)
    assert reader.give_up() == [0, 1]
    reader.resync()
    reader.expect(0, 10, "next")
    assert [token for token, _ in reader.feed(plain(b"x"), 4)] == ["next"]


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 5000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 300,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300,
        b"HTTP/1.1 101 Up\r\n\r\n",
    ],
)
def test_what_is_no_response_is_read_no_further(data: bytes) -> None:
    reader = make(0)
    assert not reader.feed(data, 1)
    assert reader.broken is Unpaired.UNPARSED
    assert not reader.feed(plain(b"x"), 2)


def test_a_response_to_nothing_is_an_error_of_order() -> None:
    reader = make()
    reader.feed(plain(b"x"), 1)
    assert reader.broken is Unpaired.ORDER


def test_requests_without_a_response_are_bounded() -> None:
    reader = make(*[0] * 9)
    assert reader.broken is Unpaired.LIMIT
    assert len(reader.give_up()) == 9


@pytest.mark.parametrize(
    "begun", [b"HTTP/1.1 200 OK\r\n\r\nuntil the end", plain(b"hello")[:-1], CHUNKED[:-20], b"HTTP/1.1 2"]
)
def test_a_response_that_began_to_a_request_of_which_nothing_went_is_nobodys(begun: bytes) -> None:
    reader = make(0)
    assert read(reader, [begun]) == []
    reader.withdraw()
    assert reader.broken is Unpaired.ORDER
    assert read(reader, [b"the rest"]) == []
    assert list(reader.end(20, reset=True)) == []
