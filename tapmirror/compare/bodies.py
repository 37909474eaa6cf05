# SPDX-License-Identifier: Apache-2.0
"""Bodies made comparable: their content codings are undone, within bounds, and their kind is determined.

A small compressed body may stand for gigabytes: decoding stops at a bound.  `br` needs the package brotli (1.2 or
later: earlier ones cannot be bounded), `zstd` the package zstandard; without them such bodies are compared as bytes.
"""

from __future__ import annotations

import codecs
import enum
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Final

CODINGS: Final = 3
"""Most codings that are undone of one body."""
MEMBERS: Final = 64
"""Most members of one gzip body: each costs a copy of what follows it."""
WINDOW: Final = 8 << 20
"""Largest window of zstd: what a decoder must accept on the web (RFC 9659)."""

_WORD: Final = re.compile(rb"[a-z0-9-]+")
_CHARSET: Final = re.compile(rb"charset=\"?([a-z0-9._-]{1,40})")
_DECLARATION: Final = re.compile(
    rb"<\?xml\s[^>]{0,100}?\sencoding\s{0,9}=\s{0,9}[\"']([A-Za-z][A-Za-z0-9._-]{0,39})[\"']"
)
_CHARSETS: Final = re.compile(
    r"utf-?(?:8|16(?:[lb]e)?)|(?:us-)?ascii|iso-8859-\d\d?|latin-?1|windows-\d{3,4}|koi8-[ru]|macintosh"
    r"|shift[-_]jis|euc-(?:jp|kr)|iso-2022-(?:jp|kr)|gb2312|gbk|gb18030|big5"
)
"""Character sets in use on the web (WHATWG Encoding).  Python has more, but some of those take time that grows with the
square of the length (punycode), and others give text that cannot be encoded again (utf-7, unicode_escape)."""


_BOUNDARY: Final = re.compile(rb"\A(\s*+multipart/[^;]*+;.*?\bboundary=)\"?([^\s\";]{1,70})\"?", re.IGNORECASE)
"""Content-Type of a multipart with a boundary of at most 70 characters (RFC 2046, 5.1.1).  NOTE: a boundary with a
space is not found."""


class Kind(enum.Enum):
    """How two bodies are compared."""

    JSON = "json"
    HTML = "html"
    TEXT = "text"
    BYTES = "bytes"


class UndecodableError(Exception):
    """The body is not what its coding says, or its coding is not known here; the message says which."""


class TooLongError(Exception):
    """The body is longer than the bound once it is decoded."""


def decoded(body: bytes, coding: bytes, limit: int) -> bytes:
    """The body without its codings (RFC 9110, 8.4), at most `limit` bytes.

    Raises `UndecodableError` and `TooLongError`.
    """
    codings = [name for name in _WORD.findall(coding.lower()) if name != b"identity"]
    if len(codings) > CODINGS:
        raise UndecodableError("more codings than are undone")
    for name in reversed(codings):
        decode = _DECODERS.get(name)
        if decode is None:
            raise UndecodableError(f"unknown coding {name.decode()[:20]}")
        body = decode(body, limit)
        if len(body) > limit:
            raise TooLongError
    return body


def kind_of(content_type: bytes, body: bytes) -> Kind:
    """How a body is compared.  This is decided by its Content-Type or, without one, by how it begins."""
    kind = content_type.partition(b";")[0].strip().lower()
    if kind.endswith((b"/json", b"+json", b"ndjson", b"/jsonl", b"/x-jsonl", b"jsonlines")):
        return Kind.JSON
    if kind in (b"text/html", b"application/xhtml+xml"):
        return Kind.HTML
    if kind.startswith(b"text/") or kind.endswith((b"/xml", b"+xml", b"/javascript", b"/x-www-form-urlencoded")):
        return Kind.TEXT
    if not kind and body.lstrip()[:1] in (b"{", b"["):
        return Kind.JSON
    return Kind.BYTES


def is_xml(content_type: bytes) -> bool:
    """Whether this is a type of XML (RFC 7303) that is compared as XML; XHTML is compared as HTML."""
    kind = content_type.partition(b";")[0].strip().lower()
    return kind.endswith((b"/xml", b"+xml")) and kind_of(content_type, b"") is Kind.TEXT


