# SPDX-License-Identifier: Apache-2.0
"""Requests out of a stream, however it is cut; what is ambiguous is refused; nothing is unaccounted for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framing_cases import BROKEN, GET, REFUSED, TAKEN, chunked, head
from tapmirror.events import CONNECT, END, NO_BODY, START, TUNNEL, DropReason, LeftOut, Lost, Message, Part
from tapmirror.framing import HeadMemory, RequestFramer

LIMIT = 8192
Reason = DropReason
Cut = Callable[[bytes], list[bytes]]


class Heard:
    """A framer and all that came of it.  Every call is checked against what was fed."""

    def __init__(
        self,
        head_bytes: int = LIMIT,
        host: bytes | None = None,
        midstream: bool = False,
        memory: HeadMemory | None = None,
    ) -> None:
        self.own = memory is None
        self.memory = memory or HeadMemory(head_bytes)
        self.framer = RequestFramer(head_bytes, host, midstream, self.memory)
        self.head_bytes = head_bytes
        self.requests: list[bytes] = []
        self.flags: list[int] = []
        self.tunnel = b""
        self.lost: Counter[DropReason] = Counter()
        self.breaks: list[DropReason] = []
        self.open: bytes | None = None
        self.left_out = 0
        self.fed = self.accounted = 0
        self.parts = 0

    def feed(self, data: bytes, after_response: bool = False) -> Heard:
        self.fed += len(data)
        view = memoryview(bytearray(data))
        self._take(self.framer.feed(view, after_response))
        return self

    def gap(self, length: int) -> Heard:
        self._take(self.framer.gap(length))
        return self

    def no_more(self) -> Heard:
        self._take(self.framer.no_more())
        return self

    def end(self) -> Heard:
        self._take(self.framer.end())
        assert self.framer.held == 0
        assert self.open is None
        return self

    def _take(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.accounted += message.size
            if isinstance(message, Lost):
                assert message.size or message.broken
                self.lost[message.reason] += message.size
                if message.broken:
                    assert self.open is not None or self.tunnel
                    self.breaks.append(message.reason)
                    self.open = None
                continue
            if isinstance(message, LeftOut):
                assert message.size
                self.left_out += message.size
                continue
            self.parts += 1
            assert message.size > 0
            data = bytes(message.data)
            if message.flags & START:
                assert self.open is None
                assert b"\r\n\r\n" in data
                self.open = b""
                self.flags.append(message.flags & ~(START | END))
            if self.open is None:
                assert message.flags == 0
                self.tunnel += data
                continue
            self.open += data
            if message.flags & END:
                self.requests.append(self.open)
                self.open = None
        held = self.framer.held
        assert 0 <= held <= self.head_bytes
        assert self.accounted + held == self.fed
        if self.own:
            assert self.memory.bytes == len(self.framer._buffer)

    def outcome(self) -> tuple[object, ...]:
        return self.requests, self.flags, self.tunnel, +self.lost, self.breaks


def slices(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    return [data[a:b] for a, b in pairwise(edges)]


def cut_randomly(data: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return slices(data, rng.choices(range(len(data)), k=rng.randint(1, 12)))


def cutter(seed: int) -> Cut:
    return lambda data: cut_randomly(data, seed)


WAYS: dict[str, Cut] = {
    "whole": lambda data: [data],
    "bytes": lambda data: slices(data, range(len(data))),
    **{f"random-{seed}": cutter(seed) for seed in range(5)},
}
cut = pytest.mark.parametrize("cut", WAYS.values(), ids=WAYS.keys())


def heard(pieces: Iterable[bytes], **options: object) -> Heard:
    """All pieces of a stream, of which only the first may begin a request by outside evidence."""
    got = Heard(**options)  # type: ignore[arg-type]
    for i, piece in enumerate(pieces):
        got.feed(piece, after_response=i == 0)
    return got


# --- what is taken


@cut
@pytest.mark.parametrize("requests", TAKEN.values(), ids=TAKEN.keys())
def test_taken(requests: tuple[bytes, ...], cut: Cut) -> None:
    got = heard(cut(b"".join(requests))).end()
    assert got.requests == list(requests)
    assert not got.lost and not got.breaks and not got.tunnel


@cut
@pytest.mark.parametrize("requests", TAKEN.values(), ids=TAKEN.keys())
def test_taken_with_trailing_bytes(requests: tuple[bytes, ...], cut: Cut) -> None:
    got = heard(cut(b"".join(requests) + b"GET /to")).end()
    assert got.requests == list(requests)
    assert got.lost == {Reason.INCOMPLETE: 7} and not got.breaks


def test_ordinary_request_is_passed_on_as_it_came() -> None:
    view = memoryview(GET)
    (part,) = RequestFramer(LIMIT, None, False, HeadMemory(LIMIT)).feed(view, True)
    assert part.data is view  # type: ignore[union-attr]
    assert (part.size, part.flags) == (len(GET), START | END)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["length-5", "chunked", "trailers"])
def test_request_in_one_piece_is_one_part(name: str) -> None:
    assert heard([TAKEN[name][0]]).parts == 1


@pytest.mark.parametrize(
    ("request_head", "flags"),
    [
        (GET, 0),
        (head(line=b"HEAD / HTTP/1.1"), NO_BODY),
        (head(line=b"HEADER / HTTP/1.1"), 0),
        (head(line=b"CONNECT a:1 HTTP/1.1"), TUNNEL | CONNECT),
        (head(b"Upgrade: websocket", b"Connection: keep-alive, Upgrade"), TUNNEL),
        (head(b"Upgrade: websocket"), 0),
        (head(b"Connection: upgrade"), 0),
        (head(b"Upgrade-Insecure-Requests: 1", b"Connection: upgrade"), 0),
        (head(b"Upgrade: x", b"Connection: upgrade", line=b"GET / HTTP/1.0"), 0),
    ],
)
def test_flags(request_head: bytes, flags: int) -> None:
    got = heard([request_head])
    assert (got.requests, got.flags) == ([request_head], [flags])


@cut
def test_empty_lines_before_a_request_count_and_are_not_passed_on(cut: Cut) -> None:
    got = heard(cut(b"\r\n\r\n" + GET + b"\r\n" + GET + b"\r\n")).end()
    assert got.requests == [GET, GET]
    assert got.lost == {Reason.INCOMPLETE: 2}


def test_body_is_passed_on_and_not_held() -> None:
    got = heard([head(b"Content-Length: 3000000")])
    for _ in range(30):
        got.feed(bytes(100_000))
        assert got.framer.held == 0
    assert len(got.requests) == 1


# --- Host


@cut
@pytest.mark.parametrize(
    ("sent", "want"),
    [
        (GET, b"GET / HTTP/1.1\r\nHost: new:8\r\n\r\n"),
        (GET + GET, b"GET / HTTP/1.1\r\nHost: new:8\r\n\r\n" * 2),
        (head(b"X: y", host=b"hOST:  a.b  "), head(b"X: y", host=b"hOST:  new:8  ")),
        (head(host=b"Host:"), head(host=b"Host:new:8")),
        (head(b"Content-Length: 2") + b"ab", head(b"Content-Length: 2", host=b"Host: new:8") + b"ab"),
        (chunked(b"1\r\nx\r\n0\r\n\r\n"), chunked(b"1\r\nx\r\n0\r\n\r\n").replace(b": a\r", b": new:8\r")),
        (head(line=b"GET http://a/ HTTP/1.1"), head(line=b"GET http://a/ HTTP/1.1", host=b"Host: new:8")),
        (
            head(b"Connection: keep-alive", line=b"GET / HTTP/1.0", host=b"X: a"),
            head(b"Connection: keep-alive", line=b"GET / HTTP/1.0", host=b"X: a"),
        ),
        (head(b"Content-Length: 9") + b"\r\nHost: z", head(b"Content-Length: 9", host=b"Host: new:8") + b"\r\nHost: z"),
    ],
)
def test_host_is_replaced(sent: bytes, want: bytes, cut: Cut) -> None:
    got = heard(cut(sent), host=b"new:8").end()
    assert b"".join(got.requests) == want
    assert not got.lost


# --- what is refused


@cut
@pytest.mark.parametrize("stream", REFUSED.values(), ids=REFUSED.keys())
def test_refused(stream: bytes, cut: Cut) -> None:
    got = heard(cut(stream + GET)).end()
    assert got.outcome() == ([], [], b"", {Reason.UNPARSED: len(stream + GET)}, [])


@cut
@pytest.mark.parametrize("stream", BROKEN.values(), ids=BROKEN.keys())
def test_broken_in_the_body(stream: bytes, cut: Cut) -> None:
    got = heard(cut(stream + GET)).end()
    assert got.requests == []
    assert got.breaks == [Reason.UNPARSED]
    assert set(got.lost) == {Reason.UNPARSED}


@pytest.mark.parametrize("stream", [*REFUSED.values(), *BROKEN.values()], ids=[*REFUSED, *BROKEN])
def test_goes_on_at_the_next_turn(stream: bytes) -> None:
    got = heard([GET, stream]).feed(GET).feed(GET, after_response=True).feed(GET)
    assert got.requests == [GET, GET, GET]


@cut
@pytest.mark.parametrize(
    "last",
    [
        head(b"Connection: close"),
        head(b"Connection: keep-alive, Close"),
        head(b"Connection: keep-alive", b"Connection: close"),
        head(line=b"GET / HTTP/1.0"),
        head(b"Connection: close", b"Content-Length: 2") + b"ab",
    ],
)
def test_nothing_is_read_after_a_closing_request(last: bytes, cut: Cut) -> None:
    got = heard(cut(last + GET)).end()
    assert got.requests == [last]
    assert got.lost == {Reason.UNPARSED: len(GET)} and not got.breaks


@cut
@pytest.mark.parametrize(
    "stream",
    [
        b"GET /" + b"a" * 500 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        head(b"X: " + b"y" * 500),
        head(*[b"X: y"] * 100),
        b"G" * 500,
        b"\r\n" * 250,
    ],
)
def test_head_over_the_limit(stream: bytes, cut: Cut) -> None:
    got = heard(cut(stream), head_bytes=256)
    assert got.lost == {Reason.OVERSIZE: len(stream)}
    assert got.feed(GET, after_response=True).requests == [GET]


@cut
def test_head_at_the_limit(cut: Cut) -> None:
    assert heard(cut(GET * 2), head_bytes=len(GET)).requests == [GET, GET]
    assert heard(cut(GET), head_bytes=len(GET) - 1).lost == {Reason.OVERSIZE: len(GET)}


@cut
def test_trailers_over_the_limit(cut: Cut) -> None:
    got = heard(cut(chunked(b"0\r\n", b"X: y\r\n" * 100, b"\r\n")), head_bytes=256)
    assert got.requests == [] and got.breaks == [Reason.UNPARSED]


# --- gaps: '<n>' in a stream stands for n bytes that are missing; '|' for a turn

BODY_8 = head(b"Content-Length: 8")
CHUNK_8 = chunked(b"8\r\n")
REST = b"\r\n0\r\n\r\n"


CLOSING = head(b"Connection: close", b"Content-Length: 6")


def play(script: list[bytes | int | str]) -> Heard:
    """Bytes are fed, numbers are gaps, '|' says that the next bytes come after a response, '.' is production's FIN."""
    got, after_response = Heard(), True
    for step in script:
        if step == "|":
            after_response = True
        elif step == ".":
            got.no_more()
        elif isinstance(step, int):
            got.gap(step)
        else:
            got.feed(step, after_response)  # type: ignore[arg-type]
            after_response = False
    return got


