# SPDX-License-Identifier: Apache-2.0
"""Where bodies end: each is fed whole, byte by byte, and with what follows it."""

from __future__ import annotations

import pytest

from tapmirror.events import Buffer
from tapmirror.framing.response_end import CHUNK_SIZE, UNTIL_END, ResponseReader

HEAD_BYTES = 40


class Reader(ResponseReader[str]):
    """Bodies only, one after the other."""

    def __init__(self, fields: list[tuple[bytes, bytes]]) -> None:
        super().__init__(HEAD_BYTES)
        self.fields = fields
        self.out: list[str] = []
        self.good = self._expect_body(fields, self.out)

    def _answered(self, out: list[str]) -> None:
        out.append("whole")
        self._state = UNTIL_END

    def _fail(self, data: Buffer) -> int:
        self.out.append("failed")
        self._state = UNTIL_END
        return len(data)

    def _run(self, data: Buffer, pos: int, out: list[str]) -> int:
        taken = min(len(data) - pos, self._remaining)
        self._remaining -= taken
        if not self._remaining:
            self._run_ended(out)
        return pos + taken

    def feed(self, data: bytes) -> int:
        """How many bytes belong to the body."""
        run, rest = self._run, self._discard
        steps = (rest, rest, run, self._chunk_size, run, self._chunk_end, self._trailer, rest, rest)
        pos = 0
        while pos < len(data) and not self.out:
            pos = steps[self._state](data, pos, self.out)
        return pos


CHUNKED = [(b"Transfer-Encoding", b"gzip, Chunked ")]


@pytest.mark.parametrize(
    ("fields", "body", "want"),
    [
        ([(b"Content-Length", b"5")], b"01234", "whole"),
        ([(b"content-length", b"5 "), (b"Content-Length", b"5")], b"01234", "whole"),
        (CHUNKED, b"3\r\nabc\r\n1A ;x=y\r\n" + b"z" * 26 + b"\r\n0\r\n\r\n", "whole"),
        (CHUNKED, b"1\na\n0\nA: b\n\n", "whole"),
        (CHUNKED, b"x\r\n", "failed"),
        (CHUNKED, b"1\r\nabc", "failed"),
        (CHUNKED, b"0\r\n" + b"a" * HEAD_BYTES, "failed"),
        (CHUNKED, b"1" * 4096, "failed"),
    ],
    ids=["length", "twice", "chunks", "bare LF", "no size", "no end", "endless trailer", "endless size"],
)
def test_where_a_body_ends(fields: list[tuple[bytes, bytes]], body: bytes, want: str) -> None:
    whole, pieces, more = Reader(fields), Reader(fields), Reader(fields)
    whole.feed(body)
    for byte in body:
        pieces.feed(bytes([byte]))
    taken = more.feed(body + b"HTTP/1.1")
    assert whole.out == pieces.out == more.out == [want]
    assert want == "failed" or taken == len(body)


@pytest.mark.parametrize(
    ("fields", "good", "state"),
    [
        ([(b"content-length", b"5"), (b"content-length", b"6")], False, None),
        ([(b"content-length", b"-5")], False, None),
        ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], True, CHUNK_SIZE),
        ([(b"transfer-encoding", b"chunked, gzip")], True, UNTIL_END),
        ([(b"connection", b"close")], True, UNTIL_END),
    ],
)
def test_what_fields_say(fields: list[tuple[bytes, bytes]], good: bool, state: int | None) -> None:
    reader = Reader(fields)
    assert reader.good is good
    assert state is None or reader._state == state


def test_an_empty_body_is_whole_at_once() -> None:
    assert Reader([(b"content-length", b"0")]).out == ["whole"]
