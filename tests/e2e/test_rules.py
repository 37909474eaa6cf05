# SPDX-License-Identifier: Apache-2.0
"""Taps of a file, end to end: shares, rules, several shadows, TLS, redaction, hooks."""

from __future__ import annotations

import contextlib
import json
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.mirror import PATIENCE, ROOM, Mirror, connect, dropped, read_until
from lab import (
    Behaviour,
    Certificates,
    HashSink,
    Lab,
    Nginx,
    RecordingTcp,
    Snapshot,
    load,
    open_to_all,
    unchanged,
    until,
)
from lab.bookinfo import Service
from lab.tap import COMMAND
from policy_cases import BOOKINFO

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SHADOW = "10.77.2.2"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"), "new.test")


ROOMY = json.dumps(ROOM)


def tap(body: str) -> str:
    """A tap on the lab's node that takes requests."""
    limits = "" if "limits:" in body else f"limits: {ROOMY}\n"
    return "iface: eth0\nport: 80\nprotocol: http\n" + textwrap.dedent(body) + limits


def ask(lab: Lab, *requests: bytes) -> None:
    """Send requests on one connection, each after the response to the one before."""
    with connect(lab.client, lab.node.addr4, 80) as client:
        for request in requests:
            client.sendall(request)
            assert read_until(client, b"ok\n").startswith(b"HTTP/1.1 200 ")


def get(path: str, *fields: str, host: str = "shop.test") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


def post(path: str, body: bytes, *fields: str) -> bytes:
    fields = (*fields, f"Content-Length: {len(body)}")
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: shop.test", *fields, "", ""]).encode() + body


@contextlib.contextmanager
def few_bytes_on_the_way(lab: Lab) -> Iterator[None]:
    """The kernel holds some 256 KiB of a connection to the shadow at most."""
    names = "ipv4.tcp_wmem", "ipv4.tcp_rmem"
    before = {(host, name): host.sysctl_now(name) for host in (lab.node, lab.shadow) for name in names}
    for host, name in before:
        host.sysctl(name, "4096 65536 131072")
    try:
        yield
    finally:
        for (host, name), value in before.items():
            host.sysctl(name, value)


@pytest.mark.parametrize("fault", ["refused", "silent"])
def test_a_bad_shadow_delays_no_other(lab: Lab, fault: str) -> None:
    """Two shadows, one of them dead or not reading: the other gets everything."""
    spec = tap(
        f"""
        shadows:
          - {{to: "{SHADOW}:81", name: bad}}
          - {{to: "{SHADOW}:80", name: good}}
        limits: {{queue_bytes: 524288, queues_bytes: 8388608, drain_time: 1}}
        """
    )
    connections, rounds = 10, 60
    count = connections * rounds
    with few_bytes_on_the_way(lab), HashSink(lab.node), HashSink(lab.shadow) as good, contextlib.ExitStack() as stack:
        bad = RecordingTcp(lab.shadow, 81, Behaviour(read=False)) if fault == "silent" else None
        with Mirror(lab.node, spec=spec) as mirror:
            clients = [stack.enter_context(connect(lab.client, lab.node.addr4, 80)) for _ in range(connections)]
            for number in range(
                rounds
            ):  # each when the good one has the one before: so many bytes no queue is too short for
                for client in clients:
                    client.sendall(post(f"/{number}", bytes(30_000)))
                for client in clients:
                    assert read_until(client, b"ok\n").startswith(b"HTTP/1.1 200 ")
                good.wait_for(connections * (number + 1))
            ledger = mirror.final()
        if bad is not None:
            bad.stop()
        shadows = ledger["shadows"]
        assert shadows["good"]["requests"] == {
            "seen": count,
            "mirrored": count,
            "sampled_out": 0,
            "filtered": {},
            "dropped": {},
            "in_flight": 0,
            "unaccounted": 0,
        }
        assert shadows["good"]["answers"] == {"2xx": count}
        assert shadows["bad"]["requests"]["seen"] == count
        assert sum(shadows["bad"]["requests"]["dropped"].values()) > 100
        assert ledger["requests"]["seen"] == 2 * count


