# SPDX-License-Identifier: Apache-2.0
"""`tapmirror run` as a user meets it: every wrong input is one clear line, every end is clean."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from e2e.driven import driven
from lab import AS_NOBODY, PATIENCE, HashSink, Host, Lab, Snapshot, Tap, identity, load, unchanged, until
from lab.snapshot import tree
from lab.tap import COMMAND
from runner import CliRunner
from tapmirror.cli import account, compared, main, run
from tapmirror.cli.messages import warn
from tapmirror.cli.run import Interrupted, Signals, say_starting, wait, watch
from tapmirror.ledger import Ledger
from tapmirror.spawn import how_ended
from tapmirror.spec import TapSpec, parse_shadow
from tapmirror.supervisor import workers
from tapmirror.supervisor.workers import TapError


class Waiting:
    """A tap with a descriptor, and nothing to do."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def due(self) -> None:
        return None

    def filenos(self) -> list[int]:
        return [self._descriptor]


def test_it_waits_on_descriptors_beyond_1024() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, limits[1]))
    read, write = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 1500) for end in (read, write)]
    try:
        tap: Any = Waiting(high[0])
        os.write(write, b"x")
        assert not wait([tap], high[1], time.monotonic() + 30.0), "the tap has something to do"
        tap = Waiting(high[1])
        assert wait([tap], high[0], time.monotonic() + 30.0), "it is time to stop"
    finally:
        for end in (read, write, *high):
            os.close(end)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


BOUND = PATIENCE
"""Seconds for an end, of which `Limits.drain_time` is a twelfth."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def words_of(base: dict[str, object], change: dict[str, object]) -> list[str]:
    """`run` with these options; a tuple repeats one, True is a flag, None leaves one out."""
    words = ["run"]
    for name, values in {**base, **change}.items():
        for value in values if isinstance(values, tuple) else (values,):
            if value is not None:
                words.append(f"--{name}" if value is True else f"--{name}={value}")
    return words


def ended(code: int, stdout: str, stderr: str, wanted: str) -> None:
    """Assert that a command was refused with one clear line."""
    assert "Traceback" not in stderr
    assert (code, stdout) == (2, ""), stderr
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("tapmirror: error: ")
    assert wanted in lines[-1]
    assert lines[-1].isprintable() and len(lines[-1]) < 500


def called(words: Sequence[str]) -> int:
    """Run the command in this process, which takes a hundredth of the time; its exit status."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        main(words, prog_name="tapmirror")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise AssertionError("click ends by SystemExit")


# --- what cannot be right on any host


NO_HOST: dict[str, object] = {"iface": "lo", "port": 80, "shadow": "192.0.2.1:80"}


