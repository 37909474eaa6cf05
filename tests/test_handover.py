# SPDX-License-Identifier: Apache-2.0
"""A worker's books, and how its successor goes on with them: everything is in an account, and nothing twice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tapmirror.events import DropReason, FilterReason
from tapmirror.handover import saved, take_over
from tapmirror.ledger import Account, Ledger, added, times


def predecessor() -> Ledger:
    """Has read 10 segments of 1,000 bytes; knows the fate of 7 and 650; 5 requests, one of them not sent yet."""
    ledger = Ledger()
    for account, part in ((ledger.segments, 1), (ledger.bytes, 100)):
        account.seen, account.sampled_out = 12 * part, part
        account.mirrored = 4 * part
        account.filtered.update({FilterReason.DUPLICATE: 2 * part, FilterReason.LOOP: part})
        account.dropped.update({DropReason.GAP: part, DropReason.RING_FULL: 3 * part})
    ledger.bytes.mirrored -= 50
    ledger.requests.seen, ledger.requests.mirrored = 5, 4
    ledger.events["flows"], ledger.responses["2xx"] = 3, 4
    return ledger


def left(account: Account) -> int:
    """What is in no column."""
    return account.seen - account.settled()


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_of_one_shadow() -> None:
    past, ledger = through_json(saved(predecessor(), [])), Ledger()
    take_over(past, ledger, [], (10, 1_000))
    assert ledger.segments.dropped[DropReason.WORKER_LOST] == 10 - 7
    assert ledger.bytes.dropped[DropReason.WORKER_LOST] == 1_000 - 650
    assert ledger.requests.dropped[DropReason.WORKER_LOST] == 1
    assert left(ledger.requests) == 0
    assert (ledger.requests.mirrored, ledger.events["flows"], ledger.responses["2xx"]) == (4, 3, 4)


def test_again_and_again_nothing_is_counted_twice() -> None:
    ledger = predecessor()
    for generation in range(1, 4):
        past, ledger = through_json(saved(ledger, [])), Ledger()
        take_over(past, ledger, [], (10 * generation, 1_000 * generation))
        ledger.requests.seen += 1
    assert ledger.segments.dropped[DropReason.WORKER_LOST] == 30 - 7
    assert ledger.bytes.dropped[DropReason.WORKER_LOST] == 3_000 - 650
    assert ledger.requests.dropped[DropReason.WORKER_LOST] == 3


def test_of_several_shadows_each_with_its_copies() -> None:
    """What was decided for all counts for each copy; what for a shadow, once."""
    own, first, second = predecessor(), Ledger(), Ledger()
    own.bytes.mirrored = own.requests.mirrored = 0  # that is the shadows' affair
    first.bytes.mirrored, first.requests.mirrored = 300, 4
    second.bytes.mirrored, second.bytes.dropped[DropReason.SHADOW_DOWN] = 200, 100
    second.requests.mirrored, second.requests.seen = 8, 0
    past = through_json(saved(own, [first, second]))
    ledger, news = Ledger(), [Ledger(), Ledger()]
    take_over(past, ledger, [(news[0], 1), (news[1], 2)], (10, 1_000))
    for new, copies in zip(news, (1, 2), strict=True):
        requests = added(times(ledger.requests, copies), new.requests)
        assert left(requests) == 0
        size = added(times(ledger.bytes, copies), new.bytes)
        kept = {reason: count for reason, count in size.dropped.items() if reason is not DropReason.RING_FULL}
        filtered = size.filtered[FilterReason.DUPLICATE]
        assert size.mirrored + filtered + sum(kept.values()) == 1_000 * copies
    assert news[0].requests.dropped[DropReason.WORKER_LOST] == 1
    assert news[1].requests.dropped[DropReason.WORKER_LOST] == 2


def test_where_there_is_nothing_to_decide_any_more() -> None:
    own, shadow = predecessor(), Ledger()
    own.bytes.mirrored = own.requests.mirrored = 0
    shadow.bytes.mirrored, shadow.requests.mirrored = 350, 3
    ledger = Ledger()
    take_over(through_json(saved(own, [shadow])), ledger, [], (10, 1_000))
    assert (ledger.bytes.mirrored, ledger.requests.mirrored) == (350, 3)
    assert ledger.requests.dropped[DropReason.WORKER_LOST] == 2
    assert ledger.bytes.dropped[DropReason.WORKER_LOST] == 1_000 - 350 - 200 - 100


@pytest.mark.parametrize("received", [(0, 0), (7, 700)])
def test_one_that_died_before_its_first_books_has_lost_all_that_it_read(received: tuple[int, int]) -> None:
    ledger = Ledger()
    take_over(None, ledger, [], received)
    lost = (ledger.segments.dropped[DropReason.WORKER_LOST], ledger.bytes.dropped[DropReason.WORKER_LOST])
    assert lost == received
