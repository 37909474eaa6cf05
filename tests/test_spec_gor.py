# SPDX-License-Identifier: Apache-2.0
"""Command lines of GoReplay: what they do is what the tap does, and what it does not is told."""

from __future__ import annotations

import math
from typing import Any

import pytest

from policy_cases import Tried, head
from tapmirror.spec import By, Protocol, Spread, TapSpec
from tapmirror.spec.document import FileError
from tapmirror.spec.gor import MAX_COMMAND, from_gor
from tapmirror.spec.reading import read_taps

MIN = "gor --input-raw :80 --output-http http://b:81"


def translated(command: str, iface: str | None = "eth0") -> tuple[TapSpec, list[str]]:
    """The tap as the printed file is read again, and what is told."""
    found = from_gor(command, iface)
    (tap,) = read_taps(found.text("gor").encode())
    return tap, [str(problem) for problem in found.left_out]


def tried(command: str) -> Tried:
    found = from_gor(command, "eth0")
    (tap,) = found.taps
    return Tried(**tap)


def wrong(command: str) -> list[str]:
    with pytest.raises(FileError) as caught:
        from_gor(command)
    return [str(problem) for problem in caught.value.found]


def test_the_least() -> None:
    tap, said = translated(MIN)
    assert said == [] and tap.protocol is Protocol.HTTP and tap.ports == (80,) and tap.percent == 100 and not tap.rules
    (shadow,) = tap.shadows
    assert (shadow.host, shadow.port, shadow.rewrite.host) == ("b", 81, "b:81")
    assert translated(MIN, None)[1] == ["iface: no interface is named: eth0 stands for it; say which with --iface"]


def test_an_input_of_all_addresses_beside_one_of_one() -> None:
    tap, said = translated("gor --input-raw 10.0.0.7:80 --input-raw :81 --output-http b")
    assert (tap.ports, tap.addrs) == ((80, 81), ())
    assert said == ["--input-raw: one input is of all addresses, so the tap is, not of 10.0.0.7 alone"]


def test_a_command_on_several_lines() -> None:
    assert translated("gor --input-raw :80 \\\n  --output-http http://b:81\n") == translated(MIN)


def test_one_output_twice() -> None:
    tap, _ = translated("gor --input-raw :80 --output-http 'b/x|10%' --output-http 'b/y|20%' --output-http b:81")
    assert [(shadow.label, shadow.percent) for shadow in tap.shadows] == [("b:80", 10), ("b:80-2", 20), ("b:81", 100)]


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("sudo ./gor -input-raw=:80,8080 -output-http b", {"ports": (80, 8080)}),
        ("gor --input-raw 10.0.0.7:80 --output-http b", {"addrs": ("10.0.0.7",)}),
        ("gor --input-raw [2001:db8::7]:80 --output-http b", {"addrs": ("2001:db8::7",)}),
        ("gor --input-raw 0.0.0.0:80 --output-http b", {"addrs": ()}),
        ("docker run --net host buger/goreplay:1.3 gor --input-raw :80 --output-http b", {"ports": (80,)}),
        ("sudo -u root /opt/goreplay --input-raw :80 --output-http b", {"ports": (80,)}),
        ("gor --input-raw :80 --input-raw :81 --output-http b", {"ports": (80, 81)}),
        ("gor --input-raw ':80|5%' --output-http b", {"percent": 5.0, "by": By.REQUEST}),
        ("gor --input-raw ':80|200' --output-http b", {"max_requests": 200.0, "percent": 100.0}),
        ("gor --input-raw :80 --output-http b --output-http c --split-output", {"spread": Spread.ROUND_ROBIN}),
        ("gor --input-raw :80 --output-http b --output-http c --split-output=false", {"spread": Spread.ALL}),
        ("gor --input-raw :80 --output-http b --input-raw-promisc --verbose --stats", {"promisc": True}),
        ("gor --input-raw :80 --output-http b --verbose 3 --input-raw-promisc", {"promisc": True}),
        (
            "gor --input-raw :80 --input-raw-protocol binary --output-binary b:9",
            {"protocol": Protocol.RAW, "rules": ()},
        ),
    ],
)
def test_the_tap(command: str, wanted: dict[str, Any]) -> None:
    tap, said = translated(command)
    assert {name: getattr(tap, name) for name in wanted} == wanted and said == []


def test_an_interface_for_an_address() -> None:
    assert translated("gor --input-raw ens5:80 --output-http b", None)[0].iface == "ens5"


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ("--output-http 'b|10%'", {"percent": 10.0, "by": By.REQUEST, "port": 80}),
        ("--output-http 'http://b:81|10'", {"max_requests": 10.0, "percent": 100.0}),
        ("--output-http https://b", {"port": 443}),
        ("--output-http b --output-http-workers 20", {"pooled": 20}),
    ],
)
def test_the_shadow(more: str, wanted: dict[str, Any]) -> None:
    tap, said = translated(f"gor --input-raw :80 {more}")
    assert {name: getattr(tap.shadows[0], name) for name in wanted} == wanted and said == []


