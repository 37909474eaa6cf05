# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import re
import socket
import subprocess
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.exchanges import Plain
from tapmirror.compare.diff import compare
from tapmirror.compare.rules import Rules
from tapmirror.compare.samples import CURL, HIDDEN, curl, sample
from tapmirror.exchange import Asked, Failure, Response
from tapmirror.policy.samples import USUAL, SampleRedactor
from tapmirror.spec import Compare, Level, Redact

RULES = Rules(Compare(level=Level.BODY))
BASE = "http://new:8080"


def asked(head: bytes, body: bytes = b"") -> Asked:
    method, target, _ = head.split(b"\r\n")[0].split(b" ")
    return Asked(1, method, target, head, body=body)


def response(document: object, coding: bool = False) -> Response:
    body = json.dumps(document).encode()
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: sid=secret\r\n"
    if coding:
        body = gzip.compress(body)
        head += "Content-Encoding: gzip\r\n"
    return Response(200, (head + "\r\n").encode(), body, len(body))


@pytest.mark.parametrize(
    ("head", "body", "want"),
    [
        (
            b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-A: it's\r\n\r\n",
            b"",
            "curl -i -H 'Host: x' -H 'X-A: it'\\''s' 'http://new:8080/a?b=c'",
        ),
        (
            b"GET /a HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nAccept-Encoding: br\r\n\r\n",
            b"",
            "curl -i --compressed -H 'Host: x' -H 'Accept-Encoding: gzip' -H 'Accept-Encoding: br' http://new:8080/a",
        ),
        (b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n", b"", "curl -i -I -H 'Host: x' http://new:8080/a"),
        (b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n", b"body", "curl -i -I -H 'Host: x' http://new:8080/a"),
        (
            b"PUT http://x/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
            b"a\n\xff",
            "curl -i -X PUT -H Content-Type: -H 'Host: x' --data-raw $'a\\012\\377' http://new:8080/a",
        ),
    ],
)
def test_the_request_as_a_line_for_a_shell(head: bytes, body: bytes, want: str) -> None:
    assert curl(asked(head, body), Plain(), BASE) == want


@settings(max_examples=30, deadline=None)
@given(
    st.binary(max_size=40).filter(lambda x: b"\0" not in x),
    st.binary(max_size=40).filter(lambda x: not set(x) & set(b"\r\n\0")),
)
def test_nothing_in_it_is_acted_upon(body: bytes, value: bytes) -> None:
    head = b"POST /$(id)`id`;id HTTP/1.1\r\nHost: x\r\nX: " + value + b"\r\n\r\n"
    line = curl(asked(head, body), Plain(), BASE)
    assert line.isprintable()
    done = subprocess.run(
        ["bash", "-c", 'curl() { printf "%s\\0" "$@"; }; ' + line], capture_output=True, check=True, env={"LC_ALL": "C"}
    )
    words = done.stdout.split(b"\0")
    assert words[-2] == b"http://new:8080/$(id)`id`;id"
    assert (b"X: " + value.strip() if value.strip() else b"X;") in words
    assert body in words or not body


def test_a_sample_shows_the_fields_values_and_no_secret() -> None:
    one = response({"price": 1, "user": {"password": "p1"}}, coding=True)
    other = response({"price": 2, "user": {"password": "p2"}})
    head = b"GET / HTTP/1.1\r\nHost: x\r\nCookie: sid=secret\r\n\r\n"
    names = ["value body.price", "value body.user.password"]
    found = sample(asked(head), one, other, names, RULES, SampleRedactor([USUAL], b"k"), BASE, 5.0)
    price, password = (found[name] for name in names)
    assert (price.at, price.one, price.other) == (5.0, "1", "2")
    assert (password.one, password.other) == (HIDDEN, HIDDEN)
    text = repr(found)
    assert "secret" not in text
    assert "p1" not in text
    assert '"price":2' in price.shadow
    assert price.production.startswith("HTTP/1.1 200 OK\nContent-Type")


@pytest.mark.parametrize(
    ("one", "other", "want"),
    [
        ({"a": 198}, {"a": "198"}, ("type body.a", "198", '"198"')),
        ({"a": []}, {"a": None}, ("type body.a", "[]", "null")),
        ({"a": None}, {}, ("missing body.a", "null", "(nothing)")),
        ({}, {"a": None}, ("extra body.a", "(nothing)", "null")),
        ({"a": "1"}, {}, ("missing body.a", "1", "(nothing)")),
        ({}, {"a": "1"}, ("extra body.a", "(nothing)", "1")),
        ({"a": "1"}, {"a": "2"}, ("value body.a", "1", "2")),
        ({"a": [1, 2]}, {"a": [1]}, ("length body.a", "2 elements: [1,2]", "1 element: [1]")),
    ],
)
def test_values_that_differ_do_not_look_alike(one: object, other: object, want: tuple[str, str, str]) -> None:
    found = sample(
        asked(b"GET / HTTP/1.1\r\n\r\n"), response(one), response(other), [want[0]], RULES, Plain(), BASE, 0.0
    )
    assert [(name, each.one, each.other) for name, each in found.items()] == [want]


def test_that_a_version_does_not_compress_is_shown_with_what_it_is_asked_for() -> None:
    one, other = response({"a": 1}, coding=True), response({"a": 1})
    head = b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"
    for redaction, shown in ((Plain(), "gzip"), (SampleRedactor([Redact(patterns={"zip": "#"})], b"k"), "g#")):
        (name,) = [each.field for each in compare(one, other, RULES).found]
        (found,) = sample(asked(head), one, other, [name], RULES, redaction, BASE, 0.0).values()
        assert (name, found.one, found.other) == ("missing header.content-encoding", shown, "(nothing)")
        assert " --compressed " in found.curl and "-H 'Accept-Encoding: g" in found.curl


def test_bodies_that_cannot_be_looked_into_are_not_shown() -> None:
    one = Response(200, b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", b"garbage", 7)
    other = Response(200, b"HTTP/1.1 200 OK\r\n\r\n", b"first bytes", 1000)
    found = sample(asked(b"GET / HTTP/1.1\r\n\r\n"), one, other, ["value body"], RULES, Plain(), BASE, 0.0)
    assert "(body not shown)" in found["value body"].production
    assert "first" not in found["value body"].shadow
    assert (found["value body"].one, found["value body"].other) == ("(not shown, 7 bytes)", "(not shown, 1,000 bytes)")


def test_texts_are_cut_and_printable() -> None:
    one, other = response({"a": "x\x1b[31m" * 5000}), Response(0, failure=Failure.CLOSED)
    found = sample(asked(b"GET / HTTP/1.1\r\n\r\n"), one, other, ["missing status"], RULES, Plain(), BASE, 0.0)
    one_sample = found["missing status"]
    assert one_sample.shadow == "(no response: closed)"
    assert (one_sample.one, one_sample.other) == ("200", "closed")
    assert len(one_sample.production) < 4000
    assert "\x1b" not in one_sample.production


HEADS = (
    b"POST /a?b=1 HTTP/1.1\r\nHost: x\r\nUser-Agent: a\r\nAccept: */*\r\nContent-Type: a/b\r\nX: i's $A `b`\r\n\r\n",
    b"POST /raw HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: a\r\nAccept: */*\r\nContent-Length: 9\r\n\r\n",
    b"DELETE /orders/7 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: a\r\nAccept: */*\r\n\r\n",
    b"POST /form HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: a\r\nAccept: */*\r\nX-Empty:\r\n\r\n",
    b"GET /a?filter[name]=x&page[1-3]={a,b} HTTP/1.1\r\nHost: x\r\nUser-Agent: a\r\nAccept: */*\r\n\r\n",
    b"GET /a/../b//./\xc3\xa9?q=[1-3]#x HTTP/1.1\r\nHost: x\r\nUser-Agent: a\r\nAccept: */*\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nUser-Agent: a\r\nAccept: */*\r\n\r\n",
)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (HEADS[0], b'{"sku": "it\'s", "n": [1, 2.50]}'),
        (HEADS[1], b"a\tb\r\n\\\xff'$x"),
        (HEADS[2], b""),
        (HEADS[3], b"@/etc/hostname"),
        *((head, b"") for head in HEADS[4:]),
    ],
    ids=["json", "bytes", "none", "name-of-a-file", "brackets", "dots", "star"],
)
def test_the_line_makes_the_same_request_of_a_real_server(head: bytes, body: bytes) -> None:
    """By curl, in a shell: method, target, fields and body as they were."""
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as sock, sock.makefile("rb") as file:
                found = b"".join(iter(lambda: file.readline(), b"\r\n"))
                length = re.search(rb"(?i)content-length: *(\d+)", found)
                got.extend((found, file.read(int(length[1])) if length else b""))
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)  # or it would wait for ever for who does not call
        thread.start()
        line = curl(asked(head, body), Plain(), f"http://127.0.0.1:{listener.getsockname()[1]}")
        subprocess.run(["bash", "-c", line], check=True, capture_output=True, timeout=300)
        thread.join()
    first, *lines = got[0].rstrip(b"\r\n").split(b"\r\n")
    wanted, *fields = head.rstrip(b"\r\n").split(b"\r\n")
    assert first == wanted
    assert {each for each in lines if not each.startswith(b"Content-Length")} == {
        each for each in fields if not each.startswith(b"Content-Length")
    }
    assert got[1] == body


