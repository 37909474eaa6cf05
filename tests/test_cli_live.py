# SPDX-License-Identifier: Apache-2.0
"""What a running tap shows: a table redrawn on a terminal, lines elsewhere, and no number that is not the ledger's."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab import HashSink, Host, Lab, LabError, load, until
from lab.exchanges import Feed
from lab.snapshot import tree
from lab.tap import COMMAND
from ledgers import rows, snapshot
from tapmirror.cli.briefs import brief_lines
from tapmirror.cli.live import LineView, Rates, heading
from tapmirror.cli.redrawn import LiveView
from tapmirror.spawn import how_ended
from tapmirror.spec import Limits, TapSpec, parse_shadow

SHADOW = "10.77.2.2:80"
RUN = ("run", "--iface=eth0", "--port=80", f"--shadow={SHADOW}")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


# --- the views, with a ledger


def spec(**change: Any) -> TapSpec:
    shadow = parse_shadow(change.pop("shadow", "staging:8080"))
    return TapSpec(**{"iface": "eth0", "ports": (80,), "shadows": (shadow,), **change})


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, "eth0 port 80 -> staging:8080, 100 % of connections"),
        ({"ports": (80, 443)}, "eth0 port 80,443 -> staging:8080, 100 % of connections"),
        ({"shadow": "[2001:db8::7]:80"}, "eth0 port 80 -> [2001:db8::7]:80, 100 % of connections"),
        ({"percent": 0.0}, "eth0 port 80 -> staging:8080, 0 % of connections"),
        ({"percent": 12.5}, "eth0 port 80 -> staging:8080, 12.5 % of connections"),
        ({"percent": 0.0001}, "eth0 port 80 -> staging:8080, 0.0001 % of connections"),
        ({"percent": 99.9999}, "eth0 port 80 -> staging:8080, 99.9999 % of connections"),
    ],
)
def test_the_heading_says_what_goes_where(change: dict[str, Any], wanted: str) -> None:
    assert heading(spec(**change)) == wanted


@pytest.mark.parametrize("protocol", ["http", "raw"])
def test_rates_are_of_what_came_since_the_last_look(protocol: str) -> None:
    rates = Rates()
    start = time.monotonic()
    assert rates.of(snapshot(protocol=protocol)) == (0, 0, 0, 0)
    begun = time.monotonic()
    until(lambda: time.monotonic() > begun + 0.1, "a tenth of a second")
    shortest = time.monotonic() - begun
    later = snapshot(scale=3, cpu=0.05, protocol=protocol)
    waited = [{"delay_records": 1000, "delay_us": 0}, {"delay_records": 20, "delay_us": 50_000}]
    units, size, cpu, delay = rates.of({**later, "workers": waited})
    longest = time.monotonic() - start
    new = 2 * (2400 if protocol == "http" else 400)
    assert new / longest <= units <= new / shortest
    assert 2800 / longest <= size <= 2800 / shortest
    assert 0.05 / longest <= cpu <= 0.05 / shortest
    assert delay == 0.0025


def test_a_rate_is_never_negative_when_the_unit_changes() -> None:
    rates = Rates()
    rates.of(snapshot(scale=10, protocol="raw"))
    units, size, *_ = rates.of({**snapshot(scale=10), "requests": snapshot()["requests"]})
    assert (units, size) == (0, 0) or (units > 0 and size >= 0)


def test_what_is_compared_has_a_line_in_both_views(capsys: pytest.CaptureFixture[str]) -> None:
    found = {**snapshot(), "compare": {"shadows": Feed("broken").run(1500).comparison.brief(), "capture": {}}}
    (line,) = brief_lines(found)
    for view in (LineView([spec()]), LiveView([spec()])):
        with view:
            view.show([found])
        assert " ".join(line.split()) in " ".join(capsys.readouterr().err.split())


def test_of_two_shadows_the_one_that_is_down_is_named_until_it_gets_something(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def now(sent: int, failed: int) -> dict[str, Any]:
        found = snapshot()
        (one,) = found["shadows"].values()
        dead = copy.deepcopy(one) | {"events": {"shadow_connects": 9, "connect_ECONNREFUSED": failed}, "answers": {}}
        dead["bytes"]["mirrored"] = sent
        return {**found, "shadows": {"v2": one, "v3": dead}}

    down = "UNWELL: it cannot be connected to"
    steps = ((0, 0, False), (0, 2, True), (0, 2, True), (5, 3, False), (5, 4, True))
    with LineView([spec()]) as lines:
        for sent, failed, shown in steps:
            capsys.readouterr()
            lines.show([now(sent, failed)])
            assert (down in capsys.readouterr().err) == shown
    for until_then in range(1, len(steps) + 1):
        with LiveView([spec()]) as table:  # what is not a terminal gets its last state
            for sent, failed, _ in steps[:until_then]:
                table.show([now(sent, failed)])
        assert (f"shadow v3: {down}" in capsys.readouterr().err) == steps[until_then - 1][2]
    with LineView([spec()]) as lines:
        lines.show([now(0, 1)])
    line = capsys.readouterr().err
    assert "shadow v2: 2,400 requests mirrored, 100 dropped (shadow_down), 100 dropped (ring_full), 2xx 2,300; " in line
    assert f"shadow v3: {down}, 2,400 requests mirrored, 100 dropped (shadow_down)" in line


def test_a_shadow_that_breaks_all_off_is_down_though_bytes_are_sent(capsys: pytest.CaptureFixture[str]) -> None:
    def now(sent: int, silent: int, responses: int) -> dict[str, Any]:
        found = snapshot()
        (one,) = found["shadows"].values()
        one |= {"events": {"connect_silent": silent}, "answers": {"2xx": responses, "unanswered": silent}}
        one["bytes"]["mirrored"] = sent
        return found

    down = "UNWELL: it breaks all connections off without a byte"
    steps = ((1, 0, 1, False), (2, 1, 1, True), (3, 1, 1, True), (4, 2, 1, True), (5, 2, 2, False), (6, 2, 2, False))
    with LineView([spec()]) as lines:
        for sent, silent, responses, shown in steps:
            capsys.readouterr()
            lines.show([now(sent, silent, responses)])
            assert (down in capsys.readouterr().err) == shown


def test_a_line_has_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with LineView([spec()]) as view:
        view.show([snapshot()])
    output, errors = capsys.readouterr()
    first, line = errors.splitlines()
    assert (output, first) == ("", f"tapmirror: {heading(spec())}")
    assert re.match(r"\d\d:\d\d:\d\d  0/s 0\.0 MB/s  ", line)
    for words in (
        "requests: 2,400 mirrored, 200 dropped (shadow_down, ring_full) (not counted: those in 200 lost segments), ",
        "), 100 waiting  ",
        "segments: 400 passed, 200 dropped",
        "flows 12,345",
        "2xx 2,300",
    ):
        assert words in line


def test_why_a_tap_does_not_mirror_now_is_in_both_views(capsys: pytest.CaptureFixture[str]) -> None:
    for view in (LineView([spec()]), LiveView([spec()])):
        for reason in ("eth0 is down", ""):
            with view:
                view.show([{**snapshot(), "state": "waiting" if reason else "running", "state_reason": reason}])
            errors = capsys.readouterr().err
            assert ("WAITING: eth0 is down" in errors) == bool(reason)
            assert "RUNNING" not in errors


def test_of_raw_connections_a_line_has_the_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    with LineView([spec()]) as view:
        view.show([snapshot(protocol="raw")])
    line = capsys.readouterr().err.splitlines()[1]
    assert "  bytes: 1,400 mirrored, 200 dropped (shadow_down, ring_full), 100 waiting  segments: " in line


def test_both_views_say_what_a_second_signal_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    several = [spec(), spec(limits=Limits(drain_time=7.5))]
    for view in (LineView(several), LiveView(several)):
        with view:
            view.show([snapshot(), snapshot()])
            view.stopping()
        errors = " ".join(capsys.readouterr().err.split())
        assert errors.endswith("is sent, within 7.5 s (Ctrl-C now ends it at once, without a ledger)")


# --- on a real terminal


class Terminal:
    """The command on a terminal of its own, as from a shell: Ctrl-C is a key."""

    def __init__(self, node: Host, *options: str, size: tuple[int, int] = (30, 100), term: str = "xterm") -> None:
        self._node = node
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self._bytes = b""
        self.shown = ""
        script = 'exec setsid --ctty "$@" <>"$0" >&0 2>&0'
        try:
            self.process: subprocess.Popen[bytes] = node.popen(
                ["sh", "-c", script, os.ttyname(theirs), str(COMMAND), *RUN, *options],
                env={"TERM": term},
            )
        finally:
            os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._node.stop(self.process)
        os.close(self._ours)

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def read(self) -> str:
        """All that was shown up to now."""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while select.select([self._ours], [], [], 0)[0] and (data := os.read(self._ours, 1 << 16)):
                self._bytes += data
        self.shown = self._bytes.decode("utf-8", "replace")
        return self.shown

    def wait_for(self, pattern: str) -> str:
        """Wait until it has shown this; all that it has shown."""
        with contextlib.suppress(LabError):
            until(lambda: re.search(pattern, plain(self.read())) is not None, pattern)
        assert re.search(pattern, plain(self.shown)), f"never shown: {pattern!r} in {self.shown[-3000:]!r}"
        return self.shown

    def end(self) -> int:
        """Wait for its end; its exit status."""
        until(lambda: bool(self.read()) and self.process.poll() is not None, "the end")
        self.read()
        return int(self.process.returncode)


def plain(text: str) -> str:
    """Without the terminal's control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.e2e