def test_tls() -> None:
    (one,) = translated("gor --input-raw :80 --output-http https://b")[0].shadows
    (other,) = translated("gor --input-raw :80 --output-http https://b --output-http-skip-verify")[0].shadows
    assert one.tls is not None and other.tls is not None and (one.tls.verify, other.tls.verify) == (True, False)


# --- filters, asked of the policy

YES = "GET /api/v1?x=1 HTTP/1.1"


@pytest.mark.parametrize(
    ("more", "line", "fields", "passes"),
    [
        ("--http-allow-method GET --http-allow-method HEAD", YES, (), True),
        ("--http-allow-method POST", YES, (), False),
        ("--http-allow-url ^/api", YES, (), True),
        ("--http-allow-url 'x=1$'", YES, (), True),  # the target has the query
        ("--http-allow-url api --http-allow-url zzz", YES, (), True),
        ("--http-allow-url ^/other", YES, (), False),
        ("--http-disallow-url v1", YES, (), False),
        ("--http-allow-url ^/api --http-disallow-url v2 --http-allow-method GET", YES, (), True),
        ("--http-allow-header api-version:^1", YES, ("Api-Version: 1.2",), True),
        ("--http-allow-header api-version:^1", YES, ("Api-Version: 2.1",), False),
        ("--http-allow-header api-version:^1", YES, (), False),
        ("--http-allow-header a:1 --http-allow-header b:2", YES, ("A: 1",), False),
        ("--http-allow-header a:1 --http-allow-header b:2", YES, ("A: 1", "B: 2"), True),
        ("--http-disallow-header 'User-Agent: Replayed'", YES, ("User-Agent: Replayed by Gor",), False),
        ("--http-disallow-header 'User-Agent: Replayed'", YES, (), True),
        ("--output-http-method POST", YES, (), False),  # deprecated name
    ],
)
def test_filters(more: str, line: str, fields: tuple[str, ...], passes: bool) -> None:
    found = tried(f"{MIN} {more}")
    (got,) = found.ask(head(line, *fields))
    assert (got is not None) is passes


def test_a_limiter_takes_all_or_nothing_of_a_key_and_all_without() -> None:
    found = tried(f"{MIN} --http-header-limiter user-id:25%")
    taken = {}
    for n in range(400):
        both = [found.ask(head(YES, f"User-Id: u{n}"))[0] is not None for _ in range(2)]
        assert both[0] is both[1]
        taken[n] = both[0]
    assert abs(sum(taken.values()) - 100) < 5 * math.sqrt(400 * 0.25 * 0.75)
    assert found.ask(head(YES))[0] is not None
    by_parameter, said = translated(f"{MIN} --http-param-limiter id:50% --http-header-limiter u:5%")
    assert by_parameter.rules[0].key == "query:id" and by_parameter.rules[0].percent == 50
    assert said == ["--http-header-limiter u:5%: only one limiter can be had: more is mirrored than by gor"]


def test_percent_of_an_output() -> None:
    found = tried("gor --input-raw :80 --output-http 'b|10%'")
    taken = sum(found.ask(head(f"GET /{n} HTTP/1.1"))[0] is not None for n in range(3000))
    assert abs(taken - 300) < 5 * math.sqrt(3000 * 0.1 * 0.9)


@pytest.mark.parametrize(
    ("more", "line", "wanted"),
    [
        ("--http-set-header 'User-Agent: {Gor}'", YES, b"GET /api/v1?x=1 HTTP/1.1\r\nHost: b:81\r\nUser-Agent: {Gor}"),
        ("--http-original-host", YES, b"\r\nHost: shop.test\r\n"),
        ("--http-original-host --http-set-header 'Host: c'", YES, b"\r\nHost: c\r\n"),
        ("--http-set-param api_key=1 --http-set-param x=2", YES, b"GET /api/v1?api_key=1&x=2 HTTP/1.1"),
        (r"--http-rewrite-url '/v1/([^\/]+)/ping:/v2/$1/ping'", "GET /v1/7/ping HTTP/1.1", b"GET /v2/7/ping "),
        ("--http-rewrite-url '/a(b):/${1}c$$'", "GET /ab HTTP/1.1", b"GET /bc$ HTTP/1.1"),
        ("--input-raw-realip-header X-Real-IP", YES, b"X-Real-IP: 10.0.0.1\r\n"),
    ],
)  # fmt: skip
def test_rewrites(more: str, line: str, wanted: bytes) -> None:
    (got,) = tried(f"{MIN} {more}").ask(head(line))
    assert got is not None and wanted in got