def text_of(body: bytes, content_type: bytes, errors: str = "replace") -> str:
    """A body as text in its character set (UTF-8 if no known one is named); invalid bytes are replaced.

    `errors` as of `bytes.decode`: with "strict" it raises `UnicodeDecodeError` in place of that.
    """
    found = _CHARSET.search(content_type.lower())
    if found is not None:
        name = found[1].decode()
    elif is_xml(content_type):
        name = _declared(body)
    else:
        name = "utf-8"
    try:
        return body.decode(name if _CHARSETS.fullmatch(name) else "utf-8", errors)
    except LookupError:  # no such part of ISO 8859, or code page of Windows
        return body.decode("utf-8", errors)


def _declared(body: bytes) -> str:
    """The encoding of XML, by its byte order mark or its declaration (XML 1.0, F).

    A declaration of UTF-16 in ASCII is ignored: .NET writes it into what it then sends as UTF-8.
    """
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    found = _DECLARATION.match(body)
    name = "utf-8" if found is None else found[1].decode().lower()
    return "utf-8" if name.startswith("utf-16") else name


def without_boundary(content_type: bytes) -> bytes:
    """A Content-Type without the boundary of a multipart, which changes with each response or each start of a
    server.
    """
    return _BOUNDARY.sub(rb"\1", content_type)


def without_boundaries(body: bytes, content_type: bytes) -> bytes:
    """A multipart body with two hyphens in place of each boundary (RFC 2046, 5.1.1); any other body unchanged."""
    found = _BOUNDARY.match(content_type)
    return body if found is None else body.replace(b"--" + found[2], b"--")


def missing() -> list[str]:
    """Codings that cannot be undone because a package is not installed."""
    found = []
    for name, package in (("br", "brotli"), ("zstd", "zstandard")):
        try:
            __import__(package)
        except ImportError:
            found.append(name)
    return found


def _gzip(body: bytes, limit: int) -> bytes:
    """The data of all members of a gzip body (RFC 1952, 2.2)."""
    out = b""
    for _ in range(MEMBERS):
        member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        out += _inflated(member, body, limit + 1 - len(out))
        if len(out) > limit:
            return out
        if not member.eof:
            raise UndecodableError("gzip: cut off")
        body = member.unused_data.lstrip(b"\0")  # padding, as gzip(1) allows
        if not body:
            return out
    raise UndecodableError("gzip: more members than are read")


def _deflate(body: bytes, limit: int) -> bytes:
    """The zlib format, as RFC 9110, 8.4.1.2 says, or the bare data that some servers send in its place."""
    try:
        return _one(zlib.decompressobj(), body, limit)
    except UndecodableError:
        return _one(zlib.decompressobj(-zlib.MAX_WBITS), body, limit)


def _one(stream: zlib._Decompress, body: bytes, limit: int) -> bytes:
    out = _inflated(stream, body, limit + 1)
    if not stream.eof and len(out) <= limit:
        raise UndecodableError("deflate: cut off")
    return out


def _inflated(stream: zlib._Decompress, body: bytes, most: int) -> bytes:
    try:
        return stream.decompress(body, most)
    except zlib.error as error:
        raise UndecodableError(str(error)) from None


def _brotli(body: bytes, limit: int) -> bytes:
    try:
        import brotli
    except ImportError:
        raise UndecodableError("br: the package brotli is not installed") from None
    stream = brotli.Decompressor()
    try:
        out: bytes = stream.process(body, output_buffer_limit=limit + 1)
        while len(out) <= limit and not stream.is_finished() and not stream.can_accept_more_data():
            out += stream.process(b"", output_buffer_limit=limit + 1 - len(out))
    except TypeError:
        raise UndecodableError("br: the package brotli is older than 1.2 and cannot be bounded") from None
    except brotli.error as error:
        raise UndecodableError(f"br: {error}") from None
    if len(out) <= limit and not stream.is_finished():
        raise UndecodableError("br: cut off")
    return out


def _zstd(body: bytes, limit: int) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise UndecodableError("zstd: the package zstandard is not installed") from None
    stream = zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(body, read_across_frames=True)
    try:
        return bytes(stream.read(limit + 1))
    except zstandard.ZstdError as error:
        raise UndecodableError(f"zstd: {error}") from None


_DECODERS: Final[Mapping[bytes, Callable[[bytes, int], bytes]]] = {
    b"gzip": _gzip,
    b"x-gzip": _gzip,
    b"deflate": _deflate,
    b"br": _brotli,
    b"zstd": _zstd,
}
