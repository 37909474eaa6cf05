# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.compare.operations import ANONYMOUS, BATCH, NAME, OPENING, calls, operation
from tapmirror.exchange import Asked

QUERY = "query GetUser($id: ID!) { user(id: $id) { name } }"
ENVELOPE = (
    b'<?xml version="1.0"?><s:Envelope xmlns:s="x"><s:Header/><s:Body a="b">\n <m:GetPrice xmlns:m="y"/></s:Body>'
)
LONG = " " * OPENING


def named(target: str, body: bytes = b"", *fields: str, method: bytes = b"POST") -> str:
    """What a request is said to call for, of which as much of the body is at hand as is kept."""
    head = "".join(f"{field}\r\n" for field in ("Host: h", *fields)).encode()
    head = method + b" " + target.encode() + b" HTTP/1.1\r\n" + head + b"\r\n"
    asked = Asked(1, method, target.encode(), head, body=body[:OPENING], calls=calls(method, target.encode(), head))
    return operation(asked) if asked.calls is not None else ""


def posted(document: Any, target: str = "/graphql") -> str:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return named(target, body, "Content-Type: application/json; charset=utf-8")


@pytest.mark.parametrize(
    ("document", "want"),
    [
        ({"operationName": "GetUser", "variables": {}, "query": QUERY}, "GetUser"),
        ({"query": QUERY}, "GetUser"),
        ({"query": QUERY, "operationName": None}, "GetUser"),
        ({"query": QUERY, "operationName": ""}, "GetUser"),
        ({"query": "query A { a } query B { b }", "operationName": "B"}, "B"),
        ({"operationName": "Kept", "extensions": {"persistedQuery": {"version": 1}}}, "Kept"),
        ({"query": "mutation Pay{pay}"}, "Pay"),
        ({"query": "{ user(id: 1) { name } }"}, "user"),
        ({"query": "query { mine: user { name } }"}, "user"),
        ({"query": 'query ($a: In = {b: {c: "{ no }"}}) @x(y: "(") { user }'}, "user"),
        ({"query": "query @cached(ttl: 60) { user }"}, "user"),
        ({"query": "{ ...F } fragment F on Q { user }"}, ANONYMOUS),
        ({"query": "fragment query on Q @a(b: {}) { user { id } }\n# query No\nquery, Yes { ...query }"}, "Yes"),
        ({"query": '"""query No {""" query Yes { a }'}, "Yes"),
        ({"query": 'query($a: S = """{ "no" \\""" }""") { yes }'}, "yes"),
        ({"query": "type Query { a: Int }"}, ""),
        ({"query": "subscription"}, ""),
        ({"query": {"match": "x"}}, ""),
        ({"operationName": 'no <b>\x1b[2J"name', "query": QUERY}, ""),
        ({"operationName": "x" * 81}, ""),
        ({"variables": {"operationName": "No"}}, ""),
        ([{"query": QUERY}, {"query": QUERY}], "GetUser"),
        ([{"query": QUERY}, {"query": "{ a }"}], BATCH),
        ([], BATCH),
        (b'{"query": "query Get', ""),
        (b"\xff\xfe{", ""),
        (b"", ""),
        (b"[" * 4000, ""),
        (b'{"a":' * 800, ""),
    ],
)
def test_graphql(document: Any, want: str) -> None:
    assert posted(document) == want


@pytest.mark.parametrize(
    ("document", "want"),
    [
        ({"operationName": "GetUser", "variables": {"a": LONG}, "query": QUERY}, "GetUser"),
        ({"query": QUERY + LONG, "operationName": "GetUser"}, "GetUser"),
        ({"query": "# é \u0001 \U0001f600\n" * 30 + "query GetUser {" + "é" * OPENING}, "GetUser"),
        ({"variables": {"operationName": "No", "a": ['{"']}, "operationName": "Yes", "x": LONG}, "Yes"),
        ({"variables": {"operationName": "No", "query": LONG}}, ""),
        ({"x": LONG, "operationName": "TooLate"}, ""),
        ([{"operationName": "A", "x": LONG}], BATCH),
    ],
)
def test_of_a_longer_body_what_its_beginning_says(document: Any, want: str) -> None:
    assert posted(json.dumps(document, ensure_ascii=False).encode()) == want
    assert posted(json.dumps(document).encode()) == want


@pytest.mark.parametrize("size", range(60, 90))
def test_a_name_is_said_whole_or_not_at_all(size: int) -> None:
    """Wherever the look ends: in a name, in an escape, in a character."""
    text = '{"query":"' + " " * (OPENING - size) + 'query Get\\u0055ser\\n{ us\\u00e9r\\\\é\\"name } ' + LONG
    assert posted(text.encode()) in ("", "GetUser")
    text = '{"x":"' + "y" * (OPENING - size) + '","operationName":"GetUser","query":"' + LONG
    assert posted(text.encode()) in ("", "GetUser")


@pytest.mark.parametrize(
    ("target", "want"),
    [
        ("/graphql", "user"),
        ("/api/GraphQL/?x=1", "user"),
        ("/admin/graphql.json", "user"),
        ("/gql", "user"),
        ("/graphql/schema", ""),
        ("/search?to=/graphql", ""),
        ("/api", ""),
    ],
)
def test_a_document_without_operations_is_graphql_by_its_path(target: str, want: str) -> None:
    assert posted({"query": "{ user { name } }"}, target) == want


