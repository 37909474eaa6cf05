# SPDX-License-Identifier: Apache-2.0
"""What decoding and reassembly cost without a network: from a file, in disorder, with very many flows.

Part of `scripts/bench`.  Each figure is measured in a process of its own, so that none has the other's memory.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from capture_files import pcap
from lab.exchanges import Plain
from lab.hosts import prefix
from tapmirror.compare.comparison import Comparison
from tapmirror.events import ACCEPTED, ACK, END, START, SYN, Command, Gap, Open, Segment, Send
from tapmirror.exchange import PROBE
from tapmirror.flows import FlowTable
from tapmirror.ledger import Ledger
from tapmirror.offline import Options, Reader
from tapmirror.packet import MAPPED, Header
from tapmirror.policy import Policy
from tapmirror.source.files import CaptureFile
from tapmirror.spec import By, Compare, Level, Limits, Match, Protocol, Redact, Rewrite, Rule, Shadow, TapSpec, Text
from tapmirror.spec.costs import POLICY_US
from tapmirror.streams import StreamTable

CONNECTIONS: Final = 100
SEGMENTS: Final = 100_000
SIZE: Final = 1_460
MILLION: Final = 1_000_000
HALF_OPEN: Final = 1_000_000
TINY: Final = 500_000
REQUESTS: Final = 50_000
DISORDER: Final = (0.0, 0.01, 0.1, 0.5)

_HEAD: Final = bytes.fromhex("02000000000102000000000208004500000000000000400600000a0000020a000001")


def frames(disorder: float) -> Iterator[bytes]:
    """Full-sized segments of servers and acknowledgements of every second; this share is late by one to three."""
    rand = random.Random(1)
    late: list[tuple[int, bytes]] = []
    body = bytes(range(256)) * 6
    for n in range(SEGMENTS):
        port, at = 20_000 + n % CONNECTIONS, n // CONNECTIONS * SIZE
        tcp = struct.pack(">HHIIBBHHH", 80, port, 1 + at & 0xFFFFFFFF, 1, 5 << 4, ACK, 1_000, 0, 0)
        frame = _HEAD[:16] + struct.pack(">H", 40 + SIZE) + _HEAD[18:] + tcp + body[:SIZE]
        if n >= CONNECTIONS and rand.random() < disorder:
            late.append((n + CONNECTIONS * rand.randint(1, 3), frame))
        else:
            yield frame
        if n // CONNECTIONS % 2:
            tcp = struct.pack(">HHIIBBHHH", port, 80, 1, at & 0xFFFFFFFF, 5 << 4, ACK, 1_000, 0, 0)
            yield _HEAD[:16] + struct.pack(">H", 40) + _HEAD[18:26] + _HEAD[30:] + _HEAD[26:30] + tcp
        while late and late[0][0] <= n:
            yield late.pop(0)[1]
    for _, frame in late:
        yield frame


def from_file(disorder: float) -> dict[str, float]:
    """Time to read a capture, hashes included."""
    with tempfile.TemporaryDirectory(prefix=prefix()) as folder:
        path = Path(folder, "capture.pcap")
        path.write_bytes(pcap(frames(disorder)))
        size = path.stat().st_size
        best = 1e9
        for _ in range(3):
            capture = CaptureFile(str(path))
            begin = time.process_time()
            records = list(Reader(capture, Options(), Limits()).records())
            best = min(best, time.process_time() - begin)
            capture.close()
            assert sum(record["server_bytes"] for record in records) == SEGMENTS * SIZE
    return {"mb_per_s": size / best / 1e6, "us_per_segment": best / SEGMENTS * 1e6}


def key(n: int) -> bytes:
    """A flow's key."""
    return MAPPED + (n >> 8).to_bytes(4, "big") + MAPPED + bytes([10, 0, 0, 1, 4, n & 255, 0, 80]) + bytes(4)


def rss() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def million_flows() -> dict[str, float]:
    """Memory of a flow that is open and has had a request."""
    limits = msgspec.structs.replace(Limits(), flows=MILLION)
    table = FlowTable(limits, 0, Ledger())
    before = rss()
    for n in range(MILLION):
        name = key(n)
        table.accept((name, ACCEPTED, 1, 1, 0, b"", 0), 0.0)
        table.feed((name, ACK, 1, 1, 3, b"GET", 0), 0.0)
    assert len(table) == MILLION
    return {"bytes_per_flow": (rss() - before) / MILLION}


