# SPDX-License-Identifier: Apache-2.0
"""Files as users write them: what they mean, and everything that is wrong with them."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapmirror.spec import (
    BodyLimit,
    By,
    Compare,
    Hook,
    Level,
    Match,
    Mirror,
    Over,
    PathRewrite,
    Protocol,
    Ramp,
    Redact,
    Rewrite,
    Rule,
    Shadow,
    Size,
    Spread,
    TapSpec,
    Text,
    Tls,
)
from tapmirror.spec.document import Document, FileError
from tapmirror.spec.reading import read_taps, taps_of

MINIMAL = b"""\
iface: eth0
port: 80
shadow: staging.internal:8080
percent: 5
"""

COMPARED = Compare(level=Level.HEADERS, noise_probe=2.5, noise_relative=30.0)
FULL = b"""\
taps:
  - name: shop
    iface: eth0
    ports: [80, 8080]
    addr: 10.0.0.1
    protocol: http
    seed: 7
    by: key
    key: jwt:sub
    ramp: {from: 1, to: 50, over: 600}
    safe_methods: true
    spread: round-robin
    hook: my.module:change
    redact: {privacy: strict, headers: {X-Secret: hash}, json: {user.email: remove}}
    shadows:
      - to: "[2001:db8::7]:80"
        name: new
        match: {host: {suffix: .test}}
        copies: 2
        rewrite:
          host: shadow-suffix
          path: {prefix: /v1, with: /v2}
          set_headers: {X-Client: "{client}"}
        tls: {sni: new.test, verify: false}
      - {host: old.test, port: 81, percent: 10, by: request}
    rules:
      - match: {path: {prefix: /health}}
        mirror: none
      - match: [{methods: [POST], body: {max: 10}}, {headers: {X-A: b}}]
        mirror: [new, {shadow: "old.test:81", percent: 1.5}]
        body: {max: 1000, over: stream}
      - mirror: all
    limits: {head_bytes: 8192}
  - {name: raw, iface: lo, port: 6379, shadow: "10.0.0.9:6379", protocol: raw}
