# SPDX-License-Identifier: Apache-2.0
"""Status for people and programs, and the log of a tap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import pytest

from runner import CliRunner
from tapmirror.cli import status
from tapmirror.cli.main import main
from tapmirror.control.messages import Logs, Request, Status

ACCOUNT = {"seen": 1000, "mirrored": 700, "sampled_out": 100, "filtered": {"loop": 1}, "dropped": {"ring_full": 199},
           "in_flight": 0}  # fmt: skip
LEDGER: dict[str, Any] = {
    "tap": "web", "capture": "ebpf", "segments": ACCOUNT, "requests": {**ACCOUNT, "dropped": {}, "sampled_out": 0},
    "bytes": {**ACCOUNT}, "flows": 12, "events": {}, "worker": {"pid": 7, "cpu_s": 1.0, "rss_kb": 40_960},
    "shadows": {"v2": {"answers": {"2xx": 690, "5xx": 3}, "requests": ACCOUNT}},
}  # fmt: skip
TAP: dict[str, Any] = {
    "name": "web", "state": "running", "state_reason": "", "percent": 50.0, "by": "connection", "iface": "eth0",
    "ports": [80], "addrs": [], "shadows": ["v2:80"], "origin": "", "since": 0.0, "ends_in": None, "losses": 0,
    "ledger": LEDGER,
}  # fmt: skip
DAEMON = {
    "version": "1", "pid": 9, "uptime_s": 90_061.0, "killed": False, "cpu_s": 1.0, "state_error": "", "reload_error": ""
}  # fmt: skip


class Replies:
    """In the place of a client: each request takes the next reply; after the last one, Ctrl-C."""

    def __init__(self, *replies: dict[str, Any]) -> None:
        self.replies = [*replies]
        self.asked: list[Request] = []

    def __call__(self, socket: Path) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""

    def ask(self, request: Request) -> dict[str, Any]:
        if not self.replies:
            raise KeyboardInterrupt
        self.asked.append(request)
        return self.replies.pop(0)


def run(monkeypatch: pytest.MonkeyPatch, replies: Replies, *words: str) -> str:
    monkeypatch.setattr(status, "Client", replies)
    monkeypatch.setattr(status, "WATCH", 0.0)
    monkeypatch.setattr(status, "FOLLOW", 0.0)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_tap_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = Replies({"daemon": DAEMON, "taps": [TAP]})
    assert run(monkeypatch, replies, "status", "web") == (
        "daemon 1, pid 9, up 1 d 1 h\n"
        "\n"
        "web: running\n"
        "  eth0 port 80 -> v2:80, 50 % of connections\n"
        "  requests: 1,000 seen, 700 mirrored, 1 filtered (loop); not counted: those in 199 lost segments\n"
        "  segments: 1,000 seen, 700 mirrored, 100 sampled out, 1 filtered (loop), 199 dropped (ring_full)\n"
        "  shadow v2: 2xx 690, 5xx 3\n"
        "  12 flows, worker 40 MB, capture ebpf\n"
    )
    assert replies.asked == [Status(name="web")]


def test_what_is_no_http_and_so_not_compared_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    events = {"flows_raw": 1234}
    line = "  1,234 connections that are not HTTP/1: mirrored as bytes, not compared\n"
    for compare, told in (({"shadows": {}, "capture": {}}, True), (None, False)):
        ledger = {**LEDGER, "events": events, **({"compare": compare} if compare else {})}
        text = run(monkeypatch, Replies({"daemon": DAEMON, "taps": [{**TAP, "ledger": ledger}]}), "status")
        assert (line in text) == told


def test_of_raw_connections_bytes_are_told_and_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    none = {**ACCOUNT, "seen": 0, "mirrored": 0, "sampled_out": 0, "filtered": {}, "dropped": {}}
    stuck = {**ACCOUNT, "seen": 9000, "mirrored": 2000, "dropped": {"shadow_slow": 5000}, "in_flight": 1899}
    tap = {**TAP, "ledger": {**LEDGER, "requests": none, "bytes": stuck}}
    text = run(monkeypatch, Replies({"daemon": DAEMON, "taps": [tap]}), "status")
    words = "9,000 seen, 2,000 mirrored, 100 sampled out, 1 filtered (loop), 5,000 dropped (shadow_slow), 1,899 waiting"
    assert f"  bytes: {words}\n" in text
    assert "requests:" not in text


def test_what_is_out_of_the_ordinary_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    share = {"percent": 50.0, "effective": 10.0, "reason": "the ring is 80 % full"}
    tap = {
        **TAP, "state": "waiting", "state_reason": "for eth0", "origin": "x.yaml", "ends_in": 61.0, "losses": 2,
        "uncaptured_s": 2.34, "ledger": {**LEDGER, "share": share},
    }  # fmt: skip
    of_all = {"all_taps": {"share": 0.5, "reason": "all taps: too much"}}
    daemon = {
        **DAEMON,
        **of_all,
        "killed": True,
        "state_error": "the disk is full",
        "reload_error": "x.yaml: bad",
    }
    lines = run(monkeypatch, Replies({"daemon": daemon, "taps": [tap, {**TAP, "ledger": None}]}), "status").splitlines()
    assert lines[1:4] == ["KILL SWITCH: all capture is off", "error: the disk is full", "error: x.yaml: bad"]
    assert lines[4] == "50% of all shares: all taps: too much"
    assert lines[6] == "web: waiting (for eth0)"
    full = run(monkeypatch, Replies({"daemon": {**DAEMON, "log_lines_lost": 1234}, "taps": []}), "status")
    assert full.splitlines()[1] == "error: 1,234 lines of the log could not be written"
    assert lines[8:13] == [
        "  from x.yaml",
        "  ends in 1 min 1 s",
        "  started again 2 times",
        "  nothing was captured for 2.3 s in all, between ends and starts",
        "  at present 10 %: the ring is 80 % full",
    ]
    assert run(monkeypatch, Replies({"daemon": DAEMON, "taps": []}), "status").endswith("\nno taps\n")


def test_a_share_that_was_just_set_is_not_told_as_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is a second old."""
    share = {"percent": 5.0, "effective": 5.0, "reason": ""}
    tap = {**TAP, "percent": 54.0, "ledger": {**LEDGER, "share": share}}
    assert "at present" not in run(monkeypatch, Replies({"daemon": DAEMON, "taps": [tap]}), "status")