def test_a_path_of_the_output_is_that_of_every_request() -> None:
    found = from_gor("gor --input-raw :80 --output-http http://b/x", "eth0")
    (got,) = Tried(**found.taps[0]).ask(head(YES))
    assert got is not None and got.startswith(b"GET /x?x=1 HTTP/1.1\r\nHost: b\r\n")
    assert "own query" in str(found.left_out)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ("--middleware ./x.py", "--middleware: is a program of its own: a `hook` is the nearest"),
        ("--http-basic-auth-filter ^c", "--http-basic-auth-filter: has no equivalent: more is mirrored than by gor"),
        ("--http-rewrite-header 'Host: (.*),$1'", "--http-rewrite-header: has no equivalent"),
        ("--exit-after 1h5m30s", "--exit-after: is not of the tap: tapmirror run --duration 3930"),
        ("--output-file x.gor", "--output-file: a tap does not write files"),
        ("--made-up 5", "--made-up: has no equivalent"),
        ("--split-output true --http-allow-method GET", "true: gor does not look at this and what follows it"),
        ("--http-set-header 'Connection: close'", "--http-set-header: Connection frames the request"),
        ("--http-set-header 'Host: x'", "--http-set-header Host: has no effect in gor without --http-original-host"),
        ("--http-rewrite-url a:b --http-rewrite-url c:d", "--http-rewrite-url c:d: only the first is taken"),
        ("--http-rewrite-url 'a:$x'", "--http-rewrite-url a:$x: $x: only groups 1 to 9"),
        ("--http-rewrite-url 'a\\?b:c'", "--http-rewrite-url a\\?b:c: the path alone is rewritten"),
    ],
)
def test_what_has_no_equivalent_is_told_in_the_file_too(more: str, wanted: str) -> None:
    found = from_gor(f"{MIN} {more}", "eth0")
    assert [str(problem).startswith(wanted) for problem in found.left_out] == [True]
    assert f"# - {wanted}" in found.text("gor")
    read_taps(found.text("gor").encode())


def test_what_gor_does_not_look_at_has_no_effect() -> None:
    tap, _ = translated(f"{MIN} --split-output true --http-allow-method GET > log &")
    assert tap.rules == ()


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("", ["--input-raw: is missing", "--output-http: is missing"]),
        ("gor --input-file x.gor --output-http b", ["--input-raw: is missing"]),
        ("gor --input-raw 80 --output-http b", ["--input-raw: '80' is not [HOST]:PORT"]),
        ("gor --input-raw :0 --output-http b", ["--input-raw: ':0' is not"]),
        ("gor --input-raw :80 --output-http 'b|200%'", ["--output-http: '|200%' is not |N or |N%"]),
        ("gor --input-raw ':80|x' --output-http b", ["--input-raw: '|x' is not"]),
        ("gor --input-raw :80 --output-http ftp://b", ["--output-http: 'ftp://b' is not an address"]),
        ("gor --input-raw :80 --output-http 'b:99999'", ["--output-http: 'b:99999' is not an address"]),
        (f"{MIN} --http-allow-url '('", ["--http-allow-url: '(': missing"]),
        (f"{MIN} --http-allow-header x", ["--http-allow-header: 'x' is not NAME:EXPRESSION"]),
        (f"{MIN} --http-set-header x --http-set-param y", ["--http-set-header: 'x' is not", "--http-set-param: 'y'"]),
        (f"{MIN} --http-header-limiter u:x%", ["--http-header-limiter: 'u:x%' is not NAME:PERCENT%"]),
        (f"{MIN} --http-rewrite-url x", ["--http-rewrite-url: 'x' is not EXPRESSION:TARGET"]),
        (f"{MIN} --output-http-workers x", ["--output-http-workers: 'x' is not a number"]),
        (f"{MIN} --exit-after 5", ["--exit-after: '5' is not a duration"]),
        (f"{MIN} --exit-after 1.2.3s", ["--exit-after: '1.2.3s' is not a duration"]),
        (f"{MIN} --input-raw-protocol udp", ["--input-raw-protocol: 'udp' is not"]),
        (f"{MIN} --http-set-header", ["--http-set-header: a value is missing"]),
        (f"{MIN} --http-set-header 'X: a\nb'", ["shadows[0].rewrite.set_headers.X: "]),
        ("gor 'x", ["not a command line: No closing quotation"]),
        ("x" * (MAX_COMMAND + 1), ["longer than 64 KiB"]),
    ],
)
def test_what_is_wrong_is_told_by_flag(command: str, wanted: list[str]) -> None:
    said = wrong(command)
    assert len(said) == len(wanted) and all(a.startswith(b) for a, b in zip(said, wanted, strict=True)), said