"""


def test_a_minimal_file() -> None:
    assert read_taps(MINIMAL) == [
        TapSpec(iface="eth0", ports=(80,), shadows=(Shadow(host="staging.internal", port=8080),), percent=5.0)
    ]


def test_what_is_in_percent_may_say_so_wherever_it_stands() -> None:
    (plain,), (said,) = (
        read_taps(
            f"iface: eth0\nport: 80\nprotocol: http\nby: request\npercent: 50{sign}\n"
            f"shadows: [{{to: a:80, name: a, ramp: {{from: 1{sign}, to: 2.5{sign}, over: 60}}}}]\n"
            f"rules: [{{percent: 20{sign}, mirror: [{{shadow: a, percent: 10{sign}}}]}}]\n".encode()
        )
        for sign in ("", "%")
    )
    assert (said.percent, said.shadows[0].ramp, said.rules) == (50, plain.shadows[0].ramp, plain.rules)
    assert said == plain
    with pytest.raises(FileError, match="percent: 'x%' is not a number"):
        read_taps(b"iface: eth0\nport: 80\nshadow: a:80\npercent: x%\n")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("body", Compare(level=Level.BODY)),
        ("off", Compare()),
        ("{level: off}", Compare()),
        ("{level: headers, noise_probe: 2.5%, noise_relative: 30}", COMPARED),
        ("{level: status, noise_probe: 0}", Compare(level=Level.STATUS, noise_probe=0.0)),
    ],
)
def test_a_comparison(text: str, want: Compare) -> None:
    """For YAML 1.1 `off` is false."""
    (tap,) = read_taps(MINIMAL + f"compare: {text}\n".encode())
    assert tap.compare == want


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("on", "compare: true (or yes, on) is none of off, status, headers, body"),
        ("{level: bodies}", "compare.level: 'bodies' is none of"),
        ("{noise_probe: x%}", "compare.noise_probe: 'x%' is not a number"),
        ("{noise_probe: 5%}", "compare.noise_probe: nothing is compared: set compare to a level"),
        ("{noise_probe: 1}", "compare.noise_probe: nothing is compared: set compare to a level"),
        ("{level: status, noise_probe: 1%}", "compare.noise_probe: has no effect with level status: it needs headers"),
        ("{level: status, noise_probe: 5}", "compare.noise_probe: has no effect with level status: it needs headers"),
        ("body\nprotocol: raw", "compare: needs requests and responses"),
    ],
)
def test_what_is_wrong_with_a_comparison(text: str, said: str) -> None:
    with pytest.raises(FileError, match=re.escape(said)):
        read_taps(MINIMAL + f"compare: {text}\n".encode())


@pytest.mark.parametrize("other", ["percnt: 5", "ttl: soon", "percent: 101", "key: client"])
def test_a_slip_is_told_with_all_else(other: str) -> None:
    """What is unknown, of another type, out of bounds, and what does not go together."""
    text = f"name: -web\niface: lo\nport: 80\nshadow: h:1\n{other}\ncompare: {{level: off, noise_probe: 5}}\n"
    with pytest.raises(FileError) as caught:
        read_taps(text.encode())
    field = other.partition(":")[0]
    assert [problem.path for problem in caught.value.found] == ["name", field, "compare.noise_probe"]


def test_no_slip_is_made_of_what_is_wrong() -> None:
    """A level that could not be read may have been one."""
    with pytest.raises(FileError) as caught:
        read_taps(MINIMAL + b"compare: {levl: body, noise_probe: 5}\n")
    assert [problem.path for problem in caught.value.found] == ["compare.levl"]


def test_a_full_file() -> None:
    shop, raw = read_taps(FULL)
    assert raw == TapSpec(
        name="raw", iface="lo", ports=(6379,), shadows=(Shadow(host="10.0.0.9", port=6379),), protocol=Protocol.RAW
    )
    assert msgspec.structs.replace(shop, limits=raw.limits) == TapSpec(
        name="shop",
        iface="eth0",
        ports=(80, 8080),
        addrs=("10.0.0.1",),
        protocol=Protocol.HTTP,
        seed=7,
        by=By.KEY,
        key="jwt:sub",
        ramp=Ramp(start=1.0, end=50.0, over=600.0),
        safe_methods=True,
        spread=Spread.ROUND_ROBIN,
        hook=Hook(call="my.module:change"),
        redact=Redact(privacy="strict", headers={"X-Secret": "hash"}, json={"user.email": "remove"}),
        shadows=(
            Shadow(
                host="2001:db8::7",
                port=80,
                name="new",
                match=(Match(host=Text(suffix=".test")),),
                copies=2,
                rewrite=Rewrite(
                    host="shadow-suffix",
                    path=PathRewrite(prefix="/v1", becomes="/v2"),
                    set_headers={"X-Client": "{client}"},
                ),
                tls=Tls(sni="new.test", verify=False),
            ),
            Shadow(host="old.test", port=81, percent=10.0, by=By.REQUEST),
        ),
        rules=(
            Rule(match=(Match(path=Text(prefix="/health")),), mirror=()),
            Rule(
                match=(Match(methods=("POST",), body=Size(max=10)), Match(headers={"X-A": Text(exact="b")})),
                mirror=(Mirror(shadow="new"), Mirror(shadow="old.test:81", percent=1.5)),
                body=BodyLimit(max=1000, over=Over.STREAM),
            ),
            Rule(),
        ),
    )
    assert shop.limits.head_bytes == 8192


def test_a_tap_survives_the_way_to_the_worker() -> None:
    for tap in read_taps(FULL):
        assert msgspec.json.decode(msgspec.json.encode(tap), type=TapSpec) == tap


BASE = {"iface": "eth0", "port": 80, "shadow": "a:80", "protocol": "http"}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"iface": 5}, "iface: 5 is not a text; put it in quotes"),
        ({"port": "80"}, "port: '80' is not a whole number"),
        ({"port": True}, "port: true (or yes, on) is not a whole number"),
        ({"port": None}, "port: None is not a whole number"),
        ({"port": 0}, "port: 0 is not a port (1 to 65535)"),
        ({"shadow": "a:80", "port": 80, "shadows": []}, "shadows: give shadow or shadows, not both"),
        ({"ports": [81]}, "ports: give port or ports, not both"),
        ({"prot": "http"}, "prot: no such field of a tap (did you mean port?)"),
        ({"percent": 100.5}, "percent: 100.5 is not between 0 and 100"),
        ({"percent": "many"}, "percent: 'many' is not a number"),
        ({"workers": "many"}, "workers: 'many' is not a whole number or auto"),
        ({"workers": None}, "workers: None is not a whole number or auto"),
        ({"workers": []}, "workers: [] is not a whole number or auto"),
        ({"workers": True}, "workers: true (or yes, on) is not a whole number or auto"),
        ({"percent": 0.00005}, "percent: 5e-05 is too small: shares are in steps of 0.0001"),
        ({"percent": float("nan")}, "percent: nan is not between 0 and 100"),
        ({"percent": 10**400}, "percent: inf is not between 0 and 100"),
        ({"protocol": "h2"}, "protocol: 'h2' is none of auto, http, raw"),
        ({"shadow": "a"}, "shadow: 'a' is not HOST:PORT"),
        ({"shadow": {"to": "a:80", "copies": 0}}, "shadow.copies: 0 is not between 1 and 64"),
        ({"shadow": {"to": "a"}}, "shadow: 'a' is not HOST:PORT"),
        ({"shadow": {"host": "a"}}, "shadow: port is missing"),
        ({"shadow": {"to": "a:80", "port": 81}}, "shadow.port: give to or host and port, not both"),
        ({"shadow": {"to": "a:80", "tls": {"key_file": "k"}}}, "shadow.tls.key_file: needs cert_file"),
        ({"by": "key"}, "key: by: key needs a key (header:NAME, cookie:NAME, query:NAME, jwt:CLAIM or client)"),
        ({"key": "client"}, "key: has no effect with by: connection"),
        ({"by": "key", "key": "body"}, "key: 'body' is not header:NAME, cookie:NAME, query:NAME, jwt:CLAIM or client"),
        ({"ramp": {"from": 1, "to": 2}}, "ramp: over is missing"),
        ({"ramp": {"from": 1, "to": 2, "over": 0}}, "ramp.over: 0.0 is not a number of seconds above 0"),
        ({"ramp": {"from": 1, "to": 2, "over": 5}, "percent": 5}, "ramp: give percent or ramp, not both"),
        ({"max_requests": -1}, "max_requests: -1.0 is not a number above 0"),
        ({"rules": {}}, "rules: {} is not a list"),
        (
            {"rules": [{"match": {"path": {}}}]},
            "rules[0].match.path: needs one of exact, prefix, suffix, regex, present",
        ),
        ({"rules": [{"match": {"path": {"regex": "("}}}]}, "rules[0].match.path.regex: '(': missing ): ("),
        ({"rules": [{"match": [{}, {"methods": ["A B"]}]}]}, "rules[0].match[1].methods[0]: 'A B' is not a method"),
        ({"rules": [{"match": {"headers": {"A:": "x"}}}]}, "rules[0].match.headers.A:: 'A:' is not a field name"),
        (
            {"rules": [{"match": {"clients": ["10.0.0.1/8"]}}]},
            "rules[0].match.clients[0]: 10.0.0.1/8 has host bits set",
        ),
        ({"rules": [{"match": {"body": {"min": 5, "max": 4}}}]}, "rules[0].match.body.max: 4 is below min"),
        ({"rules": [{"mirror": "b"}]}, "rules[0].mirror[0]: no shadow has the name 'b' (there are: a:80)"),
        ({"rules": [{"mirror": ["a:80", "a:80"]}]}, "rules[0].mirror[1]: 'a:80' is there already"),
        ({"rules": [{"body": {"max": -1}}]}, "rules[0].body.max: -1 is not between 0 and 67108864"),
        ({"shadow": {"to": "a:80", "rewrite": {"set_headers": {"A": "b\r\nC: d"}}}}, "shadow.rewrite.set_headers.A: "),
        ({"shadow": {"to": "a:80", "rewrite": {"set_headers": {"A\r": "b"}}}}, "shadow.rewrite.set_headers.A\\r: "),
        ({"shadow": {"to": "a:80", "rewrite": {"add_headers": {"A": "\0"}}}}, "shadow.rewrite.add_headers.A: "),
        (
            {"shadow": {"to": "a:80", "rewrite": {"add_headers": {"A": "{x}"}}}},
            "shadow.rewrite.add_headers.A: {x} is none",
        ),
        ({"shadow": {"to": "a:80", "rewrite": {"add_headers": {"A": "{"}}}}, "shadow.rewrite.add_headers.A: '{': "),
        ({"shadow": {"to": "a:80", "rewrite": {"add_headers": {"A": "{client!r}"}}}}, "shadow.rewrite.add_headers.A: "),
        ({"shadow": {"to": "a:80", "rewrite": {"marker": "Host"}}}, "shadow.rewrite.marker: Host frames the request"),
        (
            {"shadow": {"to": "a:80", "rewrite": {"remove_headers": ["Content-Length"]}}},
            "shadow.rewrite.remove_headers[0]: ",
        ),
        ({"shadow": {"to": "a:80", "rewrite": {"method": "CONNECT"}}}, "shadow.rewrite.method: "),
        ({"shadow": {"to": "a:80", "rewrite": {"host": "a b"}}}, "shadow.rewrite.host: "),
        (
            {"shadow": {"to": "a:80", "rewrite": {"path": {"with": "/"}}}},
            "shadow.rewrite.path: needs one of prefix and",
        ),
        ({"shadow": {"to": "a:80", "rewrite": {"path": {"prefix": "a", "with": "/"}}}}, "shadow.rewrite.path.prefix: "),
        ({"redact": {"headers": {"A": "drop"}}}, "redact.headers.A: 'drop' is not remove, hash or replace:TEXT"),
        ({"redact": {"headers": {"A": "replace:a\r\nb"}}}, "redact.headers.A: "),
        ({"redact": {"patterns": {"(": "x"}}}, "redact.patterns.(: "),
        ({"redact": {"privacy": "lax"}}, "redact.privacy: 'lax' is not strict"),
        ({"hook": "x"}, "hook: 'x' is not package.module:function"),
        ({"name": "-x"}, "name: '-x' begins with -: commands would take it for an option"),
        ({"name": "a/b"}, "name: 'a/b' has a /: `report` and `verdict` would take it for a file"),
        ({"limits": {"ring_bytes": 1000000}}, "limits.ring_bytes: 1000000 is not a power of two"),
        ({"limits": {"flows": -1}}, "limits.flows: -1 is not between 1 and"),
        ({"limits": {"flow_idle": float("inf")}}, "limits.flow_idle: inf is not between"),
        ({"limits": {"drain_time": "12d"}}, "limits.drain_time: 1036800.0 is not between 0.001 and 1000000"),
        ({"limits": {"ring_bytes": 1 << 32}}, "limits.ring_bytes: 4294967296 is not between 262144 and 2147483648"),
        ({"protocol": "auto", "safe_methods": True}, "safe_methods: needs requests: protocol must be http, not auto"),
        ({"protocol": "raw", "by": "request", "percent": 5}, "by: needs requests: protocol must be http, not raw"),
        ({"protocol": "auto", "shadow": {"to": "a:80", "pooled": 2}}, "shadow.pooled: needs requests"),
        (
            {"protocol": "raw", "shadow": {"to": "a:80", "rewrite": {"host": "b"}}},
            "shadow.rewrite.host: needs requests, ",
        ),
    ],
)
def test_refused(change: dict[str, Any], wanted: str) -> None:
    with pytest.raises(FileError) as caught:
        taps_of([Document({**BASE, **change}, {(): 1}, [])])
    (problem,) = caught.value.found
    assert str(problem).startswith(f"1: {wanted}")


def test_everything_that_is_wrong_is_told_with_its_line() -> None:
    text = b"iface: eth0\nprot: 80\nshadows:\n  - to: a:80\n    copies: x\n    percent: 105\n"
    text += b"protocol: http\nprotocol: raw\n"
    with pytest.raises(FileError) as caught:
        read_taps(text)
    assert [str(problem).split(": ")[:2] for problem in caught.value.found] == [
        ["1", "ports is missing"],
        ["2", "prot"],
        ["5", "shadows[0].copies"],
        ["6", "shadows[0].percent"],
        ["8", "protocol"],
    ]


def test_contradictions_and_what_is_wrong_among_rules_are_told_with_the_rest() -> None:
    text = b"iface: eth0\nport: 80\nports: [81]\nshadow: a:80\nshadows: [b:80]\npercent: 101\n"
    text += b"protocol: http\nrules:\n- match: {methods: [A B]}\n- mirror: other\n"
    with pytest.raises(FileError) as caught:
        read_taps(text)
    assert [str(problem).split(": ")[:2] for problem in caught.value.found] == [
        ["3", "ports"],
        ["5", "shadows"],
        ["6", "percent"],
        ["9", "rules[0].match.methods[0]"],
        ["10", "rules[1].mirror[0]"],
    ]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "no tap in it"),
        (b"# nothing", "no tap in it"),
        (b"- a", "1: ['a'] is not a structure of a tap"),
        (b"taps: []", "no tap in it"),
        (b"taps: 3", "1: taps: 3 is not a list of taps"),
        (b"taps:\n", "1: taps: None is not a list of taps"),
        (
            b"iface: eth0\nport: 80\nshadow: no",
            "3: shadow: false (or no, off) is not HOST:PORT, nor a structure of a shadow",
        ),
        (
            b"iface: eth0\nport: 80\nshadow: a:80\nname: on",
            "4: name: true (or yes, on) is not a text; put it in quotes",
        ),
        (b"taps: [5]", "1: taps[0]: 5 is not a structure of a tap"),
        (MINIMAL + b"---\n" + MINIMAL, "6: name: 'tap' is the name of more than one tap"),
    ],
)
def test_files_without_taps_and_with_two_of_a_name(data: bytes, wanted: str) -> None:
    with pytest.raises(FileError) as caught:
        read_taps(data)
    assert [str(problem) for problem in caught.value.found] == [wanted]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redact: x", "redact: 'x' is not a structure of redact"),
        ("limits: {flow: 1}", "limits.flow: no such field of limits (did you mean flows?)"),
        ("rules: [{body: {least: 1}}]", "rules[0].body.least: no such field of a body limit"),
    ],
)
def test_a_structure_is_called_what_it_is(text: str, said: str) -> None:
    with pytest.raises(FileError) as caught:
        read_taps(MINIMAL + text.encode())
    assert str(caught.value.found[0]).partition(": ")[2] == said


KEYS = st.sampled_from([*TapSpec.__struct_fields__, *Shadow.__struct_fields__, "port", "shadow", "to", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["all", "a:80"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_data_is_read_or_refused(data: dict[str, Any]) -> None:
    with contextlib.suppress(FileError):
        taps_of([Document({**BASE, **data}, {}, [])])