@pytest.mark.parametrize(
    ("wanted", "change"),
    [
        ("--iface: ", {"iface": ""}),
        ("--iface: ", {"iface": "a" * 16}),
        ("--iface: ", {"iface": "a/b"}),
        ("--iface: ", {"iface": "a\nb"}),
        ("--iface: ", {"iface": os.fsdecode(b"\xff")}),
        ("--decap: eBPF does not look into tunnels", {"decap": True, "capture": "ebpf"}),
        ("--port: 0 is not a port (1 to 65535)", {"port": 0}),
        ("--port: 65536 is not a port", {"port": 65536}),
        ("--port: -1 is not a port", {"port": -1}),
        ("--port: 99999 is not a port", {"port": (80, 99999)}),
        ("--port", {"port": "x"}),
        ("--port", {"port": ""}),
        ("--port", {"port": "80.0"}),
        ("--port: ", {"port": "9" * 30}),
        ("--addr: 'x' is not an IP address", {"addr": "x"}),
        ("--addr: ", {"addr": ""}),
        ("--addr: ", {"addr": "10.0.0"}),
        ("--addr: ", {"addr": "010.0.0.1"}),
        ("--addr: ", {"addr": "[::1]"}),
        ("--addr: ", {"addr": ("127.0.0.1", "127.0.0.256")}),
        ("--addr: ", {"addr": "127.0.0.0/8"}),
        ("--shadow: 'staging' is not HOST:PORT", {"shadow": "staging"}),
        ("--shadow: ", {"shadow": ""}),
        ("--shadow: ", {"shadow": ":"}),
        ("--shadow: ", {"shadow": ":80"}),
        ("--shadow: '' is not a port", {"shadow": "staging:"}),
        ("--shadow: '0' is not a port", {"shadow": "staging:0"}),
        ("--shadow: '65536' is not a port", {"shadow": "staging:65536"}),
        ("--shadow: 'x' is not a port", {"shadow": "staging:x"}),
        ("--shadow: '-1' is not a port", {"shadow": "staging:-1"}),
        ("--shadow: '²' is not a port", {"shadow": "staging:²"}),
        ("--shadow: ", {"shadow": "staging:" + "9" * 5000}),
        ("goes in brackets, as in [2001:db8::1]:80", {"shadow": "2001:db8::7:80"}),
        ("goes in brackets", {"shadow": "::1:80"}),
        ("'http://staging:8080' is not HOST:PORT", {"shadow": "http://staging:8080"}),
        ("goes in brackets", {"shadow": "[::1:80"}),
        ("goes in brackets", {"shadow": "::1]:80"}),
        ("--shadow: ", {"shadow": "[::1]"}),
        ("--shadow: ", {"shadow": "[::1]80"}),
        ("--shadow: ", {"shadow": "[]:80"}),
        ("'staging' is not an IPv6 address", {"shadow": "[staging]:80"}),
        ("--shadow: 'a b' is not a host name or address", {"shadow": "a b:80"}),
        ("--shadow: 'a\\nb' is not a host name or address", {"shadow": "a\nb:80"}),
        ("--percent", {"percent": "nan"}),
        ("--percent: 101.0 is not between 0 and 100", {"percent": 101}),
        ("--percent: 100.0001 is not between 0 and 100", {"percent": "100.0001"}),
        ("--percent: -1.0 is not between 0 and 100", {"percent": -1}),
        ("--percent", {"percent": "inf"}),
        ("--percent", {"percent": "x"}),
        ("--percent", {"percent": "5%%"}),
        ("--seed: -1 is not between 0 and 4294967295", {"seed": -1}),
        ("--seed: 4294967296 is not between", {"seed": 1 << 32}),
        ("--seed", {"seed": "x"}),
        ("--seed", {"seed": "1.5"}),
        ("--host: ", {"host": ""}),
        ("--host: ", {"host": "a b"}),
        ("--host: ", {"host": "a\r\nX-Evil: 1"}),
        ("--host: ", {"host": "a\n"}),
        ("--host: ", {"host": "a\r"}),
        ("--host: ", {"host": "a\tb"}),
        ("--host: ", {"host": "bücher.example"}),
        ("--duration", {"duration": 0}),
        ("--duration", {"duration": -1}),
        ("--duration", {"duration": "nan"}),
        ("--duration", {"duration": "inf"}),
        ("--duration", {"duration": "x"}),
        ("--protocol", {"protocol": "smtp"}),
        ("--capture", {"capture": "pcap"}),
        ("--pacing", {"pacing": "slow"}),
        ("--workers: 'x' is not a number, nor auto", {"workers": "x"}),
        ("--workers: 0 is not auto nor between 1 and 64", {"workers": 0}),
        ("--workers: must be 1 with decap", {"workers": 2, "decap": True}),
    ],
    ids=lambda value: " ".join(f"{k}={v!s:.20}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_wrong_input_is_refused_before_anything_is_done(
    wanted: str, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    # --iface is one that no host has: what is wrongly accepted does not run
    code = called(words_of({**NO_HOST, "iface": "no-such-iface"}, change))
    ended(code, *capsys.readouterr(), wanted)


def test_a_process_of_its_own_is_refused_likewise() -> None:
    words = words_of(NO_HOST, {"port": 0})
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=300, check=False)
    ended(done.returncode, done.stdout, done.stderr, "--port: 0 is not a port")


def test_without_root_it_says_so() -> None:
    before = AS_NOBODY if os.geteuid() == 0 else []
    done = subprocess.run(
        [*before, COMMAND, *words_of(NO_HOST, {})], capture_output=True, text=True, timeout=300, check=False
    )
    ended(done.returncode, done.stdout, done.stderr, "needs root: run it with sudo")


# --- what is wrong on this host


SHADOW = "10.77.2.2"
NODE: dict[str, object] = {"iface": "eth0", "port": 80, "shadow": f"{SHADOW}:80", "json": True}


def bound_sockets(host: Host) -> list[str]:
    """Packet sockets of a host that are bound to an interface."""
    rows = [line.split() for line in host.read("packet").splitlines()[1:]]
    return [row[8] for row in rows if row[4] != "0"]


class Run:
    """The command in the background, on the node, with pipes."""

    def __init__(self, node: Host, *, before: Sequence[str] = (), cwd: Path | None = None, **change: object) -> None:
        self._node = node
        self._lines: list[str] = []
        self.process: subprocess.Popen[bytes] = node.popen(
            [*before, str(COMMAND), *words_of(NODE, change)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # what `up` has not read is left for `end`
            start_new_session=True,
            cwd=cwd,
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._node.stop(self.process, signal.SIGTERM, 2 * BOUND)

    def up(self) -> list[str]:
        """Wait until it mirrors; the lines that it wrote on standard error up to then."""
        assert self.process.stderr is not None
        while not self._lines or " -> " not in self._lines[-1]:
            line = self.process.stderr.readline().decode()
            assert line, f"it ended: {self._lines}"
            self._lines.append(line.rstrip("\n"))
        return self._lines

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: exit status, standard output, the rest of standard error."""
        output, errors = self.process.communicate(timeout=3 * BOUND)
        return self.process.returncode, output.decode(), errors.decode()

    def stop(self, number: int = signal.SIGINT) -> dict[str, Any]:
        """End it by a signal; the ledger, which is all that there is on standard output."""
        self.process.send_signal(number)
        code, output, errors = self.end()
        assert (code, "Traceback" in errors) == (0, False), errors
        ledger: dict[str, Any] = json.loads(output)
        identity(ledger)
        return ledger


@contextlib.contextmanager
def nothing_left_behind(node: Host) -> Iterator[None]:
    """Assert that what is done leaves the host as it was."""
    before = Snapshot.of(node)
    yield
    unchanged(node, before)


@pytest.mark.apart
@pytest.mark.e2e
@pytest.mark.parametrize(
    ("wanted", "change"),
    [
        ("no interface 'eth7' here (there are: lo, eth0, eth1)", {"iface": "eth7"}),
        ("no interface 'ETH0' here", {"iface": "ETH0"}),
        ("'eth0 ' is not an interface name", {"iface": "eth0 "}),
        ("cannot resolve 'no-such-host.invalid'", {"shadow": "no-such-host.invalid:80"}),
        ("cannot resolve 'a..b'", {"shadow": "a..b:80"}),
        ("cannot resolve", {"shadow": "x" * 300 + ":80"}),
        ("cannot resolve", {"shadow": "[fe80::1%eth7]:80"}),
        ("10.77.9.9 is not an address of this host", {"addr": "10.77.9.9"}),
        ("if that is a mirror port (SPAN): --promisc (in a file: promisc: true)", {"addr": "10.77.9.9"}),
        ("10.77.1.1 is not an address of this host", {"addr": ("10.77.1.2", "10.77.1.1")}),
        ("fd77:9::9 is not an address of this host", {"addr": "fd77:9::9"}),
        ("--shadow: 10.77.1.2 port 80 is this host's own", {"shadow": "10.77.1.2:80"}),
        ("--shadow: 10.77.2.1 port 80 is this host's own", {"shadow": "10.77.2.1:80"}),
        ("--shadow: 10.77.1.2 port 80 is this host's own", {"shadow": "[::ffff:10.77.1.2]:80"}),
        ("--shadow: fd77:1::2 port 80 is this host's own", {"shadow": "[fd77:1::2]:80"}),
        ("port 80 is this host's own", {"shadow": "localhost:80"}),
        ("port 80 is this host's own", {"shadow": "localhost:80", "iface": "lo"}),
        ("port 80 is this host's own", {"shadow": "127.0.0.1:80"}),
        ("port 80 is this host's own", {"shadow": "127.8.8.8:80"}),
        ("port 80 is this host's own", {"shadow": "127.1:80"}),
        ("port 80 is this host's own", {"shadow": "[::1]:80"}),
        ("port 80 is this host's own", {"shadow": "[::ffff:127.0.0.1]:80"}),
        ("port 81 is this host's own", {"shadow": "10.77.1.2:81", "port": (80, 81)}),
        ("10.77.1.2 port 80 is production itself", {"shadow": "10.77.1.2:80", "addr": "10.77.1.2"}),
        ("10.77.1.2 port 80 is production itself", {"shadow": "[::ffff:10.77.1.2]:80", "addr": "10.77.1.2"}),
        ("fd77:1::2 port 80 is production itself", {"shadow": "[fd77:1:0::2]:80", "addr": "fd77:1::2"}),
        ("224.0.0.1 is not the address of one host", {"shadow": "224.0.0.1:81"}),
        ("ff02::1 is not the address of one host", {"shadow": "[ff02::1]:81"}),
        ("255.255.255.255 is not the address of one host", {"shadow": "255.255.255.255:81"}),
        ("10.77.2.255 is not the address of one host", {"shadow": "10.77.2.255:81"}),
        ("0.0.0.0 is not the address of one host", {"shadow": "0.0.0.0:81"}),
        ("is not the address of one host", {"shadow": "0:81"}),
        (":: is not the address of one host", {"shadow": "[::]:81"}),
        ("0.0.0.0 is not the address of one host", {"shadow": "[::ffff:0.0.0.0]:81"}),
        ("at most 16", {"addr": tuple(f"127.0.0.{n}" for n in range(1, 18))}),
    ],
    ids=lambda value: " ".join(f"{k}={v!s:.30}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_this_host_does_not_allow_is_refused(
    lab: Lab, wanted: str, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    if len(change.get("addr", ())) == 17:  # type: ignore[arg-type]
        for n in range(2, 18):
            lab.node.run(["ip", "addr", "add", f"127.0.0.{n}/8", "dev", "lo"])
    with nothing_left_behind(lab.node), lab.node.enter():
        # --duration: what is wrongly accepted ends by itself
        code = called(words_of({**NODE, "duration": 0.2}, change))
    ended(code, *capsys.readouterr(), wanted)


def without(what: str, tmp_path: Path) -> list[str]:
    """What to write before a command so that it finds no headers, no bcc, …; undone with the command."""
    scripts = {
        "headers": "mount -t tmpfs none /usr/src && mount -t tmpfs none /lib/modules",
        "bcc": f"export PYTHONPATH={tmp_path}",
        "user": f"mount --bind {tmp_path}/passwd /etc/passwd && mount --bind {tmp_path}/passwd /etc/nsswitch.conf",
        "descriptors": "ulimit -n 12",
    }
    (tmp_path / "bcc.py").write_text("raise ModuleNotFoundError('No module named bcc')\n")
    (tmp_path / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    nothing_compiled = f"export CACHE_DIRECTORY={tmp_path}/programs"
    return ["unshare", "--mount", "--", "sh", "-c", f'{nothing_compiled} && {scripts[what]} && exec "$@"', "sh"]


@pytest.mark.apart
@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("what", "change", "wanted"),
    [
        ("headers", {"capture": "ebpf"}, "no kernel headers: install linux-headers-amd64"),
        ("bcc", {"capture": "ebpf"}, "the Python module bcc is missing: install python3-bpfcc"),
        ("user", {}, "none of the users tapmirror, nobody exists"),
        ("descriptors", {"capture": "ebpf"}, ""),  # where it runs out of them is not ours to say
    ],
)
def test_what_this_system_lacks_is_told(
    lab: Lab, tmp_path: Path, what: str, change: dict[str, object], wanted: str
) -> None:
    command = [*without(what, tmp_path), str(COMMAND), *words_of({**NODE, "duration": 0.2}, change)]
    with nothing_left_behind(lab.node):
        done = lab.node.run(command, check=False)
        ended(done.returncode, done.stdout, done.stderr, wanted)


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize(("what", "wanted"), [("headers", "no kernel headers"), ("bcc", "module bcc is missing")])
def test_auto_falls_back_with_one_line_and_mirrors(lab: Lab, tmp_path: Path, what: str, wanted: str) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Run(lab.node, before=without(what, tmp_path)) as tap:
        warning, heading = tap.up()[:2]
        assert warning.startswith("tapmirror: ") and wanted in warning
        assert warning.endswith("; capturing through AF_PACKET instead")
        assert " -> " in heading
        assert load(lab.client, lab.node.addr4, requests=50, connections=5).answered == 50
        shadow.wait_for(50)
        ledger = tap.stop()
    assert (ledger["capture"], ledger["requests"]["mirrored"]) == ("packet", 50)


@pytest.mark.e2e
@pytest.mark.ebpf
def test_taps_of_a_file_fall_back_too(lab: Lab, tmp_path: Path) -> None:
    """Rules, a network of clients and two shadows by AF_PACKET: the same as by eBPF."""
    text = f"""
iface: eth0
port: 80
protocol: http
clients: [10.77.1.0/24]
shadows: [{{to: "{lab.shadow.addr4}:80", name: a}}, {{to: "{lab.shadow.addr4}:81", name: b, percent: 0}}]
rules: [{{match: {{path: {{prefix: /1}}}}, mirror: none}}, {{}}]
"""
    with HashSink(lab.node), HashSink(lab.shadow) as shadow:
        tap = Tap(lab.node, spec=text, wrapper=without("bcc", tmp_path))
        with tap:
            assert load(lab.client, lab.node.addr4, requests=50, connections=5).answered == 50
            shadow.wait_for(39)
            ledger = tap.stop()
            said = tap.said()
    assert "module bcc is missing: install python3-bpfcc; capturing through AF_PACKET instead" in said
    assert ledger["capture"] == "packet"
    assert ledger["shadows"]["a"]["requests"] | {"in_flight": 0} == {
        "seen": 50, "mirrored": 39, "sampled_out": 0, "filtered": {"rule": 11}, "dropped": {},
        "in_flight": 0, "unaccounted": 0,
    }  # fmt: skip
    assert ledger["shadows"]["b"]["requests"]["sampled_out"] == 39


# --- how it runs and ends


def nothing_left(host: Host, pids: dict[int, str]) -> None:
    """Wait until these processes are gone and no packet socket is bound."""

    def left() -> list[str]:
        return [*bound_sockets(host), *(words for pid, words in pids.items() if os.path.exists(f"/proc/{pid}/exe"))]

    until(lambda: not left(), f"nothing left, but {left()}", 2 * BOUND)


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("capture", "number"),
    [*(("ebpf", each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), ("packet", signal.SIGINT)],
)
def test_a_signal_drains_and_prints_the_ledger(lab: Lab, tmp_path: Path, capture: str, number: int) -> None:
    file = tmp_path / "tap.yaml"
    shadow_at = f'{{to: "{SHADOW}:80", connect_time: {PATIENCE}}}'
    file.write_text(
        f"iface: eth0\nport: 80\nshadows: [{shadow_at}]\ncapture: {capture}\nlimits: {{drain_time: {PATIENCE}}}\n"
    )
    words: dict[str, Any] = {"iface": None, "port": None, "shadow": None, "file": file}
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow, Run(lab.node, **words) as tap:
        tap.up()
        pids = tree(tap.process.pid)
        with lab.shadow.blocked(80):  # the shadow hears nothing: all of it waits for the one connection
            assert load(lab.client, lab.node.addr4, requests=40, connections=1).answered == 40
            tap.process.send_signal(number)
            until(lambda: not (capture == "ebpf" and bound_sockets(lab.node)), "detached at once")
        code, output, errors = tap.end()
        assert (code, errors.count("Traceback")) == (0, 0)
        ledger = json.loads(output)
        identity(ledger)
        assert ledger["capture"] == capture
        assert ledger["requests"]["mirrored"] == len(shadow.got) == len(production.got) == 40
        assert (ledger["requests"]["dropped"], ledger["bytes"]["dropped"]) == ({}, {})
        nothing_left(lab.node, pids)


@pytest.mark.e2e
@pytest.mark.ebpf
def test_the_end_comes_within_the_bound_though_the_shadow_takes_nothing(lab: Lab) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Run(lab.node, capture="packet") as tap:
        tap.up()
        with lab.shadow.blocked(80):
            assert load(lab.client, lab.node.addr4, requests=40, connections=4).answered == 40
            start = time.monotonic()
            ledger = tap.stop()
            assert time.monotonic() - start < BOUND
        assert ledger["requests"]["mirrored"] == len(shadow.got) == 0
        assert sum(ledger["requests"]["dropped"].values()) == 40
        assert ledger["requests"]["in_flight"] == ledger["bytes"]["in_flight"] == 0


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize("capture", ["ebpf", "packet"])
def test_a_second_ctrl_c_does_not_wait_for_the_drain(lab: Lab, capture: str) -> None:
    with HashSink(lab.node), HashSink(lab.shadow), Run(lab.node, capture=capture) as tap:
        tap.up()
        pids = tree(tap.process.pid)
        with lab.shadow.blocked(80):
            assert load(lab.client, lab.node.addr4, requests=4, connections=4).answered == 4
            tap.process.send_signal(signal.SIGINT)
            caught = 1 << signal.SIGINT - 1
            until(lambda: not caught & signals_caught(tap.process.pid), "the first Ctrl-C has been taken")
            tap.process.send_signal(signal.SIGINT)
            start = time.monotonic()
            code, output, errors = tap.end()
            assert time.monotonic() - start < BOUND  # its worker holds the pipes until it has drained
        assert (code, output, "Traceback" in errors) == (-signal.SIGINT, "", False)
        nothing_left(lab.node, pids)


TERMINALS: Final = [
    (True, True, False, True),
    (True, True, True, True),
    (True, False, False, True),
    (True, False, True, False),
    (False, True, False, False),
]


def signals_caught(pid: int) -> int:
    """The set of signals that a process has handlers for; empty once it is gone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["tapmirror.loader", "tapmirror.worker"])
def test_a_signal_during_the_start_ends_it_cleanly(lab: Lab, tmp_path: Path, moment: str, number: int) -> None:
    """Where the process was up before it was stopped, that was no start: once more."""
    with HashSink(lab.shadow):
        for attempt in range(20):
            code, output, errors = signalled(lab, tmp_path / str(attempt), moment, number)
            if code:
                break
    assert (code, output, errors) == (2, "", "tapmirror: stopped while it was starting: there is no ledger\n")


def signalled(lab: Lab, cache: Path, moment: str, number: int) -> tuple[int, str, str]:
    """How a tap ends that gets a signal while it waits for a child that does not go on."""
    cache.mkdir()
    # Nothing is compiled yet: the loader of a program that is there already is gone before one has looked.
    with Run(lab.node, before=["env", f"CACHE_DIRECTORY={cache}"], capture="ebpf") as tap:
        seen: dict[int, str] = {}

        def begun() -> bool:
            seen.update(tree(tap.process.pid))
            return any(moment in words for words in seen.values())

        until(begun, moment)
        with contextlib.suppress(ProcessLookupError):  # that it does not wait for it, however long it takes
            os.kill(next(pid for pid, words in seen.items() if moment in words), signal.SIGSTOP)
        tap.process.send_signal(number)
        ended = tap.end()
        nothing_left(lab.node, seen)
    return ended


@pytest.mark.parametrize(("error", "output", "as_json", "said"), TERMINALS)
def test_who_looks_on_is_told_that_it_starts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: bool,
    output: bool,
    as_json: bool,
    said: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: error)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: output)
    say_starting(as_json=as_json)
    assert capsys.readouterr().err == "tapmirror: loading the program ...\n" * said


