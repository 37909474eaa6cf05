# SPDX-License-Identifier: Apache-2.0
"""Which operation a request calls, if all operations share one path: GraphQL, JSON-RPC, SOAP.

Theory of operation
-------------------
The operation is named by what its protocol names it by:

* GraphQL (GraphQL over HTTP, 5; GraphQL, 2.3): `operationName`, or else the operation in the document `query`; if that
  has no name, its first field.  A request is GraphQL if its path ends in `graphql` or `gql`, if its type says so, or if
  its `query` has a document that begins unlike any text to search for.
* JSON-RPC 2.0 (4): `method`, beside `jsonrpc`.
* SOAP 1.1 (6.1.1): the last part of `SOAPAction`; SOAP 1.2 (part 2, 6.5.3): that of `action` in Content-Type; if both
  are empty, the first element of the envelope's body.

Several calls in one array are `BATCH`, unless all call the same operation.

Only the first `OPENING` bytes of a body are inspected.  Longer JSON is read that far, and nothing is assumed about the
rest.  In a document that is cut the first operation counts: only tools send several.  No body is decompressed, and
parts of a form (uploads) are not inspected.

What clients send is hostile: a name must match `NAME`, which has a bounded length and few kinds of characters;
otherwise there is none.  `endpoints` limits how many names there are.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_plus

import msgspec

from tapmirror.exchange import Asked, Calls

OPENING: Final = 4096
"""Most bytes of a body that are inspected, and of a target."""
LEXEMES: Final = 128
"""Most lexemes that are inspected in one body, of cut JSON and of GraphQL documents: some 0.1 ms."""
CHUNKS: Final = 32
"""Most chunks of a body that are inspected."""
ACTION: Final = 512
"""Most bytes of a URI whose last part counts."""
BATCH: Final = "batch"
ANONYMOUS: Final = "anonymous"
NAME: Final = re.compile(r"[\w.:/$@-]{1,80}", re.ASCII)
"""The form of a name.  Those of JSON-RPC may be any text: `eth_call`, `user.get`, `tools/list`."""

_TYPE: Final = b"\ncontent-type:"
_ACTION: Final = b"\nsoapaction:"
_GRAPHQL_PATH: Final = re.compile(rb"[^?]*/(?:graphql|gql)(?:\.[a-z]+)?/?(?:\?|$)", re.IGNORECASE)
_PARAMETER: Final = re.compile(rb"[?&](operationName|query)=([^&#]*)")
_OF_TYPE: Final = re.compile(rb";[ \t]*action[ \t]*=[ \t]*\"?([^\";\r\n]*)", re.IGNORECASE)
_PARTS: Final = re.compile(r"[\w.-]+", re.ASCII)
_IN_ENVELOPE: Final = re.compile(rb"<(?:[\w.-]+:)?Body(?:\s[^<>]*)?>\s*<(?:[\w.-]+:)?([\w.-]+)[\s/>]")
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,"]', re.DOTALL)
"""A token of JSON: a string, which may be cut, or a mark."""
_WHOLE: Final = re.compile(rb'[^"\\]*(?:\\(?:u[0-9a-fA-F]{4}|[^u])[^"\\]*)*', re.DOTALL)
"""The part of a cut JSON string that can be read: all but half an escape at its end."""
_DOCUMENT: Final = re.compile(r"\s*+(?:query|mutation|subscription)\b\s*+(?:[_A-Za-z]\w*+\s*+)?[({@]", re.ASCII)
_NAMED: Final = re.compile(r"\s*+(?:query|mutation|subscription)\s++([_A-Za-z]\w*+)", re.ASCII)
"""The beginning of most documents; all others are read by their lexemes."""
_LEXEME: Final = re.compile(
    r'#[^\r\n]*+|"""(?:\\"""|.)*?(?:"""|\Z)|"(?:[^"\\\r\n]|\\.)*"?|\.\.\.|[_A-Za-z]\w*+|[{}():@]',
    re.ASCII | re.DOTALL,
)
"""The lexemes of a GraphQL document that tell its operations from the rest (GraphQL, 2.1)."""
_LETTERS: Final = f"{string.ascii_letters}{string.digits}_"
_JSON: Final = (b"{", b"[", b" ", b"\t", b"\r", b"\n")
_NO_SIZE: Final = (b"{", b"[", b"<")
"""What a body usually begins with if it is not chunked."""
_QUERY: Final = ord("?")  # a number: `in` finds it in a seventh of the time
_KINDS: Final = frozenset({"query", "mutation", "subscription"})


class _Call(msgspec.Struct):
    """The members that name an operation; all others are skipped."""

    query: str | None = None
    operationName: str | None = None  # noqa: N815 - as it is named there
    jsonrpc: str | None = None
    method: str | None = None


_calls: Final = msgspec.json.Decoder(_Call | list[_Call])


def calls(method: bytes, target: bytes, head: bytes) -> Calls | None:
    """How a request may name an operation; None: it names none."""
    if method == b"POST":
        low = head.lower()
        if _ACTION in low:
            return Calls.SOAP
        at = low.find(_TYPE)
        if at < 0:
            return None
        kind = low[at + len(_TYPE) : low.find(b"\r", at)]
        if b"json" in kind or b"application/graphql" in kind:
            return Calls.GRAPHQL if _to_graphql(target) or b"application/graphql" in low else Calls.JSON
        return Calls.SOAP if b"soap+xml" in kind else None
    if method == b"GET" and _QUERY in target and (target.find(b"query=") >= 0 or target.find(b"operationName=") >= 0):
        return Calls.GRAPHQL if _to_graphql(target) else None
    return None