@pytest.mark.ebpf
def test_the_table_is_redrawn_and_ctrl_c_ends_it(lab: Lab) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Terminal(lab.node) as screen:
        screen.wait_for("tapmirror: loading the program [.]{3}\r\n")
        screen.wait_for("Ctrl-C stops")
        assert load(lab.client, lab.node.addr4, requests=1234, connections=4).answered == 1234
        shadow.wait_for(1234)
        shown = screen.wait_for(r"mirrored +│ +[\d,]+ │ +[\d,]+ │ +1,234 ")
        assert "\x1b[1A" in shown  # up again: redrawn in place
        assert plain(shown).count("port 80 ->") > 1
        screen.press(b"\x03")
        screen.wait_for(r"stopping: what was captured is sent")
        assert screen.end() == 0
        stopping, _, _ = screen.shown.rpartition("stopping: what was captured")[2].partition("Ledger")
        assert stopping.count("\x1b[1A") > 5, "the ledger takes the place of the table"
        after = plain(screen.shown).rpartition("Ledger")[2]
    assert rows(after)["mirrored"][2] == rows(after)["seen"][2] == "1,234"
    assert rows(after)["unaccounted"] == ["0", "0", "0"]
    assert screen.shown.rfind("\x1b[?25h") > screen.shown.rfind("\x1b[?25l")  # the cursor is back
    assert "Traceback" not in screen.shown


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("size", "term"),
    [((30, 100), "dumb"), ((30, 20), "xterm"), ((5, 100), "xterm"), ((1, 1), "xterm"), ((0, 0), "xterm")],
)
def test_every_terminal_will_do(lab: Lab, size: tuple[int, int], term: str) -> None:
    with HashSink(lab.shadow), Terminal(lab.node, "--capture=packet", size=size, term=term) as screen:
        if term == "dumb":  # nothing can be redrawn there: it says that it runs all the same
            screen.wait_for(r"tapmirror: eth0 port 80 -> ")
        else:
            until(lambda: "\x1b[?25l" in screen.read(), "the cursor is hidden: the view has begun")
        screen.press(b"\x03")
        assert screen.end() == 0
    assert "Traceback" not in screen.shown
    assert ("\x1b" in screen.shown) <= (term != "dumb")


