# SPDX-License-Identifier: Apache-2.0
"""The ledgers of a tap's workers joined into one, with figures for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tapmirror.histogram import quantile
from tapmirror.ledger import summed


def together(parts: list[dict[str, Any]], facts: Mapping[str, Any], names: Mapping[str, int]) -> dict[str, Any]:
    """The ledger of all workers together; `parts` are the ledgers of each.

    `facts` about the tap come first.  `names` counts how look-ups of the shadows' names ended.
    """
    ledger = summed(parts)
    ledger["ring"] = {**parts[0]["ring"], "fill": max(part["ring"]["fill"] for part in parts)}
    ledger["worker"]["pid"] = parts[0]["worker"]["pid"]
    for shadow in ledger["shadows"].values():
        shadow["latency"] |= quantiles(shadow["latency"]["buckets"])
    ledger["events"] |= {f"names_{name}": count for name, count in names.items() if count}
    return {**facts, **ledger, "workers": [{**part["worker"], **_waited(part["events"])} for part in parts]}


def _waited(events: Mapping[str, int]) -> dict[str, int]:
    """The delay of one worker: sums over all workers would hide one that is behind."""
    return {name: events.get(name, 0) for name in ("delay_records", "delay_us")}


def quantiles(buckets: Mapping[str, int]) -> dict[str, float]:
    """Quantiles in milliseconds, for people; empty if nothing was timed."""
    found = {name: quantile(buckets, part) for name, part in (("p50_ms", 0.5), ("p99_ms", 0.99))}
    return {name: round(value * 1000, 3) for name, value in found.items() if value is not None}