def _to_graphql(target: bytes) -> bool:
    may = b"ql" in target or b"QL" in target  # a tenth of the time
    return may and _GRAPHQL_PATH.match(target[:OPENING]) is not None


def operation(asked: Asked) -> str:
    """The name of the operation that a request calls; empty: it has none that could be read."""
    name = _named(asked)
    return name if name and NAME.fullmatch(name) else ""


def _named(asked: Asked) -> str:
    if asked.method == b"GET":
        found = {
            key: unquote_plus(value.decode("latin-1")) for key, value in _PARAMETER.findall(asked.target[:OPENING])
        }
        return found.get(b"operationName") or _of_document(found.get(b"query", ""), iter(range(LEXEMES)))
    body = asked.body
    if body[:1] not in _NO_SIZE and b"\ntransfer-encoding:" in asked.head.lower():
        body = _unframed(body)
    if asked.calls is Calls.SOAP:
        return _of_envelope(asked.head, body)
    graphql = asked.calls is Calls.GRAPHQL
    cut = len(asked.body) >= OPENING
    most = iter(range(LEXEMES))  # of all documents in it
    if graphql and body[:1] not in _JSON:  # application/graphql: the document itself
        return _of_document(_shortened(body.decode("utf-8", "ignore"), cut), most)
    if not graphql and b'"jsonrpc"' not in body and b'"query"' not in body:
        return ""
    try:
        read = _begun(body) if cut else _calls.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    if isinstance(read, _Call):
        return _of_call(read, graphql, most)
    names = {_of_call(each, graphql, most) for each in read}
    return names.pop() if len(names) == 1 else BATCH


def _of_call(call: _Call, graphql: bool, most: Iterator[int]) -> str:
    query = call.query
    if not graphql:
        if call.jsonrpc is not None:
            return call.method or ""
        if query is None or not _DOCUMENT.match(query):
            return ""
    return call.operationName or (_of_document(query, most) if query else "")


def _begun(text: bytes) -> _Call | list[_Call]:
    """The members of a JSON object of which only the beginning is there; those of an array are not read."""
    found: dict[str, str] = {}
    key, value, depth = "", False, 0
    for _, token in zip(range(LEXEMES), _TOKEN.finditer(text), strict=False):
        what = token[0]
        if what in (b"{", b"["):
            if not depth and what == b"[":
                return []
            depth += 1
        elif what in (b"}", b"]"):
            depth -= 1
        elif what == b'"':  # it does not end
            if depth == 1 and value and key == "query":
                found[key] = _shortened(_text(b'"%b"' % _WHOLE.match(text, token.end())[0]), True)  # type: ignore[index]
            break
        elif depth == 1:
            if what == b":":
                value = True
            elif what == b",":
                value = False
            elif not value:
                key = _text(what)
            elif key in _Call.__struct_fields__:
                found[key] = _text(what)
                if found.get("operationName") or ("jsonrpc" in found and "method" in found):
                    break
    return _Call(**found)


def _text(token: bytes) -> str:
    return msgspec.json.decode(token.decode("utf-8", "ignore"), type=str)


def _shortened(document: str, cut: bool) -> str:
    """The text without its last word, which may be cut."""
    return document.rstrip(_LETTERS) if cut else document


def _of_document(document: str, most: Iterator[int]) -> str:
    """The name of the first operation or, without one, its first field.  As many lexemes are read as `most` has."""
    named = _NAMED.match(document)
    if named is not None:
        return named[1]
    found = zip(most, _LEXEME.finditer(document), strict=False)
    lexemes = (each[0] for _, each in found if each[0][0] not in '#"')
    for word in lexemes:
        if word == "{":
            return _first_field(lexemes)
        if word in _KINDS:
            name = next(lexemes, "")
            if name.isidentifier():
                return name
            depth = 0
            while name and (name != "{" or depth):  # variables may have objects as defaults
                depth += (name == "(") - (name == ")")
                name = next(lexemes, "")
            return _first_field(lexemes)
        if word != "fragment":
            return ""
        depth = 0
        for part in lexemes:
            depth += (part in "{(") - (part in "})")
            if part == "}" and depth <= 0:
                break
    return ""


def _first_field(lexemes: Iterator[str]) -> str:
    name = next(lexemes, "")
    if not name:
        return ""
    if next(lexemes, "") == ":":  # that was an alias
        name = next(lexemes, "")
    return name if name.isidentifier() else ANONYMOUS


def _of_envelope(head: bytes, body: bytes) -> str:
    low = head.lower()
    at = low.find(_ACTION)
    if at >= 0:
        action = head[at + len(_ACTION) : head.find(b"\r", at + 1)]
    else:
        at = low.find(_TYPE)
        found = _OF_TYPE.search(head, at, head.find(b"\r", at + 1))
        action = found[1] if found else b""
    parts = _PARTS.findall(action[-ACTION:].decode("latin-1"))
    if parts:
        return str(parts[-1])
    element = _IN_ENVELOPE.search(body)
    return element[1].decode("latin-1") if element else ""


def _unframed(body: bytes) -> bytes:
    """The data of the first chunks (RFC 9112, 7.1), as far as they go."""
    data: list[bytes] = []
    at = 0
    while len(data) < CHUNKS and (end := body.find(b"\r\n", at)) >= 0:
        size = body[at:end].partition(b";")[0].strip(b" \t")
        if not _SIZE.fullmatch(size):
            break
        at = end + 2 + int(size, 16)
        data.append(body[end + 2 : at])
        at += 2
    return b"".join(data)


_SIZE: Final = re.compile(rb"[0-9a-fA-F]{1,8}")
