# SPDX-License-Identifier: Apache-2.0
"""A ledger with a number of its own in each place, and what is found of it in what was printed."""

from __future__ import annotations

from typing import Any

from tapmirror.events import DropReason, FilterReason
from tapmirror.ledger import Ledger


def snapshot(*, scale: int = 1, cpu: float = 0.0, protocol: str = "http") -> dict[str, Any]:
    """What a worker tells, with a number of its own in each place."""
    ledger = Ledger()
    for account, seen in ((ledger.segments, 1000), (ledger.bytes, 2000), (ledger.requests, 3000)):
        if account is ledger.requests and protocol == "raw":
            continue
        account.seen = seen * scale
        account.mirrored = (seen - 600) * scale
        account.sampled_out = 100 * scale
        account.filtered[FilterReason.LOOP] = 200 * scale
        account.dropped[DropReason.SHADOW_DOWN] = 100 * scale
        account.dropped[DropReason.RING_FULL] = 100 * scale
    if protocol == "http":
        ledger.responses["2xx"] = 2300 * scale
    known = ledger.snapshot(segments=100 * scale, bytes=100 * scale, requests=0 if protocol == "raw" else 100 * scale)
    return {
        "tap": "tap",
        "capture": "ebpf",
        "state": "running",
        "state_reason": "",
        "away_s": 0.0,
        "missing_s": {},
        **known,
        "shadows": {
            "staging:8080": {
                "latency": {"buckets": {}},
                **{name: known[name] for name in ("bytes", "requests", "events", "answers")},
            }
        },
        "flows": 12_345,
        "worker": {"pid": 1, "cpu_s": cpu, "rss_kb": 40_960},
    }


def rows(text: str) -> dict[str, list[str]]:
    """The last table of a text: the cells of its rows by the first."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("│ \r\n").split("│")]
        if len(cells) == 4:
            found[cells[0]] = cells[1:]
    return found


EXPECTED = {
    "seen": ["1,000", "2,000", "3,000"],
    "mirrored": ["400", "1,400", "2,400"],
    "sampled out": ["100", "100", "100"],
    "filtered: loop": ["200", "200", "200"],
    "dropped: ring_full": ["100", "100", "100"],
    "dropped: shadow_down": ["100", "100", "100"],
    "in flight": ["100", "100", "100"],
    "unaccounted": ["0", "0", "0"],
}
