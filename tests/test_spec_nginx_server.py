# SPDX-License-Identifier: Apache-2.0
"""A server of nginx: where it listens, its names, which location takes what."""

from __future__ import annotations

from typing import Any

import pytest

from tapmirror.spec.nginx_server import Server
from tapmirror.spec.nginx_syntax import parse


def server(text: str, http: str = "") -> tuple[Server, list[str]]:
    top = parse(f"{http} server {{ {text} }}")
    said: list[str] = []
    found = top.last("server")
    assert found is not None
    return Server(found, (top,), lambda _, name, message: said.append(f"{name}: {message}")), said


@pytest.mark.parametrize(
    ("text", "ports", "addrs", "told"),
    [
        ("", [80], [""], ""),
        ("listen 81;", [81], [""], ""),
        ("listen 127.0.0.1;", [80], ["127.0.0.1"], ""),
        ("listen 10.0.0.7:8080 default_server;", [8080], ["10.0.0.7"], ""),
        ("listen [2001:db8::7]:80; listen *:81; listen [::]:82;", [80, 81, 82], ["2001:db8::7", "", ""], ""),
        ("listen localhost:80;", [80], [""], "is a name"),
        ("listen unix:/run/x; listen 80;", [80], [""], "passes no interface"),
        ("listen 443 ssl http2; listen 80;", [80], [""], "443 ssl: is encrypted"),
        ("listen 80 proxy_protocol;", [], [], "begins with a line of its own"),
    ],
)
def test_where_it_listens(text: str, ports: list[int], addrs: list[str], told: str) -> None:
    found, said = server(text)
    assert (found.ports, found.addrs) == (ports, addrs) and told in " ".join(said) and bool(told) is bool(said)


@pytest.mark.parametrize(
    ("names", "order", "hosts"),
    [
        ("a.test B.test", 0, [{"exact": "a.test"}, {"exact": "b.test"}]),
        ("*.a.test", 1, [{"suffix": ".a.test"}]),
        (".a.test", 1, [{"suffix": ".a.test"}, {"exact": "a.test"}]),
        ("www.*", 2, [{"prefix": "www."}]),
        (r"~^x\d", 3, [{"regex": r".*(?:^x\d).*"}]),
        ("_", 0, []),
    ],
)
def test_names(names: str, order: int, hosts: list[Any]) -> None:
    found, said = server(f"server_name {names};")
    assert found.order == order and list(found.hosts()) == hosts and said == []


def test_a_name_that_is_no_expression_of_re2() -> None:
    found, said = server("server_name '~^(?!x)';")
    assert list(found.hosts()) == [] and "left out" in said[0]


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("/a", ["=", "/a"]),
        ("/ab", ["/a"]),
        ("/img/x.png", ["^~", "/img/"]),
        ("/a/x.png", ["~", r"\.png$"]),
        ("/zzz", ["/"]),
    ],
)
def test_the_location_of_a_subrequest(uri: str, wanted: list[str]) -> None:
    found, _ = server(r"location / {} location /a {} location = /a {} location ^~ /img/ {} location ~ \.png$ {}")
    scope = found.location(uri)
    assert scope is not None and scope[-1].args == wanted


def test_mirrors_are_inherited() -> None:
    found, _ = server(
        "mirror /m; location /d {} location /a { mirror /x; mirror /x; location /a/b { mirror off; } }"
        "location /c { mirror_request_body off; } location = /m { internal; } location @b {}"
    )
    assert found.mirrors() == ["/m", "/x"]
    assert found.copies("/x") == 2 and found.copies("/m") == 1
    assert found.bodies_off("/m") and not found.bodies_off("/x")
    assert found.places() == [
        ({"prefix": "/a/b"}, ()),
        ({"prefix": "/d"}, ("/m",)),
        ({"prefix": "/a"}, ("/x", "/x")),
        ({"prefix": "/c"}, ("/m",)),
        (None, ("/m",)),
    ]


def test_what_no_location_takes_is_the_servers() -> None:
    found, _ = server("mirror /m; location /a { mirror off; }")
    assert found.places() == [({"prefix": "/a"}, ()), (None, ("/m",))]
    assert found.location("/m") is None


def test_expressions_behind_a_prefix_that_forbids_them_are_told() -> None:
    found, said = server(r"location ^~ /a/ {} location /a/b/ { mirror /m; } location ~ x {}")
    found.places()
    assert said == ["location: /a/b/ lies within a ^~ location: expressions are tried after it here"]


def test_a_location_that_is_no_expression_of_re2() -> None:
    found, said = server("mirror /m; location ~ '^(?!/x)' { mirror off; }")
    assert found.places() == [(None, ("/m",))] and "the location is left out" in said[0]