def test_graphql_at_any_path_by_its_type_or_its_document() -> None:
    body = json.dumps({"query": "{ user }"}).encode()
    assert named("/api", body, "Content-Type: application/json", "Accept: application/graphql-response+json") == "user"
    assert named("/api", b"{ user }", "content-type: application/graphql") == ""  # it is JSON that begins so
    assert named("/api", b"query Get { user }", "Content-Type: application/graphql") == "Get"
    assert posted({"query": QUERY}, "/api") == "GetUser"
    for text in ("query", "query plans in databases", "mutation rates of mice {", "GetUser", "{}"):
        assert posted({"query": text}, "/search") == ""


@pytest.mark.parametrize(
    ("query", "want"),
    [
        ("operationName=GetUser&variables=%7B%7D", "GetUser"),
        ("query=query+GetUser%28%24a%3AID%29%7Buser%7D", "GetUser"),
        ("query=%7Buser%7D", "user"),
        ("operationName=&query=%7Buser%7D", "user"),
        ("xoperationName=No", ""),
        ("operationName=a%00b", ""),
    ],
)
def test_graphql_by_get(query: str, want: str) -> None:
    assert named(f"/graphql?{query}", method=b"GET") == want
    assert named(f"/search?{query}", method=b"GET") == ""


@pytest.mark.parametrize(
    ("document", "want"),
    [
        ({"jsonrpc": "2.0", "method": "eth_call", "params": [{"to": "x"}], "id": 1}, "eth_call"),
        ({"method": "tools/list", "id": 1, "jsonrpc": "2.0"}, "tools/list"),
        ({"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": [LONG]}, "eth_call"),
        ({"jsonrpc": "2.0", "params": {"method": "no"}, "id": 1}, ""),
        ({"jsonrpc": "2.0", "method": "no name", "id": 1}, ""),
        ({"jsonrpc": "2.0", "method": 5, "id": 1}, ""),
        ({"method": "GET", "url": "/"}, ""),
        ([{"jsonrpc": "2.0", "method": "a"}, {"jsonrpc": "2.0", "method": "a"}], "a"),
        ([{"jsonrpc": "2.0", "method": "a"}, {"jsonrpc": "2.0", "method": "b"}], BATCH),
        ([{"jsonrpc": "2.0", "method": "a", "params": LONG}], BATCH),
        ([1, 2], ""),
    ],
)
def test_json_rpc(document: Any, want: str) -> None:
    assert posted(document, "/rpc") == want
    body = json.dumps(document).encode()
    assert named("/rpc", body, "Content-Type: text/plain") == ""


def test_a_body_in_chunks() -> None:
    body = json.dumps({"jsonrpc": "2.0", "method": "eth_call", "params": "x" * 900}).encode()
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(each), each) for each in (body[:25], body[25:])) + b"0\r\n\r\n"
    assert named("/", chunks, "Content-Type: application/json", "Transfer-Encoding: chunked") == "eth_call"
    assert named("/", b"zz\r\n" + body, "Content-Type: application/json", "Transfer-Encoding: chunked") == ""
    chunks = b"ffff\r\n" + body + LONG.encode()
    assert named("/", chunks, "Content-Type: application/json", "Transfer-Encoding: chunked") == "eth_call"


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        (['SOAPAction: "http://example.com/stock/GetPrice"', "Content-Type: text/xml"], "GetPrice"),
        (["soapaction: urn:stock#GetPrice", "Content-Type: text/xml"], "GetPrice"),
        (['SOAPAction: ""', "Content-Type: text/xml"], "GetPrice"),
        (["SOAPAction:", "Content-Type: text/xml"], "GetPrice"),
        (['Content-Type: application/soap+xml; charset=utf-8; action="urn:x/Sell"'], "Sell"),
        (["Content-Type: application/soap+xml"], "GetPrice"),
        (["Content-Type: text/xml"], ""),
        (["X: a", "Content-Type: text/xml; action=Sell"], ""),
    ],
)
def test_soap(fields: list[str], want: str) -> None:
    assert named("/soap", ENVELOPE, *fields) == want


def test_an_envelope_that_is_none() -> None:
    for body in (b"", b"<Body>", b"<Body><!-- <a/> -->", b"<Bodyguard><a/>", b"<s:Body><" + b"x" * 100 + b"/>"):
        assert named("/soap", body, "Content-Type: application/soap+xml") == ""


@given(st.sampled_from(["/graphql", "/rpc", "/soap"]), st.binary(max_size=OPENING))
def test_whatever_comes_has_a_name_of_few_characters_or_none(target: str, body: bytes) -> None:
    for kind in ("application/json", "application/graphql", "application/soap+xml"):
        found = named(target, body, f"Content-Type: {kind}")
        assert found == "" or NAME.fullmatch(found)


@given(st.text('{}()[]",:@#.\\ \nqueryfragmentmutation_aé', max_size=200), st.integers(0, 300))
def test_nor_does_any_document_break_it(document: str, cut: int) -> None:
    found = posted({"query": document})
    assert found == "" or NAME.fullmatch(found)
    text = json.dumps({"x": LONG[: OPENING - cut], "query": document, "y": LONG})
    found = posted(text.encode())
    assert found == "" or NAME.fullmatch(found)