@pytest.mark.parametrize(
    ("script", "requests", "lost", "broken"),
    [
        ([GET, 5, GET, "|", GET], [GET, GET], len(GET), 0),
        ([GET[:9], 5, GET[14:], "|", GET], [GET], len(GET) - 5, 0),
        ([GET[:9], 5, "|", GET], [GET], 9, 0),
        ([9, b"x", GET, "|", GET], [GET], 1 + len(GET), 0),
        # in a body of known length: the next request is certain without a turn
        ([BODY_8, 3, b"34567", GET], [GET], 5, 1),
        ([BODY_8, b"01", 3, b"567", GET], [GET], 3, 1),
        ([BODY_8, b"01", 6, GET], [GET], 0, 1),
        ([BODY_8, 1, b"1", 1, b"3", 4, GET], [GET], 2, 1),
        ([BODY_8, b"01", 7, GET, "|", GET], [GET], len(GET), 1),
        ([BODY_8, 3, b"34", 4, GET, "|", GET], [GET], 2 + len(GET), 1),
        # in a chunk's data: likewise
        ([CHUNK_8, 3, b"34567", REST + GET], [GET], 5 + len(REST), 1),
        ([CHUNK_8, 8, REST[:1], REST[1:] + GET], [GET], len(REST), 1),
        ([CHUNK_8, 3, b"34567" + b"\r\n2\r\nab" + REST, GET], [GET], 12 + len(REST), 1),
        # in chunk framing, or beyond the chunk: not
        ([CHUNK_8, 9, REST[1:] + GET, "|", GET], [GET], len(REST) - 1 + len(GET), 1),
        ([CHUNK_8, b"01234567\r\n", 1, b"\r\n\r\n" + GET, "|", GET], [GET], 4 + len(GET), 1),
        ([chunked(), b"8", 1, b"\n01234567" + REST, "|", GET], [GET], 10 + len(REST), 1),
        ([CHUNK_8, b"01234567\r\n0\r\nX: ", 1, b"\r\n\r\n" + GET, "|", GET], [GET], 3 + 4 + len(GET), 1),
        # a second one while nothing is certain
        ([GET[:9], 5, b"x", 7, b"y", "|", b"z", "|", GET], [GET], 12, 0),
        # a candidate with a hole
        ([5, "|", GET[:20], 3, GET[23:], "|", GET], [GET], len(GET) - 3, 0),
    ],
)
def test_gap(script: list[bytes | int | str], requests: list[bytes], lost: int, broken: int) -> None:
    got = play(script).end()
    assert got.requests == requests
    assert got.lost.total() == lost and set(+got.lost) <= {Reason.GAP}
    assert got.breaks == [Reason.GAP] * broken


