# SPDX-License-Identifier: Apache-2.0
"""The account: what is not in a fate nor in flight is unaccounted, and shows."""

from __future__ import annotations

import json

from tapmirror.events import DropReason, FilterReason
from tapmirror.ledger import Ledger, summed, waits, worst_wait


def test_identity_and_its_violation() -> None:
    ledger = Ledger()
    ledger.bytes.seen = 100
    ledger.bytes.mirrored = 40
    ledger.bytes.sampled_out = 10
    ledger.drop(DropReason.GAP, 20, 2)
    ledger.filter(FilterReason.DUPLICATE, 5, 1)
    ledger.segments.seen = 3
    snapshot = ledger.snapshot(bytes=25)
    assert snapshot["bytes"] == {
        "seen": 100,
        "mirrored": 40,
        "sampled_out": 10,
        "filtered": {"duplicate": 5},
        "dropped": {"gap": 20},
        "in_flight": 25,
        "unaccounted": 0,
    }
    assert snapshot["segments"]["unaccounted"] == 0
    assert ledger.snapshot(bytes=24)["bytes"]["unaccounted"] == 1


def test_what_is_saved_is_restored() -> None:
    ledger, other = Ledger(), Ledger()
    ledger.bytes.seen, ledger.requests.mirrored, ledger.segments.sampled_out = 5, 6, 7
    ledger.drop(DropReason.GAP, 20, 2)
    ledger.filter(FilterReason.DUPLICATE, 5, 1)
    ledger.events["flows"], ledger.responses["2xx"] = 8, 9
    ledger.latency.add(0.25)
    for _ in range(2):
        other.restore(json.loads(json.dumps(ledger.saved())))
    assert other.bytes.dropped[DropReason.GAP] == 40 and other.segments.filtered[FilterReason.DUPLICATE] == 2
    assert (other.bytes.seen, other.requests.mirrored, other.segments.sampled_out) == (10, 12, 14)
    assert (other.events["flows"], other.responses["2xx"]) == (16, 18)
    assert other.latency.snapshot() == {"count": 2, "sum_s": 0.5, "buckets": {"0.3": 2}}


def test_snapshots_of_several_workers_are_added() -> None:
    one, two = Ledger(), Ledger()
    one.bytes.seen, two.bytes.seen = 10, 5
    one.drop(DropReason.GAP, 4, 1)
    two.drop(DropReason.GAP, 1, 1)
    two.drop(DropReason.IDLE, 2, 1)
    two.events["only_here"] = 7
    whole = summed([one.snapshot(bytes=6), two.snapshot(bytes=2)])
    assert whole["bytes"]["seen"] == 15
    assert whole["bytes"]["dropped"] == {"gap": 5, "idle": 2}
    assert (whole["bytes"]["in_flight"], whole["bytes"]["unaccounted"]) == (8, 0)
    assert whole["events"]["only_here"] == 7
    facts = {"name": "a", "list": [1], "there": True, "nested": {"deep": {"n": 1.5}}}
    assert summed([facts, facts]) == {**facts, "nested": {"deep": {"n": 3.0}}}
    assert facts["nested"] == {"deep": {"n": 1.5}}


def test_the_wait_is_that_of_the_worst_worker() -> None:
    def of(*workers: tuple[int, int]) -> list[tuple[int, int]]:
        each = [{"delay_records": records, "delay_us": waited} for records, waited in workers]
        return waits({"events": {"delay_records": 9, "delay_us": 9}, "workers": each})

    before = of((1000, 1000), (1000, 1000), (1000, 1000))
    assert worst_wait(before, of((9000, 9000), (1010, 3_001_000), (1000, 1000))) == 0.3
    assert worst_wait(before, before) == 0.0
    assert worst_wait(before, of((500, 2_000_000), (1001, 0), (1000, 1000))) == 0.0, "a successor's books are older"
    assert worst_wait([], of((4, 2_000_000))) == 0.5
    assert waits({"events": {"delay_records": 9, "delay_us": 8}, "workers": [{"pid": 1}]}) == [(9, 8)]
    assert waits({"events": {}}) == [(0, 0)]