@pytest.mark.e2e
@pytest.mark.ebpf
def test_the_terminals_end_ends_the_tap(lab: Lab) -> None:
    with HashSink(lab.shadow):
        with Terminal(lab.node) as screen:
            screen.wait_for("Ctrl-C stops")
        until(lambda: not lab.node.read("packet").splitlines()[1:], "nothing is attached")


@pytest.mark.e2e
@pytest.mark.ebpf
def test_beside_the_table_it_says_that_the_worker_is_gone_and_goes_on(lab: Lab) -> None:
    with HashSink(lab.shadow), Terminal(lab.node) as screen:
        screen.wait_for("Ctrl-C stops")
        first = worker_of(screen.process.pid)
        os.kill(first, signal.SIGKILL)
        screen.wait_for(
            re.escape(f"the worker process ended ({how_ended(-signal.SIGKILL)}); another one starts in 0.1 s")
        )
        until(lambda: first not in tree(screen.process.pid), "its end")
        until(lambda: "tapmirror.worker" in " ".join(tree(screen.process.pid).values()), "the next")
        screen.process.send_signal(signal.SIGINT)
        assert screen.end() == 0
    assert "Traceback" not in screen.shown
    assert screen.shown.rfind("\x1b[?25h") > screen.shown.rfind("\x1b[?25l")