def test_bodies_that_no_line_can_hold_are_told() -> None:
    long = asked(HEADS[1])
    long.longer = True
    assert "--data-raw '(too long)'" in curl(long, Plain(), BASE)
    assert "--data-raw '(not shown)'" in curl(asked(HEADS[1], b"a\0b"), Plain(), BASE)
    long = asked(HEADS[4])
    long.longer = True
    assert "-X GET" in curl(long, Plain(), BASE)  # with data it were a POST
    assert "-X GET" in curl(asked(HEADS[4], b"a\0b"), Plain(), BASE)


def test_a_long_line_loses_fields_and_stays_one_for_a_shell() -> None:
    head = b"GET /a HTTP/1.1\r\nHost: x\r\nCookie: " + b"c=' " * 2000 + b"\r\nX-A: b\r\n\r\n"
    line = curl(asked(head), Plain(), BASE)
    assert line == "curl -i -H 'Host: x' -H 'X-A: b' http://new:8080/a"


@pytest.mark.parametrize("method", [b"-H", b"M'" * 500, b"X" * 3990], ids=lambda method: str(method[:4]))
@pytest.mark.parametrize("body", [b"-H", b"a'" * 600, b"\xff" * 499], ids=lambda body: str(body[:4]))
def test_whatever_the_client_chooses_it_is_one_line_for_a_shell(method: bytes, body: bytes) -> None:
    base = "https://" + "n" * 250 + ":8080"
    fields = b"".join(b"X-%d: %b\r\n" % (n, b"a'" * n * 200) for n in range(6))
    line = curl(asked(method + b" /[a' HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n", body), Plain(), base)
    assert len(line) <= CURL
    words = subprocess.run(
        ["bash", "-c", "curl() { printf '%s\\0' \"$@\"; }; " + line], stdout=subprocess.PIPE, check=True
    ).stdout.split(b"\0")[:-1]
    assert words[-1] == base.encode() + b"/[a'"
    assert words[words.index(b"--data-raw") + 1] in (body, b"(too long)")


def test_of_many_fields_as_many_stay_as_have_room() -> None:
    head = b"".join(b"A%d: %b\r\n" % (n, b"b" * (n % 50)) for n in range(1000))
    line = curl(asked(b"GET /a HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n"), Plain(), BASE)
    assert CURL - 60 < len(line) <= CURL
    assert line.startswith("curl -i -H 'Host: x' -H ")
    assert line.endswith(f" {BASE}/a")
    assert "'A50;'" in line
    assert "'A49: " not in line


@pytest.mark.parametrize("body", [b"", b"b" * 1900], ids=["without", "body"])
def test_a_target_that_does_not_fit_is_told_and_the_line_stays_one(body: bytes) -> None:
    for size in (1400, 1600, 3400, 3600, 65_000):
        line = curl(asked(b"POST /a?b=" + b"c" * size + b"[' HTTP/1.1\r\nHost: x\r\n\r\n", body), Plain(), BASE)
        assert ("(too long)'" in line) is (size > (1500 if body else 3500))
        subprocess.run(["bash", "-n", "-c", line], check=True)
        assert "--data-raw bbb" in line or not body