@pytest.mark.e2e
@pytest.mark.ebpf
def test_below_nohup_a_closed_terminal_ends_nothing(lab: Lab) -> None:
    with HashSink(lab.shadow), Run(lab.node, before=["nohup"], capture="packet") as tap:
        tap.up()
        tap.process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            tap.process.wait(1.0)
        assert tap.stop(signal.SIGTERM)["segments"]["seen"] == 0


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize(("capture", "seconds"), [("ebpf", 0.01), ("ebpf", 1.5), ("packet", 1.5)])
def test_duration(lab: Lab, capture: str, seconds: float) -> None:
    began = time.monotonic()
    with HashSink(lab.node), HashSink(lab.shadow), Run(lab.node, capture=capture, duration=seconds) as tap:
        tap.up()
        runs = time.monotonic()
        code, output, errors = tap.end()
        ended = time.monotonic()
    assert (code, "Traceback" in errors) == (0, False)
    assert json.loads(output)["capture"] == capture
    assert ended - began >= seconds and ended - runs < seconds + BOUND
    assert bound_sockets(lab.node) == []


@pytest.mark.e2e
@pytest.mark.ebpf
def test_the_ttl_of_a_tap_ends_it(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "tap.yaml"
    file.write_text("iface: eth0\nport: 80\nshadow: 10.77.2.2:80\ncapture: packet\nttl: 0.3\n")
    with HashSink(lab.node), HashSink(lab.shadow):
        done = lab.node.run([str(COMMAND), "run", "-f", str(file), "--json"])
    assert json.loads(done.stdout)["state"] == "stopped"
    assert bound_sockets(lab.node) == []


@pytest.mark.e2e
@pytest.mark.ebpf
def test_json_is_one_document_and_all_that_is_on_standard_output(lab: Lab) -> None:
    with HashSink(lab.node), Run(lab.node) as tap:  # no shadow: there is a warning too
        assert "cannot be reached yet" in "\n".join(tap.up())
        tap.process.send_signal(signal.SIGINT)
        code, output, _ = tap.end()
    assert code == 0
    ledger = json.loads(output)
    assert output.count("\n") == 1 and output.endswith("}\n")
    assert {"tap", "capture", "segments", "bytes", "requests", "events", "answers", "flows", "worker"} <= set(ledger)


@pytest.mark.e2e
@pytest.mark.ebpf
def test_without_json_the_ledger_is_a_table(lab: Lab) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Run(lab.node, json=None) as tap:
        tap.up()
        assert load(lab.client, lab.node.addr4, requests=1234, connections=2).answered == 1234
        shadow.wait_for(1234)
        tap.process.send_signal(signal.SIGTERM)
        code, output, _ = tap.end()
    assert code == 0
    rows = {cells[0]: cells[1:] for line in output.splitlines() if len(cells := columns(line)) == 4}
    assert rows["seen"][2] == rows["mirrored"][2] == "1,234"
    assert rows["unaccounted"] == rows["in flight"] == ["0", "0", "0"]
    assert output.endswith("\nshadow: 2xx 1,234\n")


def columns(line: str) -> list[str]:
    """The cells of a row of a table."""
    return [cell.strip() for cell in line.strip("│\n").split("│")]


OUTPUTS = {
    "reader is gone": "{command} | true",
    "head -1": "{command} 2>&1 | head -1",
    "closed": "{command} >&-",
    "errors closed": "{command} 2>&-",
    "all closed": "{command} <&- >&- 2>&-",
    "full": "{command} >/dev/full",
    "errors to the full": "{command} 2>/dev/full",
    "reader of errors is gone": "{command} 2>&1 >/dev/null | true",
}


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("name", "as_json"),
    [*((name, True) for name in OUTPUTS), *((name, None) for name in ("head -1", "closed", "all closed", "full"))],
)
def test_an_output_that_takes_nothing_is_no_reason_for_a_traceback(lab: Lab, name: str, as_json: bool | None) -> None:
    words = words_of(NODE, {"duration": 0.3, "json": as_json, "capture": "packet"})  # it starts sooner
    pipeline = OUTPUTS[name].replace("{command}", '"$@"')
    with HashSink(lab.shadow):
        done = lab.node.run(["bash", "-c", pipeline, "bash", str(COMMAND), *words], check=False, timeout=300)
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stdout + done.stderr
    until(lambda: not bound_sockets(lab.node), "detached")
    if name in ("errors closed", "errors to the full"):
        assert done.returncode == 0
        assert json.loads(done.stdout)["requests"]["unaccounted"] == 0
    if name in ("full", "closed", "all closed"):
        assert done.returncode == 1
    if name in ("full", "closed"):
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("tapmirror: error: ")]
        assert line.startswith("tapmirror: error: the ledger could not be printed: ")


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize("capture", ["ebpf", "packet"])
def test_files_in_the_working_directory_are_not_run_as_root(lab: Lab, tmp_path: Path, capture: str) -> None:
    (tmp_path / "tapmirror").mkdir()
    for name in ("bcc.py", "msgspec.py", "json.py", "random.py", "tapmirror/__init__.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path)!r} + '/ran', 'a').write(__file__ + '\\n')\n")
    with HashSink(lab.shadow), Run(lab.node, cwd=tmp_path, capture=capture) as tap:
        until(lambda: bool(bound_sockets(lab.node)) or tap.process.poll() is not None, "the start")
        assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
        tap.up()
        assert tap.stop()["capture"] == capture