def test_rules_shares_and_rewrites(lab: Lab) -> None:
    spec = tap(
        f"""
        shadows:
          - to: "{SHADOW}:80"
            name: new
            rewrite:
              host: shadow-suffix
              path: {{prefix: /v1, with: /v2}}
              set_headers: {{X-Client: "{{client}}"}}
              marker: X-Mirror
          - {{to: "{SHADOW}:81", name: some, percent: 30, by: key, key: "cookie:user"}}
        rules:
          - {{match: {{path: {{prefix: /health}}}}, mirror: none}}
          - {{match: {{headers: {{X-Beta: {{present: true}}}}}}, mirror: new}}
          - {{match: {{methods: [GET]}}}}
        """
    )
    users = [f"u{n}" for n in range(200)]
    with (
        HashSink(lab.node),
        HashSink(lab.shadow) as new,
        HashSink(lab.shadow, 81) as some,
        Mirror(lab.node, spec=spec) as mirror,
    ):
        ask(
            lab,
            get("/health"),
            get("/v1/a", "X-Beta: 1"),
            post("/v1/b", b"x"),
            *[get("/v1/c", f"Cookie: user={u}") for u in users * 2],
        )
        new.wait_for(401, PATIENCE)
        ledger = mirror.final()
    assert ledger["shadows"]["new"]["requests"]["filtered"] == {"rule": 1, "no_rule": 1}
    assert [got.uri for got in new.got] == ["/v2/a"] + ["/v2/c"] * 400
    assert b"Host: shop.test-shadow\r\n" in new.got[0].head
    assert b"X-Client: 10.77.1.1\r\nX-Mirror: tap" in new.got[0].head
    chosen = [got.head.partition(b"user=")[2].split(b"\r")[0] for got in some.got]
    assert all(chosen.count(user) == 2 for user in chosen)
    assert abs(len(set(chosen)) - 60) < 5 * math.sqrt(200 * 0.3 * 0.7)


def test_copies_pools_and_taps_of_one_file(lab: Lab) -> None:
    """Three copies for one port, two pooled connections for another, each a tap of its own."""
    spec = f"""
taps:
  - {{name: three, iface: eth0, port: 80, shadow: {{to: "{SHADOW}:80", copies: 3}}, limits: {ROOMY}}}
  - {{name: pool, iface: eth0, port: 81, protocol: http, shadow: {{to: "{SHADOW}:81", pooled: 2}}, limits: {ROOMY}}}
"""
    with HashSink(lab.node), HashSink(lab.node, 81), HashSink(lab.shadow) as three, HashSink(lab.shadow, 81) as pool:
        mirror = Mirror(lab.node, spec=spec)
        assert load(lab.client, lab.node.addr4, requests=200, connections=4, bodies=(0, 100_000)).failed == 0
        assert load(lab.client, lab.node.addr4, port=81, requests=500, connections=25, bodies=(0, 3000)).failed == 0
        three.wait_for(600, PATIENCE)
        pool.wait_for(500, PATIENCE)
        ledgers = {ledger["tap"]: ledger for ledger in mirror.stop()["taps"]}
        mirror.end()
    assert len({got.connection for got in pool.got}) == 2
    assert len({got.connection for got in three.got}) == 12
    assert all(got.whole for got in [*three.got, *pool.got]) and three.bad == pool.bad == []
    assert ledgers["three"]["requests"]["mirrored"] == 600 and ledgers["pool"]["requests"]["mirrored"] == 500
    assert dropped(ledgers["three"]) == dropped(ledgers["pool"]) == {}


# --- secrets


