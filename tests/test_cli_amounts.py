# SPDX-License-Identifier: Apache-2.0
"""What a line says of a ledger."""

from __future__ import annotations

from ledgers import snapshot
from tapmirror.cli.amounts import counted, not_counted, responses


def test_what_is_counted_is_requests_but_of_raw_bytes() -> None:
    assert counted(snapshot()) == "requests"
    assert counted(snapshot(protocol="raw")) == "bytes"


def test_of_raw_bytes_responses_are_not_counted() -> None:
    (raw,) = snapshot(protocol="raw")["shadows"].values()
    (http,) = snapshot()["shadows"].values()
    assert responses(raw) == "responses not counted (raw bytes)"
    assert responses({**http, "answers": {}}) == "no responses"
    assert (
        responses({**raw, "bytes": {**raw["bytes"], "mirrored": 0}}) == "no responses"
    )  # of HTTP that none passed on yet
    assert responses(http) == "2xx 2,300"


def test_requests_in_lost_segments_are_said_to_be_missing() -> None:
    ledger = snapshot()
    for dropped, words in (
        ({"ring_full": 35_953, "worker_lost": 1}, "not counted: those in 35,954 lost segments"),
        ({"ring_full": 1}, "not counted: those in 1 lost segment"),
        ({}, ""),
    ):
        assert not_counted({**ledger, "segments": {**ledger["segments"], "dropped": dropped}}) == words
    assert not_counted(snapshot(protocol="raw")) == ""  # the account of bytes has them
