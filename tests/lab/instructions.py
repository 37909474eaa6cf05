# SPDX-License-Identifier: Apache-2.0
"""What a worker does for a request, in machine instructions: figures that other load and a slow host do not move.

Segments from memory go through the pipeline to a real shadow on loopback, in a process that valgrind counts.  The
kernel's part is not in it, nor what waiting and cold caches cost, which `lab.bench` measures.  Twice as many requests
over once as many takes the start out.

    sudo scripts/bench --instructions       (takes three minutes)
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from lab.bench_core import key
from lab.exchanges import Plain
from lab.hosts import LabError
from tapmirror.compare.comparison import Comparison
from tapmirror.comparing import ComparingPipeline
from tapmirror.events import ACCEPTED, ACK, FIN, FROM_SERVER, PSH, UNACCEPTED, DropReason, Segment
from tapmirror.ledger import Ledger
from tapmirror.pipeline import Pipeline
from tapmirror.replay import Reactor, Replay
from tapmirror.replay.observer import Clock
from tapmirror.replay.observers import Observers
from tapmirror.spec import Compare, Level, Protocol, Rewrite, TapSpec, parse_shadow

CONNECTIONS: Final = 50
REQUESTS: Final = 2_000
PACE: Final = 20_000
"""Requests a second of the tap's clock, which is not that of the wall."""
ROUNDS: Final = 10
"""Requests on each connection, after which it is a second and a half later."""
PATIENCE: Final = 0.3
"""Seconds for the shadow, after which its responses are read."""
READS: Final = 500
"""Turns of the loop that this takes at most."""
LATE: Final = 50
"""Turns after which is looked for what came late: of few bytes a busy connection does not tell."""
EACH: Final = "GET, a connection each"
CASES: Final[dict[str, dict[str, Any]]] = {
    "GET, raw": {"protocol": Protocol.RAW},
    "GET, HTTP": {},
    "GET, HTTP, Host rewritten": {"rewrite": Rewrite(host="shadow.test")},
    EACH: {},
    "GET, HTTP, status compared": {"compare": Level.STATUS},
    "GET of 2 KB of JSON, bodies compared": {"compare": Level.BODY},
    "the same, of which two members differ": {"compare": Level.BODY, "differs": True},
}
REQUEST: Final = b"GET /api/items HTTP/1.1\r\nHost: 10.0.0.1\r\nUser-Agent: wrk\r\nAccept: */*\r\n\r\n"


def response(level: Level, number: int) -> bytes:
    """One of a shop's, with a body where bodies matter."""
    items = [{"id": n, "name": f"item number {n}", "price": n * 1.25, "tags": ["a", "b"]} for n in range(28)]
    document = {"items": items, "time": f"10:00:{number % 60:02}", "request": f"{number * 7919:016x}"}
    body = json.dumps(document).encode() if level is Level.BODY else b"ok"
    return (
        b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Tue, 24 Nov 2026 10:00:00 GMT\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nConnection: keep-alive\r\n\r\n%b" % (len(body), body)
    )


def serve(listener: socket.socket, message: bytes) -> None:
    """A shadow: the same response to each request, on any number of connections."""

    def talk(sock: socket.socket) -> None:
        with sock, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := sock.recv(1 << 16):
                sock.sendall(message * data.count(b"\r\n\r\n"))

    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=talk, args=(sock,), daemon=True).start()