def test_of_two_shadows_the_one_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = {"answers": {}, "requests": {**ACCOUNT, "mirrored": 0, "dropped": {"shadow_down": 900}},
            "breaker": "open", "reason": "it cannot be connected to", "effective": 0.0}  # fmt: skip
    share = {"percent": 50.0, "effective": 50.0, "reason": ""}
    tap = {**TAP, "ledger": {**LEDGER, "share": share, "shadows": {**LEDGER["shadows"], "v3": dead}}}
    text = run(monkeypatch, Replies({"daemon": DAEMON, "taps": [tap]}), "status")
    assert "  shadow v2: 700 requests mirrored, 199 dropped (ring_full), 2xx 690, 5xx 3\n" in text
    down = "at present 0 %, UNWELL: it cannot be connected to, 0 requests mirrored, 900 dropped (shadow_down)"
    assert f"  shadow v3: {down}, no responses\n" in text


def test_watch_goes_on_and_knows_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = [{"daemon": DAEMON, "taps": [TAP]}] * 3
    shown = run(monkeypatch, Replies(*replies), "status", "--watch")
    assert shown.count("web: running") == 3
    assert (
        shown.count("  0/s, 0.0 MB/s, 12 flows, worker 0% CPU 40 MB, 0 ms behind, capture ebpf\n") == 2
    )  # from the second look on
    lines = run(monkeypatch, Replies(*replies), "status", "--watch", "--json").splitlines()
    assert [json.loads(line) for line in lines] == replies


def test_logs_follow_from_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"seq": 4, "time": 0.0, "level": "error", "text": "lost"}
    replies = Replies({"lines": [line], "next": 9}, {"lines": [], "next": 9}, {"lines": [line], "next": 12})
    shown = run(monkeypatch, replies, "logs", "web", "--follow")
    assert shown.count(" error: lost\n") == 2
    assert replies.asked == [Logs(name="web"), Logs(name="web", after=9), Logs(name="web", after=9)]
    assert json.loads(run(monkeypatch, Replies({"lines": [line], "next": 9}), "logs", "web", "--json")) == line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (3725, "1 h 2 min"), (86_400, "1 d"), (200_000, "2 d 7 h")],
)
def test_lengths_of_time(seconds: float, words: str) -> None:
    assert status.duration(seconds) == words
