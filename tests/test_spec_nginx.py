# SPDX-License-Identifier: Apache-2.0
"""What nginx mirrors, the taps made of its configuration mirror; nginx itself is the oracle."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import until
from loopback import OURS
from policy_cases import Tried, head
from tapmirror.spec import By, Spread, TapSpec
from tapmirror.spec.document import FileError
from tapmirror.spec.nginx import from_nginx
from tapmirror.spec.reading import read_taps


def translated(text: str) -> tuple[list[TapSpec], list[str]]:
    """The taps as the printed file is read again, and what is told."""
    found = from_nginx(text.encode(), "eth0")
    return read_taps(found.text("nginx").encode()), [str(problem) for problem in found.left_out]


def one(text: str) -> tuple[TapSpec, list[str]]:
    (tap,), said = translated(text)
    return tap, said


def site(mirror: str, http: str = "", where: str = "location / { mirror /m; }") -> str:
    """A server whose requests are mirrored by a location with this in it."""
    return f"http {{ {http} server {{ {where} location = /m {{ internal; {mirror} }} }} }}"


TO_B = "proxy_pass http://b$request_uri;"


def test_the_least() -> None:
    tap, said = one(site(TO_B))
    assert said == [] and tap.ports == (80,) and tap.rules == () and tap.percent == 100
    (shadow,) = tap.shadows
    assert (shadow.name, shadow.host, shadow.port, shadow.rewrite.host) == ("m", "b", 80, "b")
    assert shadow.percent == 100 and shadow.match == ()
    assert from_nginx(site(TO_B).encode()).left_out[0].message.startswith("no interface is named")


SPLIT = """
split_clients $remote_addr $b {{ {bands} }}
upstream t {{ server 10.0.0.9:81; }}
upstream u {{ server 10.0.0.9:82; }}
"""


@pytest.mark.parametrize(
    ("bands", "condition", "wanted"),
    [
        ('50% t; * "";', 'if ($b = "") { return 204; }', {"m-t": 50.0}),
        ('0.5% t; * "";', 'if ($b = "") { return 204; }', {"m-t": 0.5}),
        ('10% ""; * t;', 'if ($b = "") { return 204; }', {"m-t": 90.0}),
        ('10% t; 5% t; * "";', 'if ($b = "") { return 204; }', {"m-t": 15.0}),
        ('10% t; 20% u; * "";', 'if ($b = "") { return 204; }', {"m-t": 10.0, "m-u": 20.0}),
        ("10% t; * u;", 'if ($b = "u") { return 204; }', {"m-t": 10.0}),
        ("10% t; 20% u;", "", {"m-t": 10.0, "m-u": 20.0}),
        ("* t;", "", {"m-t": 100.0}),
    ],
)
def test_percent_of_the_bands_that_are_let_through(bands: str, condition: str, wanted: dict[str, float]) -> None:
    tap, said = one(site(f"{condition} proxy_pass http://$b$request_uri;", SPLIT.format(bands=bands)))
    assert {shadow.name: shadow.percent for shadow in tap.shadows} == wanted
    assert all(shadow.key == "client" for shadow in tap.shadows if shadow.percent < 100)
    assert [shadow.port for shadow in tap.shadows] == [{"m-t": 81, "m-u": 82}[name] for name in wanted]
    assert len(said) == (len(wanted) > 1) and ("do not overlap" in "".join(said)) is (len(wanted) > 1)


@pytest.mark.parametrize(
    ("bands", "condition", "percent"),
    [
        ("30% 1; * 0;", "if ($b = 0) { return 204; }", 30.0),
        ("30% 1; * 0;", "if ($b != 1) { return 204; }", 30.0),
        ("30% 1; * 0;", "if ($b) { return 204; }", 70.0),
        ("30% on; * off;", "if ($b !~ ^on) { return 204; }", 30.0),
        ("30% on; 3% of; * x;", "if ($b !~ ^o) { return 204; } if ($b = of) { return 204; }", 30.0),
    ],
)
def test_a_band_that_only_tells_whether(bands: str, condition: str, percent: float) -> None:
    (shadow,) = one(site(condition + TO_B, SPLIT.format(bands=bands)))[0].shadows
    assert (shadow.percent, shadow.host, shadow.by, shadow.key) == (percent, "b", By.KEY, "client")


def test_values_that_are_addresses() -> None:
    http = 'split_clients $remote_addr $b { 10% 10.0.0.9:81; 20% [::1]:82; 30% v3.test; * ""; }'
    tap, _ = one(site('if ($b = "") { return 204; } proxy_pass http://$b$request_uri;', http))
    found = [(shadow.host, shadow.port, shadow.percent, shadow.rewrite.host) for shadow in tap.shadows]
    assert found == [
        ("10.0.0.9", 81, 10.0, "10.0.0.9:81"),
        ("::1", 82, 20.0, "[::1]:82"),
        ("v3.test", 80, 30.0, "v3.test"),
    ]


@pytest.mark.parametrize(
    ("text", "by", "key", "told"),
    [
        ("$remote_addr", By.KEY, "client", ""),
        ('"${remote_addr}AAA"', By.KEY, "client", ""),
        ("$cookie_uid", By.KEY, "cookie:uid", "requests without it"),
        ("$http_x_user", By.KEY, "header:x-user", "requests without it"),
        ("$arg_id", By.KEY, "query:id", "requests without it"),
        ("$request_id", By.REQUEST, None, ""),
        ('"$remote_addr$msec"', By.REQUEST, None, ""),
        ('"${remote_addr}${http_user_agent}${date_gmt}"', By.REQUEST, None, ""),
        ("$connection", By.CONNECTION, None, ""),
        ('"$remote_addr$http_user_agent"', By.KEY, "client", "by $remote_addr alone"),
        ("$request_uri", By.REQUEST, None, "each request is decided by itself"),
    ],
)
def test_what_it_splits_by(text: str, by: By, key: str | None, told: str) -> None:
    http = f'split_clients {text} $b {{ 5% 1; * ""; }}'
    tap, said = one(site(f'if ($b = "") {{ return 204; }} {TO_B}', http))
    assert (tap.shadows[0].by, tap.shadows[0].key) == (by, key)
    assert told in "".join(said) and bool(told) is bool(said)


@pytest.mark.parametrize(
    ("mirror", "line", "fields", "wanted"),
    [
        (TO_B, "GET /a?x=1 HTTP/1.1", (), b"GET /a?x=1 HTTP/1.1\r\nHost: b\r\n"),
        ("proxy_pass http://b:81$request_uri;", "GET /a HTTP/1.1", (), b"Host: b:81\r\n"),
        ("proxy_pass http://b;", "GET /a?x=1 HTTP/1.1", (), b"GET /m?x=1 HTTP/1.1"),
        ("proxy_pass http://b/;", "GET /a?x=1 HTTP/1.1", (), b"GET /?x=1 HTTP/1.1"),
        ("proxy_pass http://b/new;", "GET /a HTTP/1.1", (), b"GET /new HTTP/1.1"),
        ("proxy_pass http://b/new$request_uri;", "GET /a HTTP/1.1", (), b"GET /new/a HTTP/1.1"),
        (f"{TO_B} proxy_method POST;", "GET /a HTTP/1.1", (), b"POST /a HTTP/1.1"),
        (f"{TO_B} proxy_set_header Host $host;", "GET / HTTP/1.1", (), b"Host: shop.test\r\n"),
        (f"{TO_B} proxy_set_header Host x.test;", "GET / HTTP/1.1", (), b"Host: x.test\r\n"),
        (f"{TO_B} proxy_set_header X-Real-IP $remote_addr;", "GET / HTTP/1.1", (), b"X-Real-IP: 10.0.0.1\r\n"),
        (f"{TO_B} proxy_set_header X-Original-URI $request_uri;", "GET /a?b HTTP/1.1", (), b"X-Original-URI: /a?b\r\n"),
        (f"{TO_B} proxy_set_header X-A '';", "GET / HTTP/1.1", ("X-A: 1",), b"Host: b\r\n\r\n"),
        (
            f"{TO_B} proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
            "GET / HTTP/1.1",
            ("X-Forwarded-For: 1.2.3.4",),
            b"X-Forwarded-For: 1.2.3.4, 10.0.0.1\r\n",
        ),
        (f"if ($request_method != GET) {{ return 204; }} {TO_B}", "POST / HTTP/1.1", (), None),
        (f"if ($request_method !~ ^(GET|HEAD)$) {{ return 204; }} {TO_B}", "HEAD / HTTP/1.1", (), b"HEAD / "),
        (f"if ($http_x_no = 1) {{ return 204; }} {TO_B}", "GET / HTTP/1.1", ("X-No: 1",), None),
        (f"if ($http_x_no = 1) {{ return 204; }} {TO_B}", "GET / HTTP/1.1", (), b"GET / "),
        (f'if ($cookie_u = "") {{ return 204; }} {TO_B}', "GET / HTTP/1.1", (), None),
        (f'if ($cookie_u = "") {{ return 204; }} {TO_B}', "GET / HTTP/1.1", ("Cookie: u=1",), b"GET / "),
        (f"if ($arg_q !~ ^a) {{ return 204; }} {TO_B}", "GET /?q=ab HTTP/1.1", (), b"GET /?q=ab "),
    ],
)
def test_what_becomes_of_a_request(mirror: str, line: str, fields: tuple[str, ...], wanted: bytes | None) -> None:
    (tap,) = from_nginx(site(mirror).encode(), "eth0").taps
    (got,) = Tried(**tap).ask(head(line, *fields))
    assert got is None if wanted is None else got is not None and wanted in got


def test_several_servers_of_an_upstream_take_turns() -> None:
    upstream = "upstream t { server a:81 weight=2; server b; server c down; server unix:/x; keepalive 4; }"
    tap, said = one(site("proxy_pass http://t$request_uri;", upstream))
    assert [(each.name, each.end_point) for each in tap.shadows] == [("m-1", "a:81"), ("m-2", "b:80")]
    assert tap.spread is Spread.ROUND_ROBIN and len(said) == 3
    two = f"location / {{ mirror /m; mirror /n; }} location = /n {{ {TO_B} }}"
    tap, said = one(site("proxy_pass http://t$request_uri;", upstream, two))
    assert [each.end_point for each in tap.shadows] == ["a:81", "b:80"] and tap.spread is Spread.ALL
    assert "of several servers only the first is taken" in "".join(said)


def test_tls_copies_and_time() -> None:
    where = "location / { mirror /m; mirror /m; mirror /m; }"
    settings = "proxy_connect_timeout 300ms; proxy_ssl_name n.test; proxy_ssl_trusted_certificate /ca.pem;"
    tap, said = one(site(f"{settings} proxy_ssl_verify on; proxy_pass https://b$request_uri;", where=where))
    (shadow,) = tap.shadows
    assert (shadow.copies, shadow.port, shadow.connect_time) == (3, 443, 0.3) and said == []
    assert shadow.tls is not None
    assert (shadow.tls.sni, shadow.tls.ca_file, shadow.tls.verify) == ("n.test", "/ca.pem", True)
    (shadow,) = one(site("proxy_pass https://b$request_uri;"))[0].shadows
    assert shadow.tls is not None and not shadow.tls.verify  # as nginx does unless it is told to


def test_servers_on_one_port_are_told_apart_by_host() -> None:
    text = f"""
    server {{ listen 80; server_name a.test; location / {{ mirror /m; }} location = /m {{ {TO_B} }} }}
    server {{ listen 80; server_name b.test; }}
    server {{ listen 80 default_server; location /x {{ mirror /m; }} location = /m {{ proxy_pass http://c; }} }}
    server {{ listen 81; location / {{ mirror /m; }} location = /m {{ internal; {TO_B} }} }}
    """
    (first, second), said = translated(text)
    assert (first.ports, second.ports) == ((80,), (81,)) and second.rules == () and len(said) == 1
    found = from_nginx(text.encode(), "eth0").taps[0]
    for host, path, wanted in (
        ("a.test", "/", ["/", None]),
        ("a.test", "/x", ["/x", None]),
        ("b.test", "/x", [None, None]),
        ("zzz", "/x", [None, "/m"]),
        ("zzz", "/", [None, None]),
    ):
        got = Tried(**found).ask(head(f"GET {path} HTTP/1.1", host=host))
        assert [each and each.split()[1].decode() for each in got] == wanted


def test_a_snippet_without_a_server() -> None:
    tap, said = one(f"location / {{ mirror /m; }} location = /m {{ {TO_B} }}")
    assert tap.ports == (80,) and said == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"include x.conf;\n{site(TO_B)}", "1: include: 'x.conf' is not read"),
        (site(f"{TO_B}\nlimit_req zone=a;"), "2: limit_req: has no equivalent"),
        (site(f"{TO_B}\nproxy_set_header X $request_id;"), "2: proxy_set_header: X $request_id: the variable has no"),
        (site(f"{TO_B}\nproxy_set_header Host $x;"), "2: proxy_set_header: Host $x: is left as"),
        (site(f"{TO_B}\nproxy_set_header Content-Length '';"), "2: proxy_set_header: Content-Length frames"),
        (site(f"\nproxy_pass_request_body off; {TO_B}"), "2: mirror_request_body off: has no equivalent"),
        (site(f"{TO_B}", where="\nlocation / { mirror /m; mirror_request_body off; }"), "mirror_request_body off"),
        (site(f"\nif ($x) {{ return 204; }} {TO_B}"), "2: if: ($x) has no equivalent: more is mirrored"),
        (site(f"\nif ($http_a = 1) {{ break; }} {TO_B}"), "2: if: ($http_a = 1) has no equivalent"),
        (site("\nproxy_pass http://b;"), "2: proxy_pass: as in nginx, every copy gets the path /m"),
        (site("\nproxy_pass http://b$request_uri$args;"), "2: proxy_pass: '$request_uri$args': the path is kept"),
        (site(TO_B, where="location /a { mirror /m; } location /z { mirror /no; }"), "1: mirror: no location takes"),
        (site(TO_B, where="location /a { mirror /m; } location /z { mirror /m; mirror /m; }"), "mirror: /m: twice"),
    ],
)  # fmt: skip
def test_what_has_no_equivalent_is_told_in_the_file_too(text: str, wanted: str) -> None:
    found = from_nginx(text.encode(), "eth0")
    assert len(found.left_out) == 1 and wanted in str(found.left_out[0])
    assert wanted[:40] in found.text("nginx").replace("\n#   ", " ")
    read_taps(found.text("nginx").encode())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "mirror: nothing in it mirrors anything"),
        (site("return 204;"), "return: /m answers at once"),
        (site("fastcgi_pass x;"), "location: /m has no proxy_pass"),
        (site("proxy_pass http://$nowhere;"), "proxy_pass: $nowhere is not known"),
        (site("proxy_pass http://unix:/x;"), "proxy_pass: "),
        (site("proxy_pass b;"), "proxy_pass: 'b' is no address"),
        (site(TO_B, where="listen 443 ssl; location / { mirror /m; }"), "443 ssl: is encrypted"),
        ("split_clients $a { }", "1: split_clients: is not split_clients TEXT $VARIABLE"),
        ("split_clients $a $b { x% c; }", "1: split_clients: 'x%' is not PERCENT% VALUE"),
        ("split_clients $a $b { 60% c; 50% d; }", "1: split_clients: more than 100 percent"),
        (site(f"{TO_B} proxy_set_header X 'a\rb';"), "shadows[0].rewrite.set_headers.X"),
        (site("proxy_pass http://b:99999;"), "shadows[0].port"),
        ("server {", "1: server: its } is missing"),
    ],
)
def test_what_cannot_be_a_tap(text: str, wanted: str) -> None:
    with pytest.raises(FileError) as caught:
        from_nginx(text.encode(), "eth0")
    assert any(wanted in str(problem) for problem in caught.value.found), caught.value.found


# --- nginx itself

CONFIG = r"""
daemon off;
master_process off;
pid %(dir)s/pid;
error_log %(dir)s/error.log;
events { }
http {
    log_format copy escape=json '{"id": "$http_x_id", "uri": "$request_uri", "host": "$http_host",'
        '"real": "$http_x_real_ip", "to": "$server_port"}';
    access_log off;
    client_body_temp_path %(dir)s/body;
    proxy_temp_path %(dir)s/proxy;
    fastcgi_temp_path %(dir)s/fastcgi;
    uwsgi_temp_path %(dir)s/uwsgi;
    scgi_temp_path %(dir)s/scgi;
    keepalive_requests 100000;
    split_clients $http_x_user $backend { 30%% one; * ""; }
    upstream one { server %(address)s:%(one)d; }
    server {
        listen %(address)s:%(two)d;
        listen %(address)s:%(one)d;
        access_log %(dir)s/copies.log copy;
        return 200;
    }
    server {
        listen %(address)s:%(prod)d;
        return 200;
    }
    server {
        listen %(address)s:%(port)d;
        server_name shop.test;
        mirror /all;
        location / { proxy_pass http://%(address)s:%(prod)d; }
        location = /none { mirror off; proxy_pass http://%(address)s:%(prod)d; }
        location /both/ { mirror /all; mirror /some; proxy_pass http://%(address)s:%(prod)d; }
        location /both/not/ { mirror off; proxy_pass http://%(address)s:%(prod)d; }
        location ^~ /first/ { mirror /get; proxy_pass http://%(address)s:%(prod)d; }
        location ~* \.(png|jpg)$ { mirror off; proxy_pass http://%(address)s:%(prod)d; }
        location ~ ^/split { mirror /some; proxy_pass http://%(address)s:%(prod)d; }
        location /twice/ { mirror /two; mirror /two; proxy_pass http://%(address)s:%(prod)d; }
        location = /all {
            internal;
            proxy_pass http://%(address)s:%(two)d$request_uri;
            proxy_set_header X-Real-IP $remote_addr;
        }
        location = /two { internal; proxy_pass http://%(address)s:%(two)d$request_uri; }
        location = /get {
            internal;
            if ($request_method != GET) { return 204; }
            proxy_pass http://%(address)s:%(two)d/put/here;
            proxy_set_header Host $http_host;
        }
        location = /some {
            internal;
            if ($backend = "") { return 400; }
            proxy_pass http://$backend$request_uri;
        }
    }
}
"""


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str, Path]]:
    """(port, configuration, log of the copies) of an nginx that mirrors."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    folder: Path = tmp_path_factory.mktemp("nginx")
    probes = [socket.create_server((OURS, 0)) for _ in range(4)]
    port, one, two, prod = (probe.getsockname()[1] for probe in probes)
    for probe in probes:
        probe.close()
    text = CONFIG % {"dir": folder, "address": OURS, "port": port, "one": one, "two": two, "prod": prod}
    (folder / "nginx.conf").write_text(text)
    words = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"]
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port), "nginx")
        yield port, text, folder / "copies.log"
    finally:
        server.terminate()
        server.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((OURS, port)) == 0


PATHS = [
    "/",
    "/x?y=1",
    "/none",
    "/none/x",
    "/both/x",
    "/both/not/x",
    "/both/a.PNG",
    "/first/a.png",
    "/first/x",
    "/a.jpg?x",
    "/split/1",
    "/splits",
    "/a/split",
    "/twice/x",
]


def copies_of(nginx: tuple[int, str, Path], requests: list[bytes]) -> list[dict[str, str]]:
    """What nginx mirrors of some requests; the last one tells that it is done."""
    port, _, log = nginx
    before = log.read_bytes().count(b"\n") if log.exists() else 0
    with socket.create_connection((OURS, port), timeout=300) as connection:
        for request in [*requests, head("GET / HTTP/1.1", "X-Id: last", "Connection: close")]:
            connection.sendall(request)
            if b"close" not in request:
                response = b""
                while b"\r\n\r\n" not in response:
                    response += connection.recv(1 << 16)
        while connection.recv(1 << 16):
            pass
    end = time.monotonic() + 60
    while b'"last"' not in log.read_bytes().split(b"\n", before)[-1] and time.monotonic() < end:
        time.sleep(0.01)
    lines = [json.loads(line) for line in log.read_bytes().splitlines()[before:]]
    return [line for line in lines if line["id"] != "last"]


def copy(data: bytes, port: int) -> dict[str, str]:
    """A request to a shadow as nginx's log has it."""
    first, *fields = data.decode().rstrip().split("\r\n")
    values = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    return {
        "id": values["x-id"],
        "uri": first.split()[1],
        "host": values["host"],
        "real": values.get("x-real-ip", ""),
        "to": str(port),
    }


def test_the_same_copies_as_nginx(nginx: tuple[int, str, Path]) -> None:
    """Every place, by two methods; the user is one of whom nginx and we mirror."""
    found = from_nginx(nginx[1].encode(), "lo")
    tap: dict[str, Any] = found.taps[0]
    users = [f"u{n}" for n in range(300)]
    asked = [head("GET /split/1 HTTP/1.1", f"X-Id: {user}", f"X-User: {user}") for user in users]
    theirs = {line["id"] for line in copies_of(nginx, asked)}
    us = Tried(**tap)
    labels = [shadow["name"] for shadow in tap["shadows"]]
    some = labels.index("some-one")
    offset = sum(shadow.get("copies", 1) for shadow in tap["shadows"][:some])
    ours = {user for user, data in zip(users, asked, strict=True) if us.ask(data)[offset] is not None}
    for each in (theirs, ours):
        assert abs(len(each) - 90) < 5 * math.sqrt(300 * 0.3 * 0.7)
    user = min(theirs & ours)
    requests = [
        head(f"{method} {path} HTTP/1.1", f"X-Id: {n}", f"X-User: {user}")
        for method in ("GET", "HEAD")
        for n, path in enumerate(PATHS)
    ]
    wanted = copies_of(nginx, requests)
    ports = [shadow["port"] for shadow in tap["shadows"] for _ in range(shadow.get("copies", 1))]
    policy = Tried(**tap)
    got = [
        copy(data.replace(b"10.0.0.1", b"127.0.0.1"), port)
        for request in requests
        for data, port in zip(policy.ask(request), ports, strict=True)
        if data is not None
    ]

    def order(line: dict[str, str]) -> str:
        return json.dumps(line, sort_keys=True)

    assert sorted(map(order, got)) == sorted(map(order, wanted))


def test_a_mirror_within_if_is_told() -> None:
    text = b"""server { listen 80;
        location /a { mirror /m; proxy_pass http://a; }
        location / { if ($arg_x) { mirror /m; } proxy_pass http://a; }
        location = /m { internal; proxy_pass http://b$request_uri; } }"""
    told = [str(problem) for problem in from_nginx(text, "eth0").left_out]
    assert told == ["3: mirror: is within if, where nginx takes none: not mirrored by it"]


def test_lua_is_named_where_it_may_turn_requests_away() -> None:
    lua = 'access_by_lua_block { if ngx.var.x == "}" then ngx.exit(403) end }'
    where = f"location / {{ {lua} mirror /m; }} location /x {{ content_by_lua_block {{ ngx.say(1) }} }}"
    tap, said = one(site(f"{TO_B} rewrite_by_lua_file x.lua;", "init_by_lua_block { local t = {} }", where))
    assert said == [
        f"1: {name}: Lua is not looked into: what it does to requests is not done here"
        for name in ("access_by_lua_block", "rewrite_by_lua_file")
    ]
    assert [shadow.name for shadow in tap.shadows] == ["m"]