@pytest.mark.e2e
@pytest.mark.ebpf
def test_it_starts_in_a_directory_that_is_gone(lab: Lab, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone)]
    with HashSink(lab.shadow), Run(lab.node, before=before, capture="ebpf") as tap:
        tap.up()
        assert tap.stop()["capture"] == "ebpf"


@pytest.mark.e2e
@pytest.mark.ebpf
def test_a_tap_that_breaks_down_does_not_end_the_others(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All final ledgers come all the same, and the exit status tells."""
    monkeypatch.setattr(workers, "FAILURES", 1)
    stop_read, stop_write = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, stop_write)
        stack.callback(os.close, stop_read)
        for port in (80, 81):
            stack.enter_context(HashSink(lab.shadow, port))
        victim, other = (
            stack.enter_context(driven(lab.node, name=name, shadow=f"{lab.shadow.addr4}:{port}"))
            for name, port in (("victim", 80), ("other", 81))
        )
        os.kill(victim.snapshot()["worker"]["pid"], signal.SIGKILL)

        def stop_when_broken() -> None:
            until(lambda: victim.state == "stopped", "its end")
            os.write(stop_write, b"x")

        stopping = threading.Thread(target=stop_when_broken)
        stopping.start()
        ledgers, broken = watch([victim, other], stop_read, math.inf)
        stopping.join()
    assert broken and [ledger["tap"] for ledger in ledgers] == ["victim", "other"]
    assert [ledger["state"] for ledger in ledgers] == ["stopped", "stopped"]
    assert [bool(ledger["state_reason"]) for ledger in ledgers] == [True, False]
    for ledger in ledgers:
        identity(ledger)
    died = f"the worker process ended ({how_ended(-signal.SIGKILL)})"
    error = f"tapmirror: error: victim: {died} 1 times in a row; the tap is detached"
    assert [line for line in capsys.readouterr().err.splitlines() if "error" in line] == [error]


class Orphan:
    """A tap for which the reader of what is shown goes as it is looked at first."""

    spec = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("192.0.2.1:80"),))
    state = "running"

    def __init__(self, reader: int) -> None:
        self.stopped = False
        self._reader = reader

    def service(self, now: float) -> None:
        pass

    def due(self) -> float | None:
        return None

    def filenos(self) -> list[int]:
        return []

    def snapshot(self) -> dict[str, Any]:
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1
        return Ledger().snapshot(segments=0, bytes=0, requests=0) | {
            "tap": "web", "capture": "ebpf", "state": "running", "state_reason": "", "away_s": 0.0, "missing_s": {},
            "shadows": {}, "flows": 0, "worker": {"cpu_s": 0.0, "rss_kb": 0},
        }  # fmt: skip

    def stop(self) -> dict[str, Any]:
        self.stopped = True
        return {"final": True}

    def close(self) -> None:
        pass


@pytest.mark.parametrize("shown_on", [os.openpty, os.pipe], ids=["a terminal", "a pipe"])
@pytest.mark.parametrize("loops", [False, True])
def test_what_was_captured_is_sent_though_nobody_sees_it(
    shown_on: Callable[[], tuple[int, int]], loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal's end is told by a signal (SIGHUP), a pipe's is not.  What is said afterwards ends nothing.

    That what was sent comes back to production, which may be found at the very end, is a failure.
    """
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = shown_on()
    stop_read, stop_write = os.pipe()
    tap: Any = Orphan(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        if stream.isatty():
            os.write(stop_write, b"x")
        tap.loops = loops
        assert watch([tap], stop_read, 60.0) == ([{"final": True}], loops)
        assert tap.stopped
        warn("some more")
    for end in (stop_read, stop_write):
        os.close(end)


class Fake:
    """A tap that can be started, in whose time a signal comes."""

    def __init__(self, name: str, comes: int | None) -> None:
        self.spec = TapSpec(iface="lo", ports=(80,), shadows=(parse_shadow("192.0.2.1:80"),), name=name)
        self.comes = comes
        self.ended: list[bool] = []

    def start(self) -> None:
        if self.comes is not None:
            signal.raise_signal(self.comes)

    def close(self, *, at_once: bool = False) -> None:
        self.ended.append(at_once)


def test_of_several_taps_those_that_have_begun_have_their_ledgers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "Claims", lambda spec: Path("/"))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    stop_read, stop_write = os.pipe()
    try:
        first, second, third = Fake("a", None), Fake("b", signal.SIGTERM), Fake("c", None)
        taps: list[Any] = [first, second, third]
        assert len(run.start(taps, Signals(stop_write), stop_read)) == 2
        assert taps == [first, second]
        assert (first.ended, second.ended, third.ended) == ([], [], [])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(stop_read)
        os.close(stop_write)


def test_a_signal_just_before_the_first_tap_starts_ends_it_as_one_while_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "Claims", lambda spec: pytest.fail("it starts"))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    stop_read, stop_write = os.pipe()
    try:
        tap: Any = Fake("a", None)
        signals = Signals(stop_write)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            run.start([tap], signals, stop_read)
        assert tap.ended == [True]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(stop_read)
        os.close(stop_write)