def test_closing_request_with_a_hole_still_closes() -> None:
    got = play([head(b"Connection: close", b"Content-Length: 4"), 4, GET, "|", GET])
    assert got.requests == [GET] and got.lost[Reason.UNPARSED] == len(GET)


def test_error_after_a_hole_is_broken_once() -> None:
    got = play([CHUNK_8, 3, b"34567" + b"\r\nnonsense\r\n" + GET, "|", GET])
    assert got.requests == [GET] and got.breaks == [Reason.GAP]
    assert got.lost == {Reason.GAP: 7, Reason.UNPARSED: 10 + len(GET)}


# --- joined in mid-stream


@pytest.mark.parametrize(
    "before", [b"", b"rest of a body", GET, GET[:20], b"\r\n\r\n", b"\0" * 70_000, head(b"Content-Length: 5") + b"he"]
)
def test_midstream_begins_at_the_first_certain_boundary(before: bytes) -> None:
    got = Heard(midstream=True)
    got.feed(before)
    assert got.requests == [] and got.lost == ({Reason.MIDSTREAM: len(before)} if before else {})
    got.feed(GET[:20], after_response=True).feed(GET[20:] + GET).feed(GET)
    assert got.requests == [GET, GET, GET] and got.lost.total() == len(before)


@pytest.mark.parametrize(
    "first",
    [
        b"x" + GET,
        GET[:10],
        b"\r\n" + GET,
        b"GET / HTTP/1.1\r\nno field\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\n",
        head(b"Content-Length: x"),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * LIMIT,
    ],
)
def test_midstream_takes_nothing_else_for_a_boundary(first: bytes) -> None:
    got = Heard(midstream=True).feed(first, after_response=True).feed(GET).feed(GET, after_response=True)
    assert got.requests == [GET]
    assert got.lost == {Reason.MIDSTREAM: len(first) + len(GET)}


