# SPDX-License-Identifier: Apache-2.0
"""The full-screen view: what it shows of a status, and that the terminal is as before at its end."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lab import PATIENCE
from lab.exchanges import Feed
from runner import CliRunner
from tapmirror.cli import live
from tapmirror.cli.live import Rates
from tapmirror.cli.main import main
from tapmirror.cli.top import page, screen
from test_cli_status import ACCOUNT, DAEMON, LEDGER, TAP

COMMAND = Path(sys.executable).parent / "tapmirror"


def shown(done: dict[str, Any], rates: dict[str, Rates] | None = None, width: int = 160) -> str:
    file = io.StringIO()
    Console(file=file, width=width, height=50).print(screen(done, rates if rates is not None else {}, width))
    return file.getvalue()


def test_a_screen_has_taps_losses_shadows_and_workers() -> None:
    workers = [{"pid": 71, "rss_kb": 20_480}, {"pid": 72, "rss_kb": 10_240}]
    shadows = {"v2": {**LEDGER["shadows"]["v2"], "latency": {"p50_ms": 1.25, "p99_ms": 20.0}}}
    ledger = {**LEDGER, "workers": workers, "shadows": shadows, "share": {"effective": 10.0, "reason": "r"}}
    taps = [
        {**TAP, "ledger": ledger, "state_reason": "why"},
        {**TAP, "name": "two", "state": "failed", "state_reason": "no interface", "ledger": None},
    ]
    text = shown({"daemon": DAEMON, "taps": taps})
    assert "2 taps, 1 running" in text and "KILL" not in text
    for words in ("web running 10 % 0 0.0 12 700 0 0% 40 worker 71 20", "worker 72 10", "two failed 50 %"):
        assert words in " ".join(text.split()), words
    assert "OF TAP STATE AND LOSS, BY REASON two no interface web why ring_full 199" in " ".join(text.split())
    assert "v2 web 700 199 1.2 ms 20.0 ms 2xx 690 5xx 3" in " ".join(text.split())
    dead = {"requests": {**ACCOUNT, "mirrored": 0}, "answers": {}, "reason": "it cannot be connected to"}
    text = shown({"daemon": DAEMON, "taps": [{**TAP, "ledger": {**ledger, "shadows": {**shadows, "v3": dead}}}]})
    assert "v3 web 0 199 it cannot be connected to" in " ".join(text.split())
    of_all = {"share": 0.5, "reason": "all taps: too much"}
    text = shown({"daemon": {**DAEMON, "killed": True, "all_taps": of_all}, "taps": []})
    assert "KILL SWITCH" in text and "50% of all shares: all taps: too much" in text
    compared = {"shadows": Feed("broken").run(1500).comparison.brief(), "capture": {}}
    comparing = {"daemon": DAEMON, "taps": [{**TAP, "ledger": {**ledger, "compare": compared}}]}
    for width in (120, 80, 40):  # the verdict comes last, and is not cut
        text = " ".join(shown(comparing, width=width).split())
        assert "1 tap, 1 running" in text
        assert "web v2: 1,500 compared" in text and " % differ, worst GET /" in text
        assert text.endswith("verdict so far: fail")


def test_on_a_narrow_terminal_a_long_name_gives_way_and_no_figure() -> None:
    workers = [{"pid": 4_194_301, "rss_kb": 20_480}, {"pid": 4_194_302, "rss_kb": 10_240}]
    tap = {**TAP, "name": "web-of-a-very-long-name-indeed", "ledger": {**LEDGER, "workers": workers}}
    text = " ".join(shown({"daemon": DAEMON, "taps": [tap]}, width=80).split())
    assert "TAP STATE SHARE RATE MB/S FLOWS MIRRORED LOST CPU MB" in text
    assert "… running 50 % 0 0.0 12 700 0 0% 40" in text
    assert "web-of" in text and "  worker" in shown({"daemon": DAEMON, "taps": [tap]}, width=80)


def test_on_a_narrower_one_whole_columns_give_way_and_names_stay() -> None:
    large = {**LEDGER["requests"], "mirrored": 1_234_567_890, "dropped": {"shadow_down": 2_345_678}}
    taps = [
        {**TAP, "state": "restarting", "ledger": {**LEDGER, "requests": large, "flows": 12_345}},
        {**TAP, "name": "b"},
    ]
    for width, head in ((60, "TAP STATE SHARE RATE MIRRORED LOST"), (46, "TAP STATE MIRRORED LOST")):
        lines = [" ".join(line.split()) for line in shown({"daemon": DAEMON, "taps": taps}, width=width).splitlines()]
        one, two = lines[lines.index(head) + 1 :][:2]
        assert one.startswith("web restarting") and one.endswith("1,234,567,890 2,345,678")
        assert two.startswith("b running")


def test_on_a_narrow_terminal_reasons_have_the_whole_width() -> None:
    lost = {"shadow_down": 123_456, "midstream": 12}
    tap = {**TAP, "ledger": {**LEDGER, "requests": {**LEDGER["requests"], "dropped": lost}}}
    lines = [line.rstrip() for line in shown({"daemon": DAEMON, "taps": [tap]}, width=80).splitlines()]
    at = lines.index("OF TAP  STATE AND LOSS, BY REASON")
    assert lines[at + 1] == "web     shadow_down 123,456  midstream 12  ring_full 199 segments"
    well = {**TAP, "ledger": {**LEDGER, "segments": {**LEDGER["segments"], "dropped": {}}}}
    assert "BY REASON" not in shown({"daemon": DAEMON, "taps": [well]}, width=80)


@pytest.mark.parametrize(
    ("width", "head"),
    [
        (40, "SHADOW OF TAP TROUBLE, RESPONSES"),
        (60, "SHADOW OF TAP MIRRORED LOST TROUBLE, RESPONSES"),
        (80, "SHADOW OF TAP MIRRORED LOST P50 P99 TROUBLE, RESPONSES"),
    ],
)
def test_on_a_narrow_terminal_what_is_wrong_with_a_shadow_can_be_read(width: int, head: str) -> None:
    shadow = {**LEDGER["shadows"]["v2"], "reason": "it cannot be connected to", "answers": {}}
    tap = {**TAP, "ledger": {**LEDGER, "shadows": {"10.0.0.9:80": shadow}}}
    lines = [" ".join(line.split()) for line in shown({"daemon": DAEMON, "taps": [tap]}, width=width).splitlines()]
    assert head in lines
    words = " ".join(lines[lines.index(head) + 1 :])
    assert "10.0.0.9:80 web" in words and words.endswith("connected to") and "it cannot be" in words


@pytest.mark.parametrize("width", [40, 60])
def test_long_names_leave_room_for_what_is_wrong(width: int) -> None:
    shadow = {**LEDGER["shadows"]["v2"], "reason": "it cannot be connected to", "answers": {}}
    ledger = {**LEDGER, "shadows": {"staging.internal.example.com:8080": shadow}}
    text = shown(
        {"daemon": DAEMON, "taps": [{**TAP, "name": "a-name-of-a-tap-and-long", "ledger": ledger}]}, width=width
    )
    assert re.search(r"staging\S*…  a-name\S*…?  +it cannot be", text), text
    assert text.split()[-2:] == ["connected", "to"]


def test_of_raw_connections_bytes_are_shown() -> None:
    none = {"seen": 0, "mirrored": 0, "sampled_out": 0, "in_flight": 0, "filtered": {}, "dropped": {}}
    stuck = {**LEDGER["bytes"], "mirrored": 4321, "dropped": {"shadow_slow": 1234}}
    passed = {**LEDGER["segments"], "dropped": {}}
    tap = {**TAP, "ledger": {**LEDGER, "segments": passed, "requests": none, "bytes": stuck}}
    lines = [line.rstrip() for line in shown({"daemon": DAEMON, "taps": [tap]}, width=80).splitlines()]
    assert lines[lines.index("OF TAP  STATE AND LOSS, BY REASON") + 1] == "web     shadow_slow 1,234 bytes"
    assert any(" 4,321 1,234 " in " ".join(line.split()) for line in lines)


def test_rates_are_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[str, Rates] = {}
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    shown({"daemon": DAEMON, "taps": [TAP]}, rates)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: 1004.0))
    more = {**LEDGER, "requests": {**LEDGER["requests"], "mirrored": 100_700}}
    text = " ".join(shown({"daemon": DAEMON, "taps": [{**TAP, "ledger": more}]}, rates).split())
    assert "web running 50 % 25,000 " in text


def test_without_a_terminal_it_is_refused() -> None:
    done = CliRunner().invoke(main, ["top"])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "status --json" in done.output


def test_a_terminal_that_cannot_be_written_anywhere_is_refused() -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [COMMAND, "top"], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TERM": "dumb"}
    )
    assert done.returncode == 2 and b"status --watch" in done.stderr
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("end", "status"),
    [("q", 0), ("Q", 0), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)],
)
def test_however_it_ends_the_terminal_is_as_before(tmp_path: Path, end: str | int, status: int) -> None:
    with started(tmp_path) as (process, ours, theirs, before):
        if isinstance(end, str):
            os.write(ours, end.encode())
        else:
            process.send_signal(end)
        assert process.wait(PATIENCE) == status
        assert termios.tcgetattr(theirs) == before


def test_where_the_terminal_is_gone_it_ends_in_a_line(tmp_path: Path) -> None:
    with open(tmp_path / "said", "wb") as said, started(tmp_path, said.fileno()) as (process, ours, _, _):
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, ours)  # closes that end of it
        os.close(nothing)
        assert process.wait(PATIENCE) == 2
    assert (
        tmp_path / "said"
    ).read_text() == "tapmirror: error: what is printed cannot be written: Input/output error\n"


@contextmanager
def started(tmp_path: Path, stderr: int | None = None) -> Iterator[tuple[subprocess.Popen[bytes], int, int, list[Any]]]:
    """The view of a tap on a terminal, shown already: the process, both ends of that, and how it was before."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as sock, sock.makefile("rb") as lines:
            for line in lines:
                response = {"v": 1, "id": json.loads(line)["id"], "ok": {"daemon": DAEMON, "taps": [TAP]}}
                sock.sendall(json.dumps(response).encode() + b"\n")

    thread = threading.Thread(target=serve)
    thread.start()
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [COMMAND, "top", f"--socket={tmp_path / 's'}"],
        stdin=theirs,
        stdout=theirs,
        stderr=stderr,
        env={**os.environ, "TERM": "xterm"},
    )
    try:
        data = b""
        end = time.monotonic() + 60
        while b"web" not in data and time.monotonic() < end:
            if select.select([ours], [], [], 0.1)[0]:
                data += os.read(ours, 65_536)
        assert b"web" in data
        yield process, ours, theirs, before
    finally:
        process.kill()
        process.wait()
        thread.join()
        os.close(ours)
        os.close(theirs)