def worker_of(pid: int) -> int:
    """The worker that came of a process."""
    return next(number for number, words in tree(pid).items() if "tapmirror.worker" in words)


@pytest.mark.e2e
@pytest.mark.ebpf
def test_with_json_standard_output_is_json_though_the_terminal_shows_the_table(lab: Lab) -> None:
    with HashSink(lab.shadow):
        ours, theirs = pty.openpty()
        try:
            process: subprocess.Popen[bytes] = lab.node.popen(
                [str(COMMAND), *RUN, "--json", "--duration=1"],
                stdout=subprocess.PIPE,
                stderr=theirs,
                env={"TERM": "xterm"},
            )
            os.close(theirs)
            output, _ = process.communicate(timeout=300)
            shown = os.read(ours, 1 << 16).decode("utf-8", "replace")
        finally:
            os.close(ours)
    assert process.returncode == 0
    assert json.loads(output)["segments"]["unaccounted"] == 0
    assert "Ctrl-C stops" in plain(shown)


# --- elsewhere


@pytest.mark.e2e
@pytest.mark.ebpf
def test_without_a_terminal_there_is_a_line_now_and_then(lab: Lab) -> None:
    began = time.monotonic()
    with HashSink(lab.node), HashSink(lab.shadow) as shadow:
        process: subprocess.Popen[bytes] = lab.node.popen(
            [str(COMMAND), *RUN, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert process.stderr is not None
        first = process.stderr.readline().decode()
        assert first == f"tapmirror: eth0 port 80 -> {SHADOW}, 100 % of connections\n"
        assert load(lab.client, lab.node.addr4, requests=700, connections=4).answered == 700
        shadow.wait_for(700)
        lines = [""]
        while "2xx 700" not in lines[-1]:
            lines.append(process.stderr.readline().decode())
            assert lines[-1], lines
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
        took = time.monotonic() - began
    assert process.returncode == 0
    text = "".join(lines) + errors.decode()
    *lines, last = text.splitlines()
    assert last.startswith("tapmirror: stopping: ")
    assert len(lines) <= took / LineView.interval + 1
    assert "\x1b" not in text
    assert all(re.match(r"\d\d:\d\d:\d\d  [\d,]+/s \d+\.\d MB/s  requests: ", line) for line in lines)
    assert "requests: 700 mirrored, 0 dropped" in lines[-1]