def test_a_redacted_secret_appears_nowhere(lab: Lab) -> None:
    """Not at the shadow, not in what we say, not in the ledger, and no core can be dumped."""
    secret = b"hunter2-4711"
    spec = tap(
        f"""
        redact:
          privacy: strict
          patterns: {{"hunter2-[0-9]+": XXX}}
        shadow: "{SHADOW}:80"
        limits: {{drain_time: 0.5}}
        """
    )
    body = json.dumps({"name": "ann", "user": {"password": secret.decode()}, "note": f"is {secret.decode()}"}).encode()
    broken = b'{"password": "' + secret + b'"'
    chunks = b"5\r\n" + body[:5] + b"\r\n%x\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\n\r\n"
    fields = [f"Authorization: Bearer {secret.decode()}", f"Cookie: s={secret.decode()}", f"X-Other: {secret.decode()}"]
    json_type = "Content-Type: application/json"
    asked = [
        get(f"/a?token={secret.decode()}&x=1", *fields),
        post("/b", body, json_type, *fields),
        get("/c", "Transfer-Encoding: chunked", json_type).replace(b"GET", b"POST") + chunks,
        post("/d", b"email=" + secret, "Content-Type: application/x-www-form-urlencoded"),
        post("/e", broken, json_type),
        post("/f", secret),
        get(f"/{secret.decode()}"),
    ]
    with HashSink(lab.node) as production, RecordingTcp(lab.shadow, 80, Behaviour()) as shadow:
        with Mirror(lab.node, spec=spec) as mirror:
            ask(lab, *asked)
            until(lambda: b"GET /XXX" in b"".join(bytes(r.content) for r in shadow.records), "the last", PATIENCE)
            workers = [pid for pid, command in mirror.processes().items() if "tapmirror.worker" in command]
            limits = Path(f"/proc/{workers[0]}/limits").read_text()
            ledger = mirror.final()
            said = mirror.said()
        received = b"".join(bytes(record.content) for record in shadow.records)
        assert len(production.got) == 7
    assert secret not in received and b"hunter2" not in received
    assert b'"name":"ann","user":{},"note":"is XXX"' in received
    assert received.count(b"HTTP/1.1") == 5
    assert ledger["requests"]["dropped"] == {"unredacted": 2}
    for text in (said, json.dumps(ledger)):
        assert "hunter2" not in text
    assert "Max core file size        0                    0" in limits


def test_nothing_copied_from_a_request_makes_a_field_or_a_request_more(lab: Lab) -> None:
    """Scenario 14: what a client sends goes into path, parameters, fields; the shadow reads as many requests."""
    spec = tap(
        f"""
        shadow:
          to: "{SHADOW}:80"
          rewrite:
            path: {{regex: "^(.*)$", with: '\\1'}}
            set_query: {{by: tap}}
            set_headers: {{X-Host: "{{host}}", X-Target: "{{target}}", X-Both: "{{client}} {{host}}{{target}}"}}
            x_forwarded_for: true
        """
    )
    odd = ["a%0d%0aX-Evil:%201", "a%00", "%0aGET%20/evil%20HTTP/1.1", "\xe9", "{host}", "a:b", "\\r\\n"]
    asked = [
        f"GET /{text}?{text} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: {text}\r\n\r\n".encode("latin-1")
        for text in odd
        for host in ("shop.test", "a%0d%0aX-Evil:1")
    ]
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with Mirror(lab.node, spec=spec) as mirror:
            ask(lab, *asked)
            shadow.wait_for(len(asked), PATIENCE)
            ledger = mirror.final()
        assert len(production.got) == len(asked)
    assert len(shadow.got) == len(asked) and shadow.bad == [] and dropped(ledger) == {}
    for got in shadow.got:
        names = [line.partition(b":")[0] for line in got.head.split(b"\r\n")[1:] if line]
        assert sorted(names) == [b"Host", b"X-Both", b"X-Forwarded-For", b"X-Host", b"X-Target"]


