# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.policy.redact import NESTED, Redactor
from tapmirror.policy.request import Request
from tapmirror.policy.samples import LINES, QUERIES, USUAL, SampleRedactor
from tapmirror.spec import Redact

HEAD = (
    b"POST /a?token=abc&x=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer abc\r\nContent-Type: application/json\r\n\r\n"
)


def test_requests_lose_what_is_secret() -> None:
    head, body = SampleRedactor([USUAL], b"k").request(HEAD, b'{"user": {"email": "a@b", "name": "n"}}')
    assert b"abc" not in head
    assert head.startswith(b"POST /a?x=1 HTTP/1.1\r\nHost: x\r\n")
    assert body == b'{"user":{"email":"(redacted)","name":"n"}}'


@pytest.mark.parametrize(
    "name", ["accessToken", "refresh-token", "ID_TOKEN", "clientSecret", "newPassword", "session_id"]
)
def test_names_of_secrets_are_known_however_their_words_are_joined(name: str) -> None:
    redactor = SampleRedactor([USUAL], b"k")
    head = b"POST /a?user[%b]=abc&x=1 HTTP/1.1\r\nHost: x\r\nX-Access-Token: abc\r\nContent-Type: a/json\r\n\r\n"
    head, _ = redactor.request(head % name.encode(), b"")
    assert head == b"POST /a?x=1 HTTP/1.1\r\nHost: x\r\nContent-Type: a/json\r\n\r\n"
    response = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    assert redactor.response(response, json.dumps({name: "abc"}).encode())[1] == f'{{"{name}":"(redacted)"}}'.encode()
    assert redactor.field(f"body.user.{name}.first") == f"body.user.{name}"


def test_responses_lose_the_same_and_keep_their_status_line() -> None:
    head = b"HTTP/1.1 404 Not Found\r\nSet-Cookie: sid=1\r\nContent-Type: application/json\r\n"
    head, body = SampleRedactor([USUAL], b"k").response(
        head + b"Content-Encoding: gzip\r\n\r\n", b'[{"password": "p"}]'
    )
    assert head == b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n\r\n"
    assert body == b'[{"password":"(redacted)"}]'


def test_the_code_of_an_error_is_shown_unless_a_rule_names_it() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    told = b'{"error":{"code":-32601,"data":{"code":"s3cret"}}}'
    shown = b'{"error":{"code":-32601,"data":{"code":"(redacted)"}}}'
    assert SampleRedactor([USUAL], b"k").response(head, told)[1] == shown
    assert SampleRedactor([USUAL], b"k").response(head, b'{"code":5}')[1] == b'{"code":"(redacted)"}'
    named = Redact(json={"**.code": "replace:gone"})
    for rules in ([USUAL, named], [named]):
        assert SampleRedactor(rules, b"k").response(head, told)[1] == (
            b'{"error":{"code":"gone","data":{"code":"gone"}}}'
        )


def test_texts_are_shown_as_they_are_unless_a_rule_forbids_it() -> None:
    head = b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n"
    assert SampleRedactor([USUAL], b"k").response(head, b"<p>")[1] == b"<p>"
    assert SampleRedactor([USUAL, Redact(privacy="strict")], b"k").response(head, b"<p>")[1] is None
    assert SampleRedactor([Redact(patterns={"[0-9]+": "#"})], b"k").response(head, b"card 4111")[1] == b"card #"


def test_lines_and_events_of_json_lose_the_same() -> None:
    redactor = SampleRedactor([USUAL, Redact(patterns={"[0-9]{13}": "CARD"})], b"k")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"
    assert redactor.response(head, b'{"pin":1}\n\n [{"a":2}]\n')[1] == b'{"pin":"(redacted)"}\n[{"a":2}]'
    assert redactor.response(head, b'{"pin":1}\n{"a":')[1] is None
    assert redactor.response(head, b'{}\n"pin":\n"1"')[1] is None
    head = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream\r\n\r\n"
    body = (
        b'id: 4111111111111\ndata: {"pin":\nevent: x\ndata: 1}\n\n: pin\ndata: hello\n\ndata: {"pin": 1\n\ndata: [DONE]'
    )
    assert redactor.response(head, body)[1] == (
        b'id: CARD\nevent: x\ndata: {"pin":"(redacted)"}\n\n: pin\ndata: hello\n\ndata: (not shown)\n\ndata: [DONE]'
    )
    assert SampleRedactor([Redact(privacy="strict")], b"k").response(head, body)[1] is None