def worked(name: str, requests: int, port: int) -> None:
    """Pass so many requests on, as a worker does."""
    case = dict(CASES[name])
    level, differs = case.pop("compare", Level.OFF), case.pop("differs", False)
    shadow = parse_shadow(f"127.0.0.1:{port}", rewrite=case.pop("rewrite", Rewrite()))
    compare = Compare(level=level, max_exchanges=1e9, max_bodies=1e9)
    spec = TapSpec(iface="lo", ports=(80,), shadows=(shadow,), compare=compare, **{"protocol": Protocol.HTTP, **case})
    ledger, now = Ledger(), 1000.0
    address = (socket.AF_INET, ("127.0.0.1", port))
    if level is Level.OFF:
        pipeline = Pipeline(spec, ledger)
        observers = None
    else:
        pipeline = ComparingPipeline(spec, ledger, None, Comparison(compare, [("new", "")], Plain()))
        observers = Observers(pipeline.conversation, 0, Clock(), ledger.events)
    replay = Replay([Reactor([address], spec, shadow, ledger, observers=observers)])

    def clock() -> float:
        return now

    def take(segments: list[Segment]) -> None:
        for segment in segments:
            commands = pipeline.feed(segment, now)
            if commands:
                replay.execute(commands, now)

    request, responses = memoryview(REQUEST), [memoryview(response(level, 17 * n if differs else 0)) for n in range(16)]
    nothing = memoryview(b"")
    keys = [key(n) for n in range(CONNECTIONS)]
    said, heard = [1] * CONNECTIONS, [1] * CONNECTIONS
    if name != EACH:
        take([(each, ACCEPTED, 1, 1, 0, nothing, 0) for each in keys])
    for number in range(requests):
        at = number % CONNECTIONS
        time_ns = int(now * 1e9)
        if name == EACH:
            each = key(number)
            asked = (each, ACK | PSH | UNACCEPTED, 1, 1, len(request), request, time_ns)
            take([asked, (each, ACCEPTED, 1, 1, 0, nothing, time_ns)])
            take([(each, FIN | ACK, 1 + len(request), 1 + len(responses[0]), 0, nothing, time_ns)])
        else:
            message = responses[number % len(responses)]
            take([(keys[at], ACK | PSH, said[at], heard[at], len(request), request, time_ns)])
            said[at] += len(request)
            if observers is not None:
                flags = ACK | PSH | FROM_SERVER
                take([(keys[at], flags, heard[at], said[at], len(message), message, time_ns + 50_000)])
            heard[at] += len(message)
        now += 1 / PACE
        if at == CONNECTIONS - 1 and (name == EACH or number // CONNECTIONS % ROUNDS == ROUNDS - 1):
            now += 1.5  # so that all that came is read, as once a second
            time.sleep(PATIENCE)
            replay.expire(now)
            for turn in range(1, READS + 1):
                replay.run_once(0.01, clock)
                if sum(ledger.responses.values()) > number or spec.protocol is Protocol.RAW:
                    break
                if not turn % LATE:
                    now += 1.0
                    replay.expire(now)
    if ledger.bytes.dropped or (name != EACH and ledger.bytes.mirrored != requests * len(REQUEST)):
        raise LabError(f"{name}: not all of it was sent: {ledger.saved()}")
    if spec.protocol is Protocol.HTTP and sum(ledger.responses.values()) != requests:
        raise LabError(f"{name}: not all responses were read: {ledger.responses}")
    replay.close(DropReason.SHUTDOWN)


def counted(name: str, requests: int) -> int:
    """Instructions of a process that does that."""
    differs = CASES[name].get("differs", False)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        message = response(CASES[name].get("compare", Level.OFF), 1 if differs else 0)
        threading.Thread(target=serve, args=(listener, message), daemon=True).start()
        command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", sys.executable]
        command += ["-m", "lab.instructions", name, str(requests), str(listener.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        listener.shutdown(socket.SHUT_RDWR)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or found is None:
        raise LabError(f"{name}: {done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def measure(report: Callable[[str, float], None]) -> None:
    """All cases, in thousands a request."""
    if shutil.which("valgrind") is None:
        raise LabError("valgrind is not there: apt-get install valgrind")
    for name in CASES:
        report(name, (counted(name, 2 * REQUESTS) - counted(name, REQUESTS)) / REQUESTS / 1000)


def main() -> int:
    """Print them."""
    try:
        measure(lambda name, value: print(f"{name:40} {value:8.1f} k instructions", flush=True))
    except LabError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    worked(sys.argv[1], *map(int, sys.argv[2:]))