# --- TLS, with nginx at the other end


@pytest.mark.parametrize(
    ("tls", "clients", "failures"),
    [
        ("{{sni: new.test, ca_file: {c.authority}}}", False, False),
        ("{{sni: new.test, ca_file: {c.authority}, cert_file: {c.client}}}", True, False),
        ("{{verify: false}}", False, False),
        ("{{sni: new.test}}", False, True),  # an authority that the system does not know
        ("{{ca_file: {c.authority}}}", False, True),  # the name is not in the certificate
    ],
)
def test_tls(lab: Lab, certificates: Certificates, tls: str, clients: bool, failures: bool) -> None:
    shadow_spec = f'{{to: "{SHADOW}:443", tls: {tls.format(c=certificates)}}}'
    with HashSink(lab.node), Nginx(lab.shadow, 443, log=True, tls=certificates, clients=clients) as shadow:
        with Mirror(lab.node, spec=tap(f"shadow: {shadow_spec}\n")) as mirror:
            assert load(lab.client, lab.node.addr4, requests=60, connections=10, bodies=(0, 200_000)).failed == 0
            if not failures:
                shadow.wait_for(60, PATIENCE)
            ledger = mirror.final()
            said = mirror.said()
        if failures:
            assert shadow.requests() == 0
            assert ledger["requests"]["dropped"] == {"shadow_down": 60}
            assert ledger["events"]["tls_untrusted"] == ledger["events"]["tls_failures"] >= 1
        else:
            assert dropped(ledger) == {}
            assert ledger["answers"] == {"2xx": 60}
            wanted = sorted((f"/{n}", (0, 200_000)[n % 2]) for n in range(60))
            assert [uri for uri, _ in wanted] == sorted(line.uri for line in shadow.logged())
        assert ("TLS WITHOUT VERIFICATION" in said) is ("verify: false" in tls)


def test_tls_responses_that_fill_more_than_one_record(lab: Lab, certificates: Certificates) -> None:
    spec = tap(f'shadow: {{to: "{SHADOW}:443", tls: {{sni: new.test, ca_file: {certificates.authority}}}}}\n')
    with Nginx(lab.node), Nginx(lab.shadow, 443, tls=certificates) as shadow, Mirror(lab.node, spec=spec) as mirror:
        with connect(lab.client, lab.node.addr4, 80) as client:
            for _ in range(20):
                client.sendall(get("/file/1m"))
                size = 0
                while size < 1 << 20:
                    size += len(client.recv(1 << 20))
        shadow.wait_for(20, PATIENCE)
        ledger = mirror.final()
    assert ledger["answers"] == {"2xx": 20} and dropped(ledger) == {}


# --- hooks


HOOK = """
def change(request):
    if request.target == "/drop":
        return None
    if request.target == "/fail":
        raise RuntimeError(request.target)
    return request.replace(target=request.target + "?by=hook")
"""