@pytest.mark.parametrize(
    ("kind", "body", "want"),
    [
        ("text/event-stream", b'\xef\xbb\xbfdata: {"pin":1}', b'data: {"pin":"(redacted)"}'),
        ("text/event-stream", b'id: [{"pin":1}]\n: "pin": 2', b'id: [{"pin":"(redacted)"}]\n: "pin": 2'),
        ("text/event-stream", b'data : {"pin":1}\nx:{"pin":\n', b'data : {"pin":"(redacted)"}\nx:(not shown)'),
        ("text/event-stream", b'\n{"pin":1}', b'{"pin":"(redacted)"}'),
        ("text/event-stream", b'x\n{"pin":1}', b'x\n{"pin":"(redacted)"}'),
        ("text/plain", b'\xef\xbb\xbf{"pin":1}', b'{"pin":"(redacted)"}'),
        ("text/plain; charset=utf-16", '{"pin":1}'.encode("utf-16"), None),
        ("application/x-ndjson", b'0\n{"pin":1}', None),
        ("application/json-seq", b'\x1e{"pin":1}\n', None),
        ("application/json", b'"a"', b'"a"'),
        ("application/x-ndjson", b"{}\n" * (LINES + 1), None),
        ("text/event-stream", b"x\n" * (LINES + 1), None),
    ],
)
def test_json_in_other_dress_is_not_shown_as_it_is(kind: str, body: bytes, want: bytes | None) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode()
    assert SampleRedactor([USUAL], b"k").response(head, body)[1] == want


def test_what_a_body_is_goes_by_the_type_that_it_came_with() -> None:
    redactor = SampleRedactor([Redact(headers={"content-type": "remove"}, patterns={"x": "y"}), USUAL], b"k")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    assert redactor.response(head, b'data: {"pin":1}') == (b"HTTP/1.1 200 OK\r\n\r\n", b'data: {"pin":"(redacted)"}')


def test_rules_hold_of_lines_and_events_as_differences_in_them_are_named() -> None:
    rules = {"vault": "remove", "[].a.b": "remove", "[].data[].c": "remove"}
    redactor = SampleRedactor([Redact(json=rules)], b"k")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"
    assert redactor.response(head, b'{"vault":1,"x":2}\n{"a":{"b":1,"c":2}}')[1] == b'{"x":2}\n{"a":{"c":2}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    assert redactor.response(head, b'data: [{"c":1}]\n\ndata: {"vault":{}}')[1] == b"data: [{}]\n\ndata: {}"
    assert redactor.field("body[].data.vault.hunter2") == "body[].data.vault"
    assert redactor.field("body[].vault.hunter2") == "body[].vault"
    assert redactor.field("body[].x.vault.y") == "body[].x.vault.y"


def test_fields_of_responses_are_known_however_they_are_written() -> None:
    """Responses are read leniently: with white space before the colon, and fields that go on in the next line."""
    head = b"HTTP/1.1 200 OK\r\nSet-Cookie : sid=S\r\nX: y\r\n sid:S\r\nContent-Type\t: text/event-stream\r\n\r\n"
    head, body = SampleRedactor([USUAL], b"k").response(head, b'data: {"pin":1}')
    assert head == b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Type: text/event-stream\r\n\r\n"
    assert body == b'data: {"pin":"(redacted)"}'


def test_what_says_it_is_json_and_is_not_is_not_shown() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    assert SampleRedactor([USUAL], b"k").response(head, b'{"password": ')[1] is None
    assert SampleRedactor([Redact(json={"a": "remove"}, body_bytes=3)], b"k").response(head, b'{"a": 1}')[1] is None


@pytest.mark.parametrize("name", ["Location", "Content-Location"])
def test_urls_in_responses_lose_what_queries_lose(name: str) -> None:
    head = f"HTTP/1.1 302 Found\r\n{name}: https://a/cb?code=S1&x=1 &token=S2#access_token=S3&y=2\r\n\r\n".encode()
    shown, _ = SampleRedactor([USUAL], b"k").response(head, b"")
    assert shown == f"HTTP/1.1 302 Found\r\n{name}: https://a/cb?x=1%20#y=2\r\n\r\n".encode()


def test_fields_with_more_queries_than_are_looked_into_are_left_out() -> None:
    redactor = SampleRedactor([USUAL], b"k")
    head = b"HTTP/1.1 200 OK\r\nLocation: /" + b"?a" * QUERIES + b"\r\nX: y\r\n"
    assert redactor.response(head + b"\r\n", b"")[0].count(b"?a") == QUERIES
    shown, _ = redactor.response(head + b"Link: </c>\r\nLink: </d?e>\r\nRefresh: /f\r\n\r\n", b"")
    assert b"</c>" in shown
    assert b"d?e" not in shown
    assert b"Refresh: /f" in shown