def syn_flood() -> dict[str, float]:
    """Memory for half-open connections in a file, beside one that is busy."""
    table = StreamTable(Limits(), Ledger())
    server = MAPPED + bytes([10, 0, 0, 1])
    busy = Header(MAPPED + b"\x0a\0\0\2", server, b"\1\1", b"\0\x50", 0, 0, False, 1, 1, ACK, 1, memoryview(b"x"))
    passed = 0
    before = rss()
    for n in range(HALF_OPEN):
        source = MAPPED + (n + (11 << 24)).to_bytes(4, "big")
        table.feed(Header(source, server, b"\4\0", b"\0\x50", 0, 0, False, n, 0, SYN, 0, memoryview(b"")), 0.0)
        if n % 100 == 0:
            passed += len(table.feed(busy._replace(seq=1 + n // 100), 0.0))
        table.finished.clear()
    return {"mb": (rss() - before) / 1e6, "open": float(len(table)), "of_busy": passed / (HALF_OPEN / 100)}


def tiny(count: int, flows: int) -> float:
    """Seconds for segments of one byte, every second one, behind holes that never fill."""
    table = FlowTable(Limits(), 0, Ledger())
    for n in range(flows):
        table.accept((key(n), ACCEPTED, 1, 1, 0, b"", 0), 0.0)
    keys = [key(n) for n in range(flows)]
    segments: list[Segment] = [(keys[n % flows], ACK, 3 + n // flows * 2, 1, 1, b"x", 0) for n in range(count)]
    random.Random(1).shuffle(segments)
    begin = time.process_time()
    for segment in segments:
        for _, chunk, _ in table.feed(segment, 0.0):
            assert isinstance(chunk, Gap | bytes)
    return time.process_time() - begin


def tiny_segments() -> dict[str, float]:
    """Whether the time is linear: twice as many over once as many."""
    one, two = tiny(TINY, 1), tiny(2 * TINY, 1)
    many, twice = tiny(TINY, 10_000), tiny(2 * TINY, 10_000)
    return {
        "us_one_flow": two / (2 * TINY) * 1e6,
        "growth_one_flow": two / one,
        "us_10000_flows": twice / (2 * TINY) * 1e6,
        "growth_10000_flows": twice / many,
    }


def policy_cases() -> dict[str, dict[str, Any]]:
    """By the names of `spec.costs`: the last of 20 rules matches, two fields are set."""
    prefixes = [f"/api/v{n}/" for n in range(20, 39)] + ["/api/"]
    by_path = tuple(Rule(match=(Match(path=Text(prefix=prefix)),)) for prefix in prefixes)
    by_regex = tuple(Rule(match=(Match(path=Text(regex=prefix + ".*")),)) for prefix in prefixes)
    two = Rewrite(set_headers={"X-Shadow": "1", "X-Env": "test"})
    return {
        "no_rules": {},
        "20_rules": {"rules": by_path},
        "20_rules_2_headers": {"rules": by_path, "rewrite": two},
        "20_regexes_2_headers": {"rules": by_regex, "rewrite": two},
        "strict_redaction": {"redact": Redact(privacy="strict")},
        "30_percent_by_cookie": {"percent": 30.0, "by": By.KEY, "key": "cookie:session"},
    }


def policy() -> dict[str, float]:
    """Microseconds that deciding on a request takes, the best of three; beside them what `spec.costs` states."""
    found: dict[str, float] = {}
    for name, spec in policy_cases().items():
        found[f"us_{name}"] = min(decided(**spec) for _ in range(3))
        found[f"us_{name}_stated"] = POLICY_US[name]
    return found


def decided(*, rewrite: Rewrite | None = None, **spec: Any) -> float:
    """Microseconds a request, of many different ones on many connections."""
    shadow = Shadow(host="new", port=80, rewrite=rewrite or Rewrite())
    tap = TapSpec(iface="eth0", ports=(80,), shadows=(shadow,), protocol=Protocol.HTTP, **spec)
    decider = Policy(tap, [Ledger()], secret=bytes(32))
    decider.route([Open(n, True, key(n)) for n in range(CONNECTIONS)], 0.0)
    sends: list[list[Command]] = []
    for n in range(REQUESTS):
        head = (
            f"GET /api/items/{n}?page={n % 7}&sort=name HTTP/1.1\r\nHost: shop.example.com\r\n"
            "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\n"
            "Accept: text/html,application/xhtml+xml\r\n"
            f"Accept-Encoding: gzip, deflate\r\nCookie: theme=dark; session={n * 7919 % 10_000}\r\n\r\n"
        ).encode()
        sends.append([Send(n % CONNECTIONS, memoryview(head), len(head), START | END)])
    begin = time.process_time()
    for commands in sends:
        decider.route(commands, 1.0)
    return (time.process_time() - begin) / REQUESTS * 1e6


def comparison() -> dict[str, float]:
    """Microseconds that comparing an exchange takes: reading both responses, pairing, counting; of bodies of 2 KB
    of JSON when they are equal, when two fields differ always, and when only status and times count.
    """
    found = {}
    for name, level, differing in (
        ("us_status", Level.STATUS, False),
        ("us_headers", Level.HEADERS, False),
        ("us_body_equal", Level.BODY, False),
        ("us_body_differing", Level.BODY, True),
    ):
        found[name] = min(compared(level, differing=differing) for _ in range(3))
    return found


def compared(level: Level, *, differing: bool) -> float:
    """Microseconds an exchange, of kept connections, each response in one piece."""
    spec = Compare(level=level, max_exchanges=1e9, max_bodies=1e9)
    comparison = Comparison(spec, [("new", "")], Plain())
    talks = [comparison.opened(n, False) for n in range(CONNECTIONS)]
    items = [{"id": n, "name": f"item number {n}", "price": n * 1.25, "tags": ["a", "b"]} for n in range(28)]
    responses = []
    for n in range(64):
        document: dict[str, Any] = {"items": items}
        if differing:
            document |= {"time": f"2026-11-24T10:00:{n:02}Z", "request": f"{n * 7919:016x}"}
        body = json.dumps(document).encode()
        assert 1900 < len(body) < 2400
        date = f"Tue, 24 Nov 2026 10:00:{n % 2 if differing else 0:02} GMT"
        responses.append(
            f"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: {date}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: keep-alive\r\nCache-Control: no-store\r\n"
            f"X-Request-Id: {n if differing else 0}\r\n\r\n".encode()
            + body
        )
    heads = [
        f"GET /api/items/{n % 500} HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: Mozilla/5.0\r\n\r\n".encode()
        for n in range(REQUESTS // 5)
    ]
    begin = time.process_time()
    for n, head in enumerate(heads):
        flow = n % CONNECTIONS
        talk = talks[flow]
        at = n * 100_000
        probed = comparison.request(flow, n, head, 0, n / 10_000)
        talk.request_ended(n, at)
        for side in (0, PROBE) if probed else (0,):
            talk.asked(side, n, 0)
            talk.sent(side, n, at, 50_000)
        talk.decided(n)
        talk.production_data(memoryview(responses[n % 64]), at + 1_000_000)
        for side in (0, PROBE) if probed else (0,):
            talk.shadow_data(side, memoryview(responses[(n + 17) % 64]), at + 1_100_000)
    took = (time.process_time() - begin) / len(heads) * 1e6
    assert comparison.snapshot()["shadows"]["new"]["endpoints"]["GET /api/items/{id}"]["pairs"] == len(heads)
    return took


def measure() -> dict[str, Any]:
    """All figures."""
    found: dict[str, Any] = {}
    for name in (
        "million_flows",
        "syn_flood",
        "tiny_segments",
        "policy",
        "comparison",
        *(f"from_file {share}" for share in DISORDER),
    ):
        print(f"bench: {name.replace('_', ' ')}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "lab.bench_core", *name.split()], capture_output=True, text=True, check=True
        )
        found[name] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*map(float, sys.argv[2:]))))