@pytest.mark.parametrize(
    ("number", "then"),
    [(signal.SIGINT, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_IGN)],
)
@pytest.mark.parametrize("starting", [False, True])
def test_what_the_second_signal_does(number: signal.Signals, then: signal.Handlers, starting: bool) -> None:
    """A closed terminal is told by whoever saw it: by the shell, by sudo, and by the kernel."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    stop_read, stop_write = os.pipe()
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signals = Signals(stop_write)
        if starting:
            with pytest.raises(Interrupted), signals.interrupting():
                os.kill(os.getpid(), number)
        else:
            with signals.interrupting():
                pass
            os.kill(os.getpid(), number)
            assert os.read(stop_read, 2) == b"x"
        assert signal.getsignal(number) is then
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "a Ctrl-C ends it at once"
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(stop_read)
        os.close(stop_write)


class Finalized:
    """A signal comes amid its end, where Python takes no exception."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_lost_ends_what_has_begun() -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    stop_read, stop_write = os.pipe()
    os.set_blocking(stop_read, False)
    try:
        with Signals(stop_write).interrupting():
            Finalized()
        assert os.read(stop_read, 2) == b"x"
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(stop_read)
        os.close(stop_write)


def test_the_report_is_written_though_the_ledger_cannot_be_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(ledger: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    written: list[tuple[object, str]] = []
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which it replaces
    for module, name, instead in (
        (run, "start", lambda *_: []),
        (run, "watch", lambda taps, stop, duration: ([{}], False)),
        (account, "print_ledger", refuse),
        (compared, "all_figures", lambda *_: ["figures"]),
        (compared, "write_report", lambda found, file: written.append((found, file))),
    ):
        monkeypatch.setattr(module, name, instead)
    words = ["run", "--iface=lo", "--port=80", "--shadow=192.0.2.1:80", "--compare=status", "--report=found.html"]
    assert called(words) == 1
    sys.stdout.close()
    assert written == [(["figures"], "found.html")]
    assert "error: the ledger could not be printed: Input/output error" in capsys.readouterr().err


class Broken:
    """A tap whose worker is gone."""

    spec = TapSpec(iface="lo", ports=(80,), shadows=(parse_shadow("10.0.0.9:80"),))

    def snapshot(self) -> dict[str, Any]:
        raise TapError("the worker died")

    def last(self) -> dict[str, Any]:
        return {"tap": "the last"}


def test_what_nobody_reads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    def make(*words: Any) -> None:
        made.append(words)
        raise TapError("enough")

    monkeypatch.setattr(run, "Tap", make)
    CliRunner().invoke(main, ["run", "--iface=lo", "--port=80", "--shadow=10.0.0.9:80"])
    ((_, *voices),) = made
    ledgers: dict[Any, Any] = {}
    tap: Any = Broken()
    for say in (*voices, lambda _: run.look(tap, ledgers, set(), several=False)):
        read, write = os.pipe()
        os.close(read)
        with open(write, "w") as gone, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", gone)
            say("one")
            say("two")
    assert ledgers == {tap: {"tap": "the last"}}