def test_sessions_in_paths_are_nowhere() -> None:
    redactor = SampleRedactor([USUAL], b"k")
    head, _ = redactor.request(b"GET /a;jsessionid=7AB.n1;v=2?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", b"")
    assert head.startswith(b"GET /a;v=2?x=1 HTTP/1.1\r\n")
    head, _ = redactor.response(b"HTTP/1.1 302 Found\r\nLocation: http://h/b;JSESSIONID=7AB?x=1\r\n\r\n", b"")
    assert b"\r\nLocation: http://h/b?x=1\r\n" in head


def test_links_and_refresh_lose_the_same() -> None:
    head = b"HTTP/1.1 200 OK\r\nLink: </a?sid=S&p=2>; rel=next, </b?p=3>\r\nRefresh: 5; url=/c?token=S\r\n\r\n"
    shown, _ = SampleRedactor([USUAL], b"k").response(head, b"")
    assert shown == b"HTTP/1.1 200 OK\r\nLink: </a?p=2>; rel=next, </b?p=3>\r\nRefresh: 5; url=/c\r\n\r\n"


HOSTILE = st.lists(
    st.binary(max_size=12)
    | st.sampled_from([b"GET /", b" ", b"\r\n", b"\n", b"\r", b":", b"?", b"Link: <", b"1" * 400])
).map(b"".join)


@given(HOSTILE, HOSTILE | st.integers().map(lambda n: b"[%d, %d]" % (n, n << 80)))
def test_any_bytes_may_come(head: bytes, body: bytes) -> None:
    redactor = SampleRedactor([USUAL, Redact(privacy="strict", patterns={"[0-9]+": "#"})], b"k")
    for each in (head, head + b"\r\n\r\n", HEAD + head):
        redactor.request(each, body)
        redactor.response(each, body)


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("status", "status"),
        ("body", "body"),
        ("body[]", "body[]"),
        ("body.items[].price", "body.items[].price"),
        ("body.user.token", "body.user.token"),  # a name of ours
        ("body.user.Token.hunter2.x", "body.user.Token"),
        ("body[].token[].hunter2", "body[].token"),
        ("body.vault.hunter2.x", "body.vault.*"),
        ("body" + ".deep" * 100 + ".hunter2.x", "body" + ".deep" * 100 + ".hunter2"),
        ("body" + ".deep" * 100 + ".x", "body" + ".deep" * 100 + ".x"),
        ("body.list[].hunter2", "body.list[].hunter2"),
        ("body.id-4711.x", "body.id-#.x"),
        ("header.x-4711", "header.x-#"),
        ("body.lines[00ff4711]", "body.lines[00ff#]"),
    ],
)
def test_names_lose_what_is_secret(path: str, want: str) -> None:
    redactor = SampleRedactor(
        [USUAL, Redact(json={"vault.*": "remove", "**.deep." * 9 + "hunter2": "remove"}, patterns={"4711": "#"})], b"k"
    )
    assert redactor.field(path) == want
    assert redactor.field(path) == want
    assert redactor.path(b"/a/4711/b") == b"/a/#/b"


def test_chunked_bodies_are_looked_into_without_their_framing() -> None:
    head = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
    redactor = SampleRedactor([USUAL], b"k")
    assert redactor.request(head, b'5\r\n{"pin\r\n4;x\r\n":1}\r\n0\r\n\r\n')[1] == b'{"pin":"(redacted)"}'
    assert redactor.request(head, b"zz")[1] is None
    assert redactor.request(head, b"")[1] == b""


