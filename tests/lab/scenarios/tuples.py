# SPDX-License-Identifier: Apache-2.0
"""6: clients whose address and port are used again, where nobody saw the connection before end."""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

from lab.hosts import PATIENCE, until
from lab.network import Lab
from lab.scenarios import Outcome, ended, missing, settled, tap
from lab.sinks import Behaviour, RecordingTcp

PORTS: Final = 50_000
FIRST_PORT: Final = 10_000
TOGETHER: Final = 50
"""Ports that are used one after the other, and then again."""
RATE: Final = 2_000
"""Connections a second: a shadow that never hears of an end has as many open as it may have descriptors."""
LIMITS: Final = {"flow_idle": 3.0, "linger_time": 1.0, "wait_time": 1.0}
WORDS: Final = 25
LINGER: Final = struct.pack("ii", 1, 0)
MEMORY: Final = 256
"""MiB, which is what the worker's other limits add up to."""


def used_again(lab: Lab, capture: str, scale: float) -> Outcome:
    """No byte of one client is in the stream of another."""
    outcome, ports = Outcome(), range(FIRST_PORT, FIRST_PORT + round(PORTS * scale))
    count, size = 0, len(text(0))
    with (
        lab.client.silent("dport 80"),
        lab.node.silent("sport 80"),
        RecordingTcp(lab.node, 80, Behaviour(reset_after=size)) as production,
        RecordingTcp(lab.shadow, 80) as shadow,
        tap(lab, capture, protocol="raw", limits=LIMITS) as running,
    ):
        began = time.monotonic()
        for first in range(0, len(ports), TOGETHER):
            for _ in ("new", "again"):
                for port in ports[first : first + TOGETHER]:
                    say(lab, port, text(count))
                    count += 1
                until(lambda: production.received() == count * size, "production")  # noqa: B023
                time.sleep(max(0.0, began + count / RATE - time.monotonic()))
        seconds = time.monotonic() - began
        settled(shadow.received)
        ledger = ended(running, outcome)
        memory = ledger["worker"]["rss_kb"] / 1024
    said = [bytes(record.content) for record in shadow.records if record.length]
    wrong = [each for each in said if each != (each[:8] * WORDS)[: len(each)]]
    texts = [each[:8] for each in said]
    outcome.figures += [
        f"{len(ports):,} ports, {count:,} connections ({count / seconds:,.0f}/s)",
        f"{len(texts) / count:.1%} at the shadow, segments lost: {missing(ledger, 'segments')}",
        f"the worker has {memory:.0f} MiB",
    ]
    outcome.hold(len(texts) > count / 2, "less than half was mirrored, which shows little")
    outcome.hold(not wrong, f"not what a client said: {wrong[:2]}")
    outcome.hold(len(texts) == len(set(texts)), "one connection's bytes on several")
    outcome.hold(memory <= MEMORY, f"more than {MEMORY} MiB")
    return outcome


def text(number: int) -> bytes:
    """What the client with this number says."""
    return b"%07d " % number * WORDS


def say(lab: Lab, port: int, data: bytes) -> None:
    """One connection from this port of the client, forgotten when all is on its way."""
    with lab.client.enter(), socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        sock.settimeout(PATIENCE)
        sock.bind(("", port))
        sock.connect((lab.node.addr4, 80))
        sock.sendall(data)