# --- tunnels

SWITCHING = [head(line=b"CONNECT a:1 HTTP/1.1"), head(b"Connection: Upgrade", b"Upgrade: x")]
ws = b"\x81\x85abcd01234"


@pytest.mark.parametrize("first", SWITCHING)
@pytest.mark.parametrize(
    ("script", "requests", "tunnel"),
    [
        ([], 0, b""),
        (["|", ws, "|", GET, ws], 0, ws + GET + ws),
        ([GET], 0, GET),
        (["|", b"GET /x", b"yz\r\n", GET], 0, b"GET /xyz\r\n" + GET),
        (["|", b"SSH-2.0-x\r\n"], 0, b"SSH-2.0-x\r\n"),
        (["|", GET, GET, "|", GET], 3, b""),
        (["|", b"G", b"E", GET[2:], "|", GET], 2, b""),
        (["|", GET[:16], GET[16:]], 1, b""),
    ],
)
def test_the_bytes_after_say_whether_the_server_switched(
    first: bytes, script: list[bytes | int | str], requests: int, tunnel: bytes
) -> None:
    got = play([first, *script]).end()
    assert got.requests == [first] + [GET] * requests
    assert got.tunnel == tunnel
    assert not got.lost and not got.breaks


@pytest.mark.parametrize(
    ("script", "requests", "tunnel"),
    [
        (["|", b"01234567", GET, "|", GET], 2, b""),  # answered before the body was sent
        ([b"0123", "|", b"45", b"67", GET[:9], GET[9:]], 1, b""),
        (["|", b"01234567", ws], 0, ws),
        ([b"01234567", GET], 0, GET),  # sent without having received anything
        ([b"01234567", "|", GET], 1, b""),
    ],
)
def test_a_response_amid_the_body_counts_too(script: list[bytes | int | str], requests: int, tunnel: bytes) -> None:
    first = head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"Content-Length: 8", line=b"POST / HTTP/1.1")
    got = play([first, *script]).end()
    assert got.requests == [first + b"01234567"] + [GET] * requests
    assert got.tunnel == tunnel
    assert not got.lost and not got.breaks