def quoted(value: Any, times: int) -> Any:
    """As JSON in a text, so many times."""
    return quoted(json.dumps(value), times - 1) if times else value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"payload": quoted({"password": "hunter2", "a": 1}, 1)}, {"payload": '{"password":"(redacted)","a":1}'}),
        ({"a": ["x", quoted([1, {"pin": "hunter2"}], 1)]}, {"a": ["x", '[1,{"pin":"(redacted)"}]']}),
        (quoted({"pin": "hunter2"}, 1), '{"pin":"(redacted)"}'),
        ({"password": quoted({"a": "hunter2"}, 1)}, {"password": "(redacted)"}),
        ({"a": "\ufeff" + quoted({"pin": "hunter2"}, 1)}, {"a": "(not shown)"}),
        ({"a": '{"pin": "hunter2'}, {"a": "(not shown)"}),
        ({"a": '[{"pin": "hunter2"}] and more'}, {"a": "(not shown)"}),
        (
            {"a": quoted({"card": {"n": "hunter2"}, "user": {"name": "hunter2"}}, 1)},
            {"a": '{"card":"(redacted)","user":{}}'},
        ),
        ({"a": "[INFO] started", "b": "{name} was here", "c": '"so": he said', "d": '[1,"a"]'}, None),
    ],
)
def test_json_in_texts_of_json_is_looked_into(value: Any, shown: Any) -> None:
    redactor = SampleRedactor([USUAL, Redact(json={"user.name": "remove"})], b"k")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    found = redactor.response(head, json.dumps(value).encode())[1]
    assert found is not None
    assert json.loads(found) == (value if shown is None else shown)


@pytest.mark.parametrize("times", range(1, NESTED + 4))
@pytest.mark.parametrize("escape", [False, True])
def test_json_that_is_quoted_again_and_again_is_looked_into_or_not_shown(times: int, escape: bool) -> None:
    redactor = SampleRedactor([USUAL], b"k")
    text = json.dumps({"a": quoted({"password": "hunter2", "b": 1}, times)})
    if escape:
        text = text.replace('\\"', "\\u0022")
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\r\n"
    found = redactor.request(head, text.encode())[1]
    assert found is not None
    assert b"hunter2" not in found
    assert (b"(redacted)" in found) == (times <= NESTED)
    assert (b"(not shown)" in found) == (times > NESTED)


def test_json_in_parameters_is_looked_into() -> None:
    redactor = SampleRedactor([USUAL], b"k")
    parameters = b"payload=" + quote('{"token":"hunter2","a":"b c"}').encode() + b"&list=[1,%202]&x=%7Bpin%7D"
    want = b"payload=" + quote('{"token":"(redacted)","a":"b c"}').encode() + b"&list=%5B1%2C2%5D&x=%7Bpin%7D"
    head, body = redactor.request(
        b"POST /?%b HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n" % parameters,
        parameters,
    )
    assert head.startswith(b"POST /?%b HTTP/1.1\r\n" % want)
    assert body == want


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ('a=1;payload={"password":"hunter2"}', "a=(not shown)"),
        ('a="x;payload=[{"password":"hunter2"}]', "a=(not shown)"),
        ('{"password":"hunter2=3","a":1}&b=2', '{"password":"(redacted)","a":1}&b=2'),
        ('\n\ufeff{"password":"hunter2"}', "(not shown)"),
        ("a=1;b={2}", None),
        ("[1;2]", None),
        ('payload={"a":"x;y"}', None),
    ],
)
def test_json_behind_a_semicolon_or_without_a_name_is_looked_into(query: str, shown: str | None) -> None:
    head, _ = SampleRedactor([USUAL], b"k").request(f"GET /?{quote(query, '&=;')} HTTP/1.1\r\n\r\n".encode(), b"")
    assert unquote(head.split()[1].decode()) == f"/?{query if shown is None else shown}"


def test_what_a_shadow_gets_has_its_texts_as_they_came() -> None:
    asked = Request(b"POST / HTTP/1.1\r\nContent-Type: application/json\r\n\r\n", b"")
    body = b'{"a":"{\\"password\\": 1}"}'
    assert Redactor(USUAL, b"k").body(asked, body) == body


@pytest.mark.parametrize(
    ("field", "body", "shown"),
    [
        ("Content-Type: text/plain\r\n", b"password=hunter2", None),
        ("content-type: multipart/form-data; boundary=x\r\n", b"--x\r\n\r\nhunter2\r\n--x--", None),
        ("", b"password=hunter2", None),
        ("Content-Type: application/x-www-form-urlencoded\r\n", b"password=hunter2&a=1", b"a=1"),
        ("Content-Type: application/vnd.api+json; charset=utf-8\r\n", b'{"a":1}', b'{"a":1}'),
        ("", b'{"password":"hunter2"}', b'{"password":"(redacted)"}'),
    ],
)
def test_of_requests_only_json_and_forms_are_shown(field: str, body: bytes, shown: bytes | None) -> None:
    head = f"POST / HTTP/1.1\r\nHost: x\r\n{field}\r\n".encode()
    assert SampleRedactor([USUAL], b"k").request(head, body)[1] == shown
