# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable

import pytest

from tapmirror.compare.bodies import (
    MEMBERS,
    Kind,
    TooLongError,
    UndecodableError,
    decoded,
    is_xml,
    kind_of,
    missing,
    text_of,
)

TEXT = b'{"name": "value", "list": [1, 2, 3]}' * 20


def bare(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def brotli(data: bytes) -> bytes:
    return bytes(pytest.importorskip("brotli").compress(data))


def zstd(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(data))


CODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
    b" Deflate": bare,
    b"br": brotli,
    b"zstd": zstd,
}


@pytest.mark.parametrize("coding", CODERS)
def test_codings_are_undone(coding: bytes) -> None:
    assert decoded(CODERS[coding](TEXT), coding, 1 << 20) == TEXT


@pytest.mark.parametrize("coding", CODERS)
def test_a_bomb_stops_at_the_bound(coding: bytes) -> None:
    bomb = CODERS[coding](bytes(10 << 20))
    assert len(bomb) < 100_000
    with pytest.raises(TooLongError):
        decoded(bomb, coding, 1 << 20)


@pytest.mark.parametrize("coding", CODERS)
def test_a_body_of_just_the_bound(coding: bytes) -> None:
    assert decoded(CODERS[coding](TEXT), coding, len(TEXT)) == TEXT
    with pytest.raises(TooLongError):
        decoded(CODERS[coding](TEXT), coding, len(TEXT) - 1)


@pytest.mark.parametrize("coding", CODERS)
@pytest.mark.parametrize("data", [b"garbage", b"\x1f\x8b\x08", b"", b"{}"])
def test_what_is_not_what_it_says(coding: bytes, data: bytes) -> None:
    if not data and coding in (b"gzip", b"x-gzip", b"zstd"):
        return  # an empty body is no member at all
    with pytest.raises(UndecodableError):
        decoded(data, coding, 1000)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b" Deflate"])
def test_a_body_cut_off(coding: bytes) -> None:
    with pytest.raises(UndecodableError):
        decoded(CODERS[coding](TEXT)[:-5], coding, 1 << 20)


def test_several_codings_are_undone_from_the_last_one() -> None:
    assert decoded(gzip.compress(zlib.compress(TEXT)), b"deflate, gzip", 1 << 20) == TEXT
    with pytest.raises(UndecodableError):
        decoded(TEXT, b"gzip, gzip, gzip, gzip", 1 << 20)
    assert decoded(TEXT, b"identity", 10_000) == TEXT


def test_members_of_gzip_are_read_together_and_bounded() -> None:
    assert decoded(gzip.compress(b"one") + gzip.compress(b"two") + bytes(3), b"gzip", 100) == b"onetwo"
    with pytest.raises(UndecodableError):
        decoded(gzip.compress(b"") * (MEMBERS + 1), b"gzip", 100)


def test_without_the_packages_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brotli", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for coding in (b"br", b"zstd"):
        with pytest.raises(UndecodableError, match="package"):
            decoded(b"x", coding, 100)
    assert missing() == ["br", "zstd"]


@pytest.mark.parametrize(
    ("content_type", "body", "kind"),
    [
        (b"application/json; charset=utf-8", b"", Kind.JSON),
        (b"application/problem+json", b"", Kind.JSON),
        (b"Text/HTML", b"", Kind.HTML),
        (b"text/csv", b"", Kind.TEXT),
        (b"image/svg+xml", b"", Kind.TEXT),
        (b"image/png", b"[", Kind.BYTES),
        (b"", b" {", Kind.JSON),
        (b"", b"x", Kind.BYTES),
    ],
)
def test_kinds(content_type: bytes, body: bytes, kind: Kind) -> None:
    assert kind_of(content_type, body) is kind


@pytest.mark.parametrize(
    ("content_type", "xml"),
    [
        (b"text/xml", True),
        (b" Application/XML ; charset=utf-8", True),
        (b"application/soap+xml;action=a", True),
        (b"image/svg+xml", True),
        (b"application/xhtml+xml", False),
        (b"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", False),
        (b"text/plain; profile=xml", False),
        (b"", False),
    ],
)
def test_types_of_xml(content_type: bytes, xml: bool) -> None:
    assert is_xml(content_type) is xml


@pytest.mark.parametrize("charset", [b"", b"; charset=utf-8", b"; charset=nonsense", b"; charset=base64"])
def test_text_in_whatever_character_set(charset: bytes) -> None:
    assert text_of(b"text\xff", b"text/plain" + charset).startswith("text")


@pytest.mark.parametrize("charset", [b"punycode", b"utf-7", b"unicode_escape", b"raw_unicode_escape", b"iso-8859-99"])
def test_what_is_no_character_set_of_the_web_is_read_as_utf_8(charset: bytes) -> None:
    """Python's punycode takes 12 s of 200 kB; what the others make cannot be encoded again."""
    body = b"a-bc \\ud800 +2AA- \xc3\xa9"
    assert text_of(body, b"text/plain; charset=" + charset) == body.decode()


def test_latin_1() -> None:
    assert text_of(b"\xe9", b"text/plain; charset=ISO-8859-1") == "é"