def test_tunnel_does_not_survive_a_gap() -> None:
    got = play([SWITCHING[0], "|", ws, 5, ws, "|", GET, 3, GET]).end()
    assert got.requests == [SWITCHING[0]] and got.tunnel == ws
    assert got.breaks == [Reason.GAP]
    assert got.lost == {Reason.GAP: len(ws) + 2 * len(GET)}


def test_gap_before_it_is_known_whether_the_server_switched() -> None:
    got = play([SWITCHING[1], "|", b"GE", 5, ws, "|", GET])
    assert got.requests == [SWITCHING[1], GET] and got.tunnel == b""
    assert got.lost == {Reason.GAP: 2 + len(ws)} and not got.breaks


# --- behind production's FIN


@cut
@pytest.mark.parametrize("requests", TAKEN.values(), ids=TAKEN.keys())
def test_behind_production_s_fin_no_request_begins(requests: tuple[bytes, ...], cut: Cut) -> None:
    stream, first = b"".join(requests), len(requests[0])
    places = list(accumulate(map(len, requests), initial=0))
    for at in {0, 1, 2, first // 2, *range(first - 5, first + 3), len(stream)}:
        begun = [request for place, request in zip(places, requests, strict=False) if place < at]
        got = heard(cut(stream[:at]) if at else []).no_more()
        for piece in cut(stream[at:]) if at < len(stream) else []:
            got.feed(piece)
        got.end()
        assert got.requests == begun
        assert got.left_out == len(stream) - sum(map(len, begun))
        assert not got.lost and not got.breaks


@pytest.mark.parametrize("first", SWITCHING)
@pytest.mark.parametrize(
    ("script", "requests", "left_out", "tunnel"),
    [
        ([".", GET], 0, 1, b""),
        ([".", GET[:2], ".", GET[2:], GET], 0, 2, b""),
        (["|", GET[:2], ".", GET[2:], GET], 1, 1, b""),
        (["|", GET[:2], ".", GET[2:9], ".", GET[9:], "|", GET], 1, 1, b""),
        ([".", ws, "|", GET], 0, 0, ws + GET),
        (["|", ws, ".", "|", GET], 0, 0, ws + GET),
    ],
)
def test_behind_production_s_fin_the_bytes_after_say_whether_it_had_switched(
    first: bytes, script: list[bytes | int | str], requests: int, left_out: int, tunnel: bytes
) -> None:
    got = play([first, *script]).end()
    assert got.requests == [first] + [GET] * requests
    assert got.left_out == left_out * len(GET)
    assert got.tunnel == tunnel
    assert not got.lost and not got.breaks


@pytest.mark.parametrize(
    ("script", "requests", "left_out", "lost"),
    [
        ([5, ".", "|", GET, GET], 0, 2, {}),
        ([5, ".", GET], 0, 1, {}),
        ([".", 5, "|", GET], 0, 1, {}),
        ([5, ".", b"x", "|", GET], 0, 1, {Reason.GAP: 1}),
        ([BODY_8, b"0123", ".", 4, GET], 0, 1, {}),
        ([CLOSING, b"0123", ".", b"45"], 1, 0, {}),
        ([CLOSING, b"0123", ".", b"45" + GET, GET], 1, 2, {}),
        ([CLOSING, b"0123", ".", b"45" + b"x", GET], 1, 1, {Reason.UNPARSED: 1}),
    ],
)
def test_behind_production_s_fin_what_looks_like_a_request_is_left_out_where_none_was_certain(
    script: list[bytes | int | str], requests: int, left_out: int, lost: dict[DropReason, int]
) -> None:
    got = play(script).end()
    assert len(got.requests) == requests
    assert got.left_out == left_out * len(GET)
    assert +got.lost == lost


# --- the end


@pytest.mark.parametrize(
    ("stream", "lost", "broken"),
    [
        (b"", 0, 0),
        (GET, 0, 0),
        (GET[:10], 10, 0),
        (BODY_8, 0, 1),
        (BODY_8 + b"0123456", 0, 1),
        (chunked(b"5;a"), 3, 1),
        (chunked(b"5\r\nhello\r"), 1, 1),
        (chunked(b"5\r\nhello\r\n0\r\nX: y"), 4, 1),
        (chunked(b"5\r\nhello\r\n0\r\n"), 0, 1),
    ],
)
def test_end(stream: bytes, lost: int, broken: int) -> None:
    got = Heard().feed(stream).end()
    assert got.lost.total() == lost and set(+got.lost) <= {Reason.INCOMPLETE}
    assert got.breaks == [Reason.INCOMPLETE] * broken


# --- properties

tokens = st.text("abcXYZ-_!", min_size=1, max_size=8).map(str.encode)
values = st.binary(max_size=20).map(lambda v: bytes(c for c in v if c >= 32 and c != 127).strip())
plain_names = tokens.filter(
    lambda t: t.lower() not in (b"host", b"connection", b"upgrade", b"content-length", b"transfer-encoding")
)


@st.composite
def request_streams(draw: st.DrawFn) -> bytes:
    """One valid request that does not end the dialogue."""
    fields = [b"%s:%s" % (n, v) for n, v in draw(st.lists(st.tuples(plain_names, values), max_size=5))]
    fields.insert(draw(st.integers(0, len(fields))), draw(st.sampled_from([b"Host: a", b"HOST:b:80", b"host: "])))
    body = draw(st.binary(max_size=60))
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    if kind == "length":
        fields.insert(draw(st.integers(0, len(fields))), b"Content-Length: %d" % len(body))
    elif kind == "chunked":
        fields.insert(draw(st.integers(0, len(fields))), b"Transfer-Encoding: chunked")
        chunks = [c for c in slices(body, draw(st.lists(st.integers(0, 60), max_size=4))) if c]
        extension = draw(st.sampled_from([b"", b";a", b"; a = b", b';a="\\"";b']))
        trailer = draw(st.sampled_from([b"", b"X: y\r\n", b"A:\r\nB: c\r\n"]))
        body = b"".join(b"%x%s\r\n%s\r\n" % (len(c), extension, c) for c in chunks) + b"0\r\n" + trailer + b"\r\n"
    else:
        body = b""
    method = draw(tokens)
    return head(*fields, line=method + b" /x HTTP/1.1", host=b"") + body


@given(st.lists(request_streams(), max_size=5), st.lists(st.integers(0, 600), max_size=20))
def test_any_sequence_of_requests_in_any_slices(requests: list[bytes], cuts: list[int]) -> None:
    got = heard(slices(b"".join(requests), cuts)).end()
    assert got.requests == requests
    assert not got.lost


@st.composite
def damaged_streams(draw: st.DrawFn) -> bytes:
    """Requests with a few bytes changed: close enough to be taken for valid ones."""
    known = st.sampled_from([*(b"".join(t) for t in TAKEN.values() if len(b"".join(t)) < 500), *SWITCHING])
    data = bytearray(b"".join(draw(st.lists(st.one_of(request_streams(), known), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        new = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"\0", b" ", b"0", b"f", b";", b":", b"Host: a\r\n", b"\xff"])
        )
        data[at : at + draw(st.integers(0, 2))] = new
    return bytes(data)


@given(damaged_streams(), st.lists(st.integers(0, 900), max_size=20), st.integers(40, 400))
def test_the_outcome_does_not_depend_on_the_slices(data: bytes, cuts: list[int], limit: int) -> None:
    whole = heard([data], head_bytes=limit).end().outcome()
    assert heard(slices(data, cuts), head_bytes=limit).end().outcome() == whole
    assert heard(slices(data, range(len(data))), head_bytes=limit).end().outcome() == whole


steps = st.one_of(
    st.integers(1, 300),
    st.sampled_from(["|", "."]),
    st.binary(min_size=1, max_size=30),
    damaged_streams(),
    st.sampled_from([GET, GET[:7], BODY_8, CHUNK_8, REST, b"\r\n", b"0123", *SWITCHING]),
)


@given(st.lists(steps, max_size=12), st.booleans(), st.integers(20, 300), st.sampled_from([None, b"h"]))
def test_everything_is_accounted_for_whatever_comes(
    script: list[bytes | int | str], midstream: bool, limit: int, host: bytes | None
) -> None:
    got, after_response = Heard(limit, host, midstream), True
    for step in script:
        if isinstance(step, int):
            got.gap(step)
        elif step == ".":
            got.no_more()
        elif isinstance(step, str):
            after_response = True
        elif step:
            got.feed(step, after_response)
            after_response = False
    got.end()
    assert got.accounted == got.fed
    got.feed(GET, after_response=True).gap(3)
    assert got.accounted == got.fed


def test_bytes_of_the_two_sides_of_a_gap_never_meet() -> None:
    """Whatever is cut out of a stream: what is mirrored was sent, in that order."""
    sent = [TAKEN["length-5"][0], TAKEN["trailers"][0], GET, TAKEN["length-body-is-a-request"][0], head(b"X: last")]
    stream = b"".join(sent)
    for size in (1, 2, 5, 30, 120):
        for at in range(1, len(stream) - size):
            got = Heard().feed(stream[:at], True).gap(size).feed(stream[at + size :]).end()
            left = iter(sent)
            assert all(request in left for request in got.requests)


def test_a_head_may_come_in_as_many_pieces_as_it_has_bytes() -> None:
    size = 1 << 16
    got = RequestFramer(size, None, False, HeadMemory(size))
    for byte in (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * size)[: size - 1]:
        assert not got.feed(bytes([byte]), False)
    assert got.held == size - 1
    assert list(got.feed(b"x", False)) == [Lost(size, Reason.OVERSIZE)]


# --- the bound of all framers together

BEGUN = b"GET / HTTP/1.1\r\nHost: a\r\nX: "


def test_heads_that_find_no_room_are_lost_and_the_next_request_is_taken() -> None:
    memory = HeadMemory(3 * len(BEGUN))
    framers = [Heard(memory=memory).feed(BEGUN) for _ in range(3)]
    refused = Heard(memory=memory).feed(BEGUN)
    assert refused.lost == {Reason.MEMORY_LIMIT: len(BEGUN)}
    assert refused.feed(b"\r\n\r\n").feed(GET, True).requests == [GET]  # one that lies whole in a segment needs none
    framers[0].feed(b"\r\n\r\n")
    assert framers[0].requests == [BEGUN + b"\r\n\r\n"]
    assert Heard(memory=memory).feed(BEGUN).lost == {}, "what became whole makes room"
    framers[1].end()
    framers[2].gap(10)
    assert memory.bytes == len(BEGUN)


def test_a_request_under_way_that_finds_no_room_is_broken() -> None:
    """Lines of chunk framing are held too."""
    heard = Heard(memory=HeadMemory(2)).feed(chunked() + b"5\r\nhello\r\n5;a")
    assert heard.breaks == [Reason.MEMORY_LIMIT]
    assert heard.lost == {Reason.MEMORY_LIMIT: 3}


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_trailers_can_be_swallowed(step: int) -> None:
    whole = chunked(b"5\r\nhello\r\n", b"0\r\nX-Sum: 1\r\nAuthorization: s\r\n\r\n") + GET
    framer = RequestFramer(1_000, None, False, HeadMemory(1_000), trailers=False)
    parts: list[Part] = []
    for at in range(0, len(whole), step):
        piece = whole[at : at + step]
        for message in framer.feed(memoryview(piece), at == 0):
            assert isinstance(message, Part)
            parts.append(Part(bytes(message.data), message.size, message.flags))
        assert sum(part.size for part in parts) + framer.held == min(at + step, len(whole))
    assert b"".join(bytes(part.data) for part in parts) == chunked(b"5\r\nhello\r\n", b"0\r\n\r\n") + GET
    assert sum(bool(part.flags & END) for part in parts) == 2


def test_swallowed_trailers_are_accounted_for_when_the_stream_breaks() -> None:
    framer = RequestFramer(1_000, None, False, HeadMemory(1_000), trailers=False)
    told = sum(message.size for message in framer.feed(chunked(b"0\r\nX: 1\r\nY"), True))
    assert framer.held == 7
    assert [message.size for message in framer.end()] == [7]
    assert told + 7 == len(chunked(b"0\r\nX: 1\r\nY"))
