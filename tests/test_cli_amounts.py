# SPDX-License-Identifier: Apache-2.0
"""What a line says of a ledger."""

from __future__ import annotations

from ledgers import snapshot
from tapmirror.cli.amounts import answers, counted


def test_what_is_counted_is_requests_but_of_raw_bytes() -> None:
    assert counted(snapshot()) == "requests"
    assert counted(snapshot(protocol="raw")) == "bytes"


def test_of_raw_bytes_answers_are_not_counted() -> None:
    (raw,) = snapshot(protocol="raw")["shadows"].values()
    (http,) = snapshot()["shadows"].values()
    assert answers(raw) == "responses not counted (raw bytes)"
    assert answers({**http, "answers": {}}) == "no responses"
    assert (
        answers({**raw, "bytes": {**raw["bytes"], "mirrored": 0}}) == "no responses"
    )  # of HTTP that none passed on yet
    assert answers(http) == "2xx 2,300"