def test_what_is_longer_than_the_screen_is_in_pages_and_trouble_comes_first() -> None:
    taps = [{**TAP, "name": f"tap{i:02}"} for i in range(50)]
    taps[40] |= {"state": "failed", "state_reason": "no interface", "ledger": None}
    unwell = {"v2": {**LEDGER["shadows"]["v2"], "reason": "it cannot be connected to"}}
    taps[45] |= {"ledger": {**LEDGER, "shadows": unwell}}
    console = Console(width=80, height=24, file=io.StringIO(), force_terminal=True, color_system=None)
    whole = screen({"daemon": DAEMON, "taps": taps}, {}, 80)

    def from_line(first: int) -> tuple[list[str], int]:
        shown, first = page(whole, console, first)
        return ["".join(part.text for part in line).rstrip() for line in console.render_lines(shown)], first

    lines, first = from_line(-23)
    assert first == 0 and len(lines) == 24
    assert [line.split()[0] for line in lines[2:6]] == ["tap40", "tap45", "tap00", "tap01"]
    assert lines[-1] == "lines 1 to 23 of 154    space: on    b: back    q quits"
    seen = {*lines}
    while (found := from_line(first + 23))[1] != first:
        seen |= {*found[0]}
        first = found[1]
    assert first == 154 - 23 and len(from_line(first)[0]) == 24
    for words in ("tap49  running", "tap40  no interface", "v2  tap45", "it cannot be connected to"):
        assert any(" ".join(words.split()) in " ".join(line.split()) for line in seen), words
    small = screen({"daemon": DAEMON, "taps": taps[:2]}, {}, 80)
    assert page(small, console, 99) == (small, 0)