def test_a_hook(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all(tmp_path)
    (tmp_path / "my_hook.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    spec = tap(f'shadow: "{SHADOW}:80"\nhook: my_hook:change\n')
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Mirror(lab.node, spec=spec) as mirror:
        ask(lab, get("/a"), get("/drop"), get("/fail"), get("/b"))
        shadow.wait_for(2, PATIENCE)
        ledger = mirror.final()
    assert [got.uri for got in shadow.got] == ["/a?by=hook", "/b?by=hook"]
    assert ledger["requests"]["filtered"] == {"hook": 1} and ledger["requests"]["dropped"] == {"hook_error": 1}
    assert ledger["events"]["hook_calls"] == 4 and ledger["events"]["hook_ns"] > 0


# --- what is wrong is told in one line each, and nothing is left attached


@pytest.mark.apart
@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (
            f'shadow: "{SHADOW}:80"\nhook: no_such_module:change\n',
            ["hook: cannot load no_such_module:change: No module"],
        ),
        (f'shadow: "{SHADOW}:80"\nhook: json:no_such\n', ["hook: cannot load json:no_such: module 'json' has no"]),
        (f'shadow: {{to: "{SHADOW}:80", tls: {{ca_file: /no/such}}}}\n', ["shadows[0].tls: No such file or directory"]),
        (f'shadow: {{to: "{SHADOW}:80", tls: {{cert_file: /etc/passwd}}}}\n', ["shadows[0].tls: "]),
        ('shadow: "no-such-host.invalid:80"\n', ["shadow: cannot resolve 'no-such-host.invalid'"]),
        ('shadows: ["127.0.0.1:81", "127.0.0.1:80"]\n', ["shadows[1]: 127.0.0.1 port 80 is this host's own"]),
        ("shadow: a\npercent: 101\n", [":4: shadow: 'a' is not HOST:PORT", ":5: percent: 101.0 is not"]),
    ],
)
def test_wrong_taps(lab: Lab, tmp_path: Path, body: str, wanted: list[str]) -> None:
    before = Snapshot.of(lab.node)
    file = tmp_path / "tap.yaml"
    file.write_text(tap(body))
    done = lab.node.run([str(COMMAND), "run", "-f", str(file)], check=False)
    unchanged(lab.node, before)
    assert done.returncode == 2 and done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("tapmirror: error: ")]
    assert len(lines) == len(wanted) == len(done.stderr.splitlines()), done.stderr
    for line, part in zip(lines, wanted, strict=True):
        assert part in line


# --- Istio's own rules: the Bookinfo sample's reviews, v1 in production, v2 as the shadow

HEALTH = "    - match: [{uri: {prefix: /health}}]\n      route: [{destination: {host: reviews, subset: v1}}]\n"
REVIEWS = BOOKINFO.decode().replace("  http:\n", "  http:\n" + HEALTH)


def test_bookinfo_mirrors_a_portion_to_v2(lab: Lab) -> None:
    """Three services: v1 in production, v2 its shadow, and ratings, which only v2 asks."""
    with (
        Service(lab.node, "reviews-v1", 9080) as v1,
        Service(lab.shadow, "ratings", 9081) as ratings,
        Service(lab.shadow, "reviews-v2", 9080, "127.0.0.1:9081") as v2,
    ):
        with Mirror(
            lab.node,
            file_text=REVIEWS,
            iface="eth0",
            port=9080,
            resolve=f"reviews:v2={SHADOW}:9080",
        ) as mirror:
            with connect(lab.client, lab.node.addr4, 9080) as client:
                for n in range(1000):
                    path = "/health" if n % 10 == 0 else f"/reviews/{n}"
                    client.sendall(get(path, host="reviews:9080"))
                    response = read_until(client, b"}]}")
                    assert response.startswith(b"HTTP/1.1 200 ") and b'"podname": "reviews-v1"' in response

                def told() -> list[str]:
                    return re.findall(r"requests: ([\d,]+) mirrored", mirror.said())

                looks = len(told())
                until(lambda: len(told()) > looks + 1, "two looks behind the last request")
                until(lambda: len(v2.calls()) >= int(told()[-1].replace(",", "")), "the calls of all that was sent")
            ledger = mirror.final()
        calls = v2.calls()
        assert len(v1.calls()) == 1000 and {call.host for call in v1.calls()} == {"reviews:9080"}
        asked = ratings.calls()
    assert ledger["requests"]["filtered"] == {"rule": 100}
    assert len(calls) == ledger["requests"]["mirrored"] == ledger["answers"]["2xx"]
    assert abs(len(calls) - 450) < 5 * math.sqrt(900 * 0.5 * 0.5)
    assert {call.host for call in calls} == {"reviews-shadow:9080"}
    assert sorted(call.path.replace("/reviews/", "/ratings/") for call in calls) == sorted(c.path for c in asked)
    assert not any(call.path == "/health" for call in calls)
