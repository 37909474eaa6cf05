# SPDX-License-Identifier: Apache-2.0
"""The real daemon between real servers under load: what operators do, and what goes wrong around them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from documented import fields, named, rows
from e2e.mirror import PATIENCE
from e2e.served import CALM, SHADOW, WEB, under_load, untorn
from lab import (
    Behaviour,
    HashSink,
    Host,
    Lab,
    LabError,
    Load,
    LoadPlan,
    Nginx,
    RecordingTcp,
    Snapshot,
    Tap,
    identity,
    load,
    open_to_all,
    until,
)
from lab.daemon import Daemon
from lab.scarce import Scarce
from lab.shop import REVIEWS_V2, Shop
from lab.starve import starved
from tapmirror.control.client import Client, ControlError
from tapmirror.control.messages import List, Logs, Pause, Set, Start, Status, Stop
from tapmirror.spec import Budget, Compare, Hook, Level, Limits, Protocol, TapSpec, parse_shadow

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def attached(host: Host) -> list[str]:
    """The interfaces of the packet sockets of a host that are bound to one."""
    rows = [line.split() for line in host.read("packet").splitlines()[1:]]
    return [row[4] for row in rows if row[4] != "0"]


def web(name: str = "web", **more: Any) -> TapSpec:
    base: dict[str, Any] = {"iface": "eth0", "ports": (80,), "shadows": (parse_shadow(SHADOW),), "name": name}
    return TapSpec(**{**base, "budget": CALM, **more})


def text(name: str = "web", shadow: str = SHADOW, **more: object) -> str:
    """A file with this tap."""
    fields = {"name": name, "iface": "eth0", "port": 80, "shadow": shadow, **more}
    return "".join(f"{field}: {value}\n" for field, value in fields.items())


# --- what operators do


def test_a_day_of_an_operator(lab: Lab, tmp_path: Path) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Daemon(lab.node) as daemon:
        assert daemon.run("list").stdout == "no taps\n"
        assert daemon.json("list") == {"taps": []}
        assert daemon.run(*WEB).stdout == "started: web\n"
        assert load(lab.client, lab.node.addr4, requests=100, connections=4).failed == 0
        shadow.wait_for(100)
        assert re.search(r"^web +running +100 % +eth0 +80 +10\.77\.2\.2:80 +command", daemon.run("list").stdout, re.M)
        until(lambda: "shadow 10.77.2.2:80: 2xx 100" in daemon.run("status", "web").stdout, "all answers")
        shown = daemon.run("status", "web").stdout
        assert "web: running" in shown and "requests: 100 seen, 100 mirrored" in shown
        assert "info: capture by ebpf" in daemon.run("logs", "web").stdout
        file = tmp_path / "taps.yaml"
        file.write_text(f"{text(seed=1)}---\n{text('two', port=81)}")
        plan = daemon.run("apply", "-f", str(file), "--dry-run").stdout
        assert plan == "! restart web  (seed)\n+ add     two\n"
        assert [tap["name"] for tap in daemon.json("list")["taps"]] == ["web"]
        assert daemon.run("apply", "-f", str(file)).stdout == plan
        assert {tap["name"]: tap["state"] for tap in daemon.json("list")["taps"]} == {
            "web": "running",
            "two": "running",
        }
        assert load(lab.client, lab.node.addr4, requests=10, connections=1).failed == 0
        shadow.wait_for(110)
        stopped = daemon.run("stop", "web").stdout
        assert "Ledger of web" in stopped and stopped.endswith("stopped: web\n")
        (two,) = daemon.json("stop", "--all")["stopped"]
        assert two["name"] == "two" and two["ledger"]["segments"]["seen"] == 0
        until(lambda: "op=stop all=True" in daemon.said(), "the line of the last command")  # lines are written beside
        said = daemon.said()
    for words in ("op=start taps=web", "op=apply taps=web,two", "op=stop name=web", "op=stop all=True"):
        assert re.search(rf"event=audit msg=done user=root uid=0 pid=\d+ {words}\n", said), (words, said)
    assert "op=list" not in said and "dry_run=True" in said


def test_refusals_are_one_line_and_an_exit_code(lab: Lab, tmp_path: Path) -> None:
    no_tap = "no tap has the name 'nonsense' (there are: web)"
    with HashSink(lab.shadow), Daemon(lab.node) as daemon:
        daemon.run(*WEB)
        bad = tmp_path / "bad.yaml"
        bad.write_text("name: x\niface: eth0\nport: 0\nshadow: a:1\n")
        for code, words, line in [
            (2, ("stop", "nonsense"), no_tap),
            (2, ("pause", "nonsense"), no_tap),
            (2, ("set", "nonsense", "percent=5"), no_tap),
            (2, ("logs", "nonsense"), no_tap),
            (2, ("status", "nonsense"), no_tap),
            (2, ("stop",), "give the NAME of a tap, or --all"),
            (2, ("stop", "web", "--all"), "give the NAME of a tap, or --all"),
            (2, ("set", "web", "percent=101"), "percent: 101.0 is not between 0 and 100"),
            (2, ("set", "web", "percent=nan"), "percent: 'nan' is not a number"),
            (2, ("set", "web", "colour=red"), "'colour=red': only percent=P can be set"),
            (2, WEB, "a tap has the name 'web' already"),
            (2, ("start", "--name=ssh", "--iface=eth0", "--port=22", f"--shadow={SHADOW}"), "port 22 is SSH's"),
            (2, ("start", "--name=b", "--iface=eth0", "--port=80", f"--shadow={SHADOW}"), "every request twice"),
            (1, ("start", "--name=b", "--iface=eth9", "--port=80", "--shadow=10.77.2.2:81"), "no interface 'eth9'"),
            (1, ("start", "--name=b", "--iface=eth0", "--port=80", "--shadow=nowhere.invalid:81"), "cannot resolve"),
            (2, ("start", "--name=b", "--iface=eth0", "--port=80", "--shadow=10.77.1.2:80"), "10.77.1.2 port 80 is"),
            (2, ("start", "--name=b", "--iface=eth0", "--port=80", "--shadow=224.0.0.1:81"), "not the address of one"),
            (2, ("apply", "-f", str(bad)), "bad.yaml:3: port: 0 is not a port"),
        ]:  # fmt: skip
            done = daemon.run(*words, check=code)
            assert line in done.stderr and done.stdout == "", (words, done)
            assert done.stderr.count("\n") == 1 and done.stderr.startswith("tapmirror: error: ")
        assert [tap["name"] for tap in daemon.json("list")["taps"]] == ["web"]
        daemon.stop()
        done = daemon.run("list", check=2)
        assert "no daemon at" in done.stderr and done.stderr.count("\n") == 1


def test_changes_under_load_tear_nothing(lab: Lab, tmp_path: Path) -> None:
    with Daemon(lab.node) as daemon, under_load(lab, bodies=(0, 300, 20_000)) as (production, shadow, running):
        daemon.run(*WEB)
        shadow.wait_for(200, PATIENCE)
        file = tmp_path / "taps.yaml"
        for share in (40, 70):
            file.write_text(text(percent=share))
            assert daemon.run("apply", "-f", str(file)).stdout == "~ change  web  (percent)\n"
            settle(daemon, share)
        daemon.run("set", "web", "percent=100")
        settle(daemon, 100)
        daemon.run("pause", "web")
        until(lambda: state_of(daemon) == "paused", "paused")
        seen = len(production.got)
        production.wait_for(seen + 200, PATIENCE)
        count = len(shadow.got)
        production.wait_for(seen + 400, PATIENCE)
        assert len(shadow.got) <= count + 1
        daemon.run("resume", "web")
        shadow.wait_for(count + 200, PATIENCE)
        file.write_text(text(seed=7, percent=100))
        assert daemon.run("apply", "-f", str(file)).stdout == "! restart web  (seed)\n"
        count = len(shadow.got)
        shadow.wait_for(count + 200, PATIENCE)
        assert running.stop().failed == 0
        (stopped,) = daemon.json("stop", "web")["stopped"]
        ledger = stopped["ledger"]
        identity(ledger)
        assert {unit: ledger[unit]["in_flight"] for unit in ("segments", "bytes", "requests")} == {
            "segments": 0, "bytes": 0, "requests": 0
        }  # fmt: skip
        untorn(production, shadow)


def all_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)


def states_of(daemon: Daemon) -> dict[str, str]:
    return {tap["name"]: tap["state"] for tap in daemon.ask(List())["taps"]}


def state_of(daemon: Daemon, name: str = "web") -> str:
    return states_of(daemon)[name]


def settle(daemon: Daemon, share: float) -> None:
    """Wait until the tap has this share, and seen some traffic with it."""

    def ledger() -> dict[str, Any]:
        (tap,) = daemon.ask(Status(name="web"))["taps"]
        assert tap["percent"] == share
        return dict(tap["ledger"] or {})

    before = ledger().get("segments", {}).get("seen", 0)
    until(lambda: ledger().get("segments", {}).get("seen", 0) > before + 100, f"traffic with {share} %", PATIENCE)


@pytest.mark.parametrize("name", ["apply", "reload"])
def test_a_shadow_that_moves_to_another_port_under_load(lab: Lab, tmp_path: Path, name: str) -> None:
    """A worker may connect to its shadows' ports only, for good: the new one takes another worker."""
    with (
        Daemon(lab.node) as daemon,
        under_load(lab, bodies=(0, 300, 20_000)) as (production, shadow, _running),
        HashSink(lab.shadow, 81) as moved,
    ):
        path = tmp_path / "tap.yaml" if name == "apply" else daemon.taps / "web.yaml"
        words = ("apply", "-f", str(path)) if name == "apply" else ("reload",)
        path.write_text(text())
        daemon.run(*words)
        shadow.wait_for(200, PATIENCE)
        path.write_text(text(shadow="10.77.2.2:81"))
        daemon.run(*words)
        moved.wait_for(200, PATIENCE)
        assert state_of(daemon) == "running"
        daemon.run("stop", "--all")
        untorn(production, shadow)
        untorn(production, moved)
        assert not {got.uri for got in shadow.got if got.whole} & {got.uri for got in moved.got if got.whole}


def test_ttl_ends_a_tap_by_itself(lab: Lab) -> None:
    with HashSink(lab.shadow), Daemon(lab.node) as daemon:
        daemon.run(*WEB, "--ttl=1")
        until(lambda: daemon.ask(List())["taps"] == [], "its end")
        assert attached(lab.node) == []
        until(lambda: "its time is over" in daemon.said(), "the line")


def test_metrics_are_served(lab: Lab) -> None:
    with HashSink(lab.shadow), Daemon(lab.node, more=("--metrics=9464",)) as daemon:
        daemon.run(*WEB)
        until(lambda: daemon.json("status")["taps"][0]["ledger"] is not None, "a ledger")
        with lab.node.enter():
            read = urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=10).read().decode()
        assert re.search(r'^tapmirror_tap_state\{[^}]*state="running"[^}]*\} 1', read, re.M)


def test_whoever_scrapes_changes_nothing_of_the_mirroring(lab: Lab) -> None:
    """Scenario 39: as fast as it goes, beside clients that never read and heads that never end."""
    with Daemon(lab.node, more=("--metrics=9464",)) as daemon, under_load(lab) as (production, shadow, running):
        daemon.run(*WEB)
        until(lambda: len(shadow.got) > 200, "all connections are mirrored")
        before = len(production.got)
        at = ("127.0.0.1", 9464)
        with lab.node.enter():
            held = [socket.create_connection(at) for _ in range(40)]
            for i, sock in enumerate(held):
                sock.sendall(b"GET /metrics HTTP/1.1\r\n" + (b"\r\n" if i % 2 else b"X-Slow: "))
            first = {*series(at)}
            for _ in range(2000):
                last = {*series(at)}
        assert running.stop().failed == 0
        until(lambda: not {got.uri for got in production.got[before:]} - {got.uri for got in shadow.got}, "every one")
        untorn(production, shadow)
        assert len(last) <= len(first) + 100  # no label is of the traffic
        assert daemon.json("list")["taps"][0]["losses"] == 0
        for sock in held:
            sock.close()


def series(at: tuple[str, int]) -> list[str]:
    """The names, with their labels, of a scrape; none: it was turned away."""
    with socket.create_connection(at, timeout=10) as sock, sock.makefile("rb") as file:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        lines = file.read().decode().splitlines()
    return [line.rpartition(" ")[0] for line in lines if line.startswith("tapmirror_")]


# --- the daemon's own end


@pytest.mark.alone
def test_killed_it_leaves_nothing_and_comes_back_as_it_was(lab: Lab) -> None:
    before = Snapshot.of(lab.node)
    with Daemon(lab.node) as daemon, under_load(lab) as (production, shadow, _running):
        daemon.run(*WEB)
        daemon.run("start", "--name=held", "--iface=eth0", "--port=81", f"--shadow={SHADOW}")
        daemon.run("pause", "held")
        (daemon.taps / "file.yaml").write_text(text("file", "10.77.2.2:82"))
        daemon.run("reload")
        shadow.wait_for(100, PATIENCE)
        left = daemon.workers()
        assert len(left) == 3
        for _ in range(2):
            daemon.kill()
            until(lambda: not Snapshot.of(lab.node).difference(before), "nothing is attached", 2.0)
            until(partial(all_gone, left), "the workers' end", PATIENCE)
            count = len(shadow.got)
            daemon.start()
            until(lambda: states_of(daemon) == {"file": "running", "held": "paused", "web": "running"}, "all", PATIENCE)
            shadow.wait_for(count + 200, PATIENCE)
            left = daemon.workers()
        assert len(daemon.ask(Stop(all=True))["stopped"]) == 3
        untorn(production, shadow)
        daemon.kill()
        daemon.start()
        assert [tap["name"] for tap in daemon.ask(List())["taps"]] == []


def test_sigterm_drains_and_keeps_the_taps(lab: Lab) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Daemon(lab.node) as daemon:
        daemon.run(*WEB)
        assert load(lab.client, lab.node.addr4, requests=200, connections=4).failed == 0
        assert daemon.stop() == 0
        shadow.wait_for(200)
        assert attached(lab.node) == []
        assert not daemon.socket.exists()
        assert "Traceback" not in daemon.said()
        daemon.start()
        until(lambda: state_of(daemon) == "running", "it is back")


@pytest.mark.parametrize("shared", ["runtime", "state"])
def test_a_second_daemon_is_refused(lab: Lab, shared: str) -> None:
    with Daemon(lab.node) as daemon, Daemon(lab.node, start=False) as second:
        setattr(second, shared, getattr(daemon, shared))
        done = lab.node.run(second.words(), check=False)
        assert done.returncode == 2
        assert f": a daemon (pid {daemon.pid}) runs with it already\n" in done.stderr
        assert "Traceback" not in done.stderr
        assert daemon.ask(List()) == {"taps": []}


def test_the_same_tap_of_another_daemon_or_run_is_refused(lab: Lab) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Daemon(lab.node) as daemon, Daemon(lab.node) as second:
        daemon.run(*WEB)
        line = f"is mirrored to {SHADOW} already, by the process {daemon.pid}"
        assert line in second.run(*WEB, check=2).stderr
        with pytest.raises(LabError, match=re.escape(line)):
            Tap(lab.node, shadow=SHADOW)
        assert load(lab.client, lab.node.addr4, requests=50, connections=4).failed == 0
        shadow.wait_for(50)
        daemon.run("stop", "web")
        assert len(shadow.got) == 50
        second.run(*WEB)


def test_where_memory_runs_out_a_worker_is_the_victim_and_production_is_not(lab: Lab) -> None:
    """Of all in one control group: production, the daemon, a neighbour who takes more than there is, and the worker."""
    with (
        Nginx(lab.node) as production,
        Nginx(lab.shadow) as shadow,
        Scarce() as group,
        Daemon(lab.node, start=False) as daemon,
    ):
        daemon.start(before=group.before())
        group.take(production.processes())
        daemon.ask(Start(taps=[web()]))
        running = Load(lab.client, LoadPlan(address=lab.node.addr4, requests=10**9, connections=10, rate=500))
        shadow.wait_for(200, PATIENCE)
        (worker,) = daemon.workers()
        others = {*daemon.processes(), *production.processes()} - {worker}
        group.run_out([*others, worker])
        until(lambda: worker not in daemon.processes(), "the worker's end")
        assert others <= {*daemon.processes(), *production.processes()}
        count = shadow.requests()
        shadow.wait_for(count + 200, PATIENCE)
        assert running.stop().failed == 0
        (done,) = daemon.ask(Stop(all=True))["stopped"]
    identity(done["ledger"])
    assert done["ledger"]["worker"]["restarts"] == 1


# --- the control socket


def test_hostile_clients_change_nothing_of_the_mirroring(lab: Lab) -> None:
    with Daemon(lab.node) as daemon, under_load(lab, rate=1000) as (_production, shadow, running):
        daemon.run(*WEB)
        assert stat.S_IMODE(daemon.runtime.stat().st_mode) == 0o750
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600  # there is no group here
        shadow.wait_for(100, PATIENCE)
        resident = rss(daemon.pid)
        with contextlib.ExitStack() as stack:
            half = connect(daemon.socket, stack)
            half.sendall(b'{"v":1,"op":"sta')
            slow = connect(daemon.socket, stack)
            slow.setblocking(False)
            slow.send(b'{"v":1,"op":"status"}\n' * 4_000)  # and reads nothing
            for _ in range(1000):
                connect(daemon.socket, stack)
            huge = connect(daemon.socket, stack)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                send_gigabyte(huge)
            began = time.monotonic()
            assert daemon.ask(List())["taps"][0]["state"] == "running"
            assert time.monotonic() - began < 1.0
            assert rss(daemon.pid) - resident < 64 << 10
        result = running.stop()
        assert result.failed == 0
        (stopped,) = daemon.ask(Stop(name="web"))["stopped"]
        identity(stopped["ledger"])
        requests = stopped["ledger"]["requests"]
        assert requests["dropped"] == {} and requests["mirrored"] == len(shadow.got)


def connect(path: Path, stack: contextlib.ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.connect(str(path))
    return sock


def send_gigabyte(sock: socket.socket) -> None:
    for _ in range(1 << 14):
        sock.sendall(b"x" * (1 << 16))


def rss(pid: int) -> int:
    """Resident memory of a process in KiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def test_something_else_in_the_place_of_the_socket(lab: Lab) -> None:
    with Daemon(lab.node, start=False) as daemon:
        daemon.runtime.mkdir(mode=0o750)
        victim = daemon.top / "victim"
        victim.write_text("precious")
        daemon.socket.symlink_to(victim)
        with pytest.raises(LabError, match=r"(?s)status 2.*is there, and is no socket"):
            daemon.start()
        assert victim.read_text() == "precious" and daemon.socket.is_symlink()
        daemon.socket.unlink()
        daemon.runtime.chmod(0o777)
        with pytest.raises(LabError, match=r"(?s)status 2.*could write into it"):
            daemon.start()


# --- files and disks


def test_a_full_disk_ends_nothing(lab: Lab) -> None:
    fill = "mount -t tmpfs -o size=64k,mode=700 none {0} && dd if=/dev/zero of={0}/filler bs=4k 2>/dev/null; "
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Daemon(lab.node, start=False) as daemon:
        daemon.state.mkdir(mode=0o700)
        script = fill.format(daemon.state) + 'exec "$@"'
        daemon.start(before=("unshare", "--mount", "--", "sh", "-c", script, "sh"))
        warning = (
            "could not be written: No space left on device; until they are written, a restart undoes this change\n"
        )
        assert daemon.run(*WEB).stderr.endswith(warning)
        facts = daemon.json("status")["daemon"]
        assert facts["state_error"].endswith("the taps could not be written: No space left on device")
        assert facts["state_errors"] >= 1
        assert "error: " in daemon.run("status").stdout
        assert load(lab.client, lab.node.addr4, requests=50, connections=4).failed == 0
        shadow.wait_for(50)
        inside = Path(f"/proc/{daemon.pid}/root{daemon.state}")
        (inside / "filler").unlink()
        assert daemon.run("set", "web", "percent=50").stderr == ""
        assert daemon.json("status")["daemon"]["state_error"] == ""
        assert json.loads((inside / "taps.json").read_bytes())["taps"][0]["spec"]["name"] == "web"


def test_a_state_of_another_version_is_set_aside(lab: Lab) -> None:
    with HashSink(lab.shadow), Daemon(lab.node, start=False) as daemon:
        daemon.state.mkdir(mode=0o700)
        (daemon.state / "taps.json").write_text('{"version": 99, "taps": "of another shape"}')
        daemon.start()
        until(lambda: "its version is 99, this is for 1; set aside as taps.json." in daemon.said(), "the line")
        daemon.run(*WEB)
        assert any(path.name.endswith(".unread") for path in daemon.state.iterdir())


BAD: Final = (
    text(seed=5) + "percent: .nan\n",
    text(seed=5) + "seed: 6\n",
    "x0: &x0 [1, 1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 40)),
    "\xff\xfe",
    text(seed=5) + "limits: {queue_bytes: -1}\n",
)
"""Not a number, a key given twice, a bomb of aliases, not UTF-8, a negative bound."""


def told(daemon: Daemon) -> list[str]:
    """What was said of reloads."""
    return [line for line in daemon.said().splitlines() if "event=reload" in line]


def refused_again(daemon: Daemon, before: int) -> bool:
    return daemon.said().count("the taps that ran before go on") > before


def test_reload_takes_good_files_and_leaves_all_as_it_is_for_a_bad_one(lab: Lab) -> None:
    with Daemon(lab.node, start=False) as daemon, under_load(lab) as (production, shadow, _running):
        (daemon.taps / "web.yaml").write_text(text())
        daemon.start()
        shadow.wait_for(100, PATIENCE)
        (worker,) = daemon.workers()
        for bad in BAD:
            refused, lines = daemon.said().count("the taps that ran before go on"), len(told(daemon))
            (daemon.taps / "bad.yaml").write_bytes(bad.encode("latin-1"))
            daemon.send_signal(signal.SIGHUP)
            until(partial(refused_again, daemon, refused), "the refusal", PATIENCE)
            assert len(told(daemon)) == lines + 1  # each has one thing that is wrong, and it is told once
        assert "bad.yaml" in daemon.ask(Status())["daemon"]["reload_error"]
        assert daemon.workers() == [worker]
        with (daemon.taps / "bad.yaml").open("wb") as file:
            file.truncate(100 << 20)
        assert "longer than 256 KiB" in daemon.run("reload", check=2).stderr
        (daemon.taps / "bad.yaml").write_text("iface: eth0\nport: 80\nshdow: a:1\n")
        asked = daemon.run("reload", check=2).stderr.splitlines()
        assert [line.partition("bad.yaml:")[2] for line in asked] == [
            "1: shadows is missing",
            "3: shdow: no such field of a tap (did you mean shadow?)",
        ]
        (daemon.taps / "bad.yaml").unlink()
        (daemon.taps / "web.yaml").write_text(text() + "---\n" + text("two", "10.77.2.2:81"))
        daemon.send_signal(signal.SIGHUP)
        until(lambda: len(daemon.ask(List())["taps"]) == 2, "the second tap", PATIENCE)
        until(lambda: state_of(daemon, "two") == "running", "the second tap", PATIENCE)
        assert worker in daemon.workers()
        assert daemon.ask(Status())["daemon"]["reload_error"] == ""
        untorn(production, shadow)


@pytest.mark.parametrize("by", ["start", "reload"])
def test_a_tap_of_a_file_waits_for_its_interface(lab: Lab, by: str) -> None:
    with HashSink(lab.shadow), Daemon(lab.node, start=False) as daemon:
        late = text("late").replace("eth0", "late0")
        if by == "start":
            (daemon.taps / "late.yaml").write_text(late)
        daemon.start()
        if by == "reload":
            (daemon.taps / "late.yaml").write_text(late)
            assert daemon.run("reload").stderr == "tapmirror: late waits: no interface late0\n"
        until(lambda: state_of(daemon, "late") in ("restarting", "waiting"), "it waits", PATIENCE)
        assert "late0" in daemon.ask(List())["taps"][0]["state_reason"]
        lab.node.run(["ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1"])
        try:
            lab.node.run(["ip", "link", "set", "late0", "up"])
            until(lambda: state_of(daemon, "late") == "running", "it runs", PATIENCE)
        finally:
            daemon.ask(Stop(all=True))
            lab.node.run(["ip", "link", "del", "late0"])


# --- the kill switch


@pytest.mark.alone
@pytest.mark.parametrize("switch", ["file", "command"])
def test_the_kill_switch_works_within_a_second_whatever_hangs(lab: Lab, switch: str) -> None:
    before = Snapshot.of(lab.node)
    with Daemon(lab.node) as daemon, under_load(lab) as (production, shadow, _running):
        soon = Limits(drain_time=0.5)
        daemon.ask(Start(taps=[web("a", limits=soon), web("b", limits=soon, shadows=(parse_shadow("10.77.2.2:81"),))]))
        shadow.wait_for(50, PATIENCE)
        hangs = daemon.workers()[0]
        os.kill(hangs, signal.SIGSTOP)
        try:
            began = time.monotonic()
            stopping = threading.Thread(target=daemon.ask, args=(Stop(all=True),))
            if switch == "file":
                (daemon.runtime / "STOP").touch()
            else:
                stopping.start()
            until(lambda: attached(lab.node) == [], "all capture has ended", 3.0)
            assert time.monotonic() - began < 1.0
            until(lambda: not Snapshot.of(lab.node).difference(before), "nothing is attached", PATIENCE)
            if switch == "file":
                assert "kill switch is on" in daemon.refusal(Start(taps=[web("c", ports=(82,))])).args[0]
                assert "KILL SWITCH" in daemon.run("status").stdout
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hangs, signal.SIGCONT)
        if switch == "file":
            until(lambda: {state_of(daemon, "a"), state_of(daemon, "b")} == {"paused"}, "held", PATIENCE)
            (daemon.runtime / "STOP").unlink()
            count = len(shadow.got)
            shadow.wait_for(count + 100, PATIENCE)
        else:
            stopping.join(PATIENCE)
            assert daemon.ask(List())["taps"] == []
        untorn(production, shadow)


def test_a_worker_that_hangs_holds_up_its_own_tap_alone(lab: Lab) -> None:
    with Daemon(lab.node) as daemon, under_load(lab) as (_production, shadow, _running):
        daemon.ask(Start(taps=[web("hangs", shadows=(parse_shadow("10.77.2.2:81"),))]))
        (hangs,) = daemon.workers()
        os.kill(hangs, signal.SIGSTOP)
        try:
            daemon.run(*WEB)
            count = len(shadow.got)
            shadow.wait_for(count + 200, PATIENCE)
            daemon.ask(Set(name="web", percent=50.0))
            with Client(daemon.socket) as client:
                for _ in range(100):
                    began = time.monotonic()
                    client.ask(Status())
                    assert time.monotonic() - began < 1.0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hangs, signal.SIGCONT)


CHATTY: Final = """
def change(request):
    print("\\x1b[2J\\r" + request.target)
    return request
"""


def test_a_worker_that_prints_for_each_request_is_heard_seldom_and_waits_for_nobody(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook prints what the network sends: long, and with control characters before it."""
    open_to_all(tmp_path)
    (tmp_path / "chatty.py").write_text(CHATTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        Daemon(lab.node) as daemon,
        under_load(lab, paths=("/" + "x" * 8000,), connections=4) as (production, shadow, _running),
    ):
        began = time.monotonic()
        daemon.ask(Start(taps=[web(hook=Hook(call="chatty:change"), protocol=Protocol.HTTP)]))
        shadow.wait_for(500, PATIENCE)
        daemon.send_signal(signal.SIGSTOP)  # nobody reads what it prints
        try:
            count = len(shadow.got)
            shadow.wait_for(count + 500, PATIENCE)
        finally:
            daemon.send_signal(signal.SIGCONT)
        count = len(shadow.got)
        shadow.wait_for(count + 500, PATIENCE)
        (done,) = daemon.ask(Stop(all=True))["stopped"]
        took = time.monotonic() - began
        identity(done["ledger"])
        assert not done["ledger"]["requests"]["dropped"].keys() - {"midstream"}
        untorn(production, shadow)
        said = [line for line in daemon.said().splitlines() if "event=worker_said" in line]
    assert 0 < len(said) <= 10 * (took + 1)
    assert "\\\\x1b[2J\\\\r/xxx" in said[0] and "\x1b" not in "".join(said)
    assert any("lines before it were held back" in line for line in said)
    assert max(map(len, said)) < 700


# --- many


def test_fifty_taps_on_one_interface(lab: Lab) -> None:
    specs = [
        web(f"tap{i:02}", shadows=(parse_shadow(f"10.77.2.2:{8000 + i}"),), capture="packet", percent=100.0 - i)
        for i in range(49)
    ]  # fmt: skip
    with Daemon(lab.node) as daemon, HashSink(lab.node), HashSink(lab.shadow) as shadow:
        daemon.ask(Start(taps=[*specs, web("web")]))
        assert len(attached(lab.node)) >= 50
        assert load(lab.client, lab.node.addr4, requests=200, connections=10, rate=200).failed == 0
        shadow.wait_for(200, PATIENCE)
        assert len(daemon.workers()) == 50
        began = time.monotonic()
        taps = daemon.ask(Status())["taps"]
        assert time.monotonic() - began < 1.0
        assert {tap["state"] for tap in taps} == {"running"}
        files = len(os.listdir(f"/proc/{daemon.pid}/fd"))
        stopped = daemon.ask(Stop(all=True))["stopped"]
        assert attached(lab.node) == [] and len(stopped) == 50
        for each in stopped:
            identity(each["ledger"])
        until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) < files / 4, "descriptors are closed")
        threads = Path(f"/proc/{daemon.pid}/status").read_text()
        assert int(re.search(r"Threads:\s+(\d+)", threads)[1]) < 20  # type: ignore[index]


def test_the_budget_of_all_taps_lowers_their_shares_together_and_gives_them_back(lab: Lab) -> None:
    """Each tap is within its own budget; what they send together is too much."""
    with Daemon(lab.node, start=False) as daemon, HashSink(lab.shadow, port=81) as second:
        settings = daemon.config / "daemon.yaml"
        settings.write_text("budget: {bandwidth: 20000}\n")
        daemon.start()
        with under_load(lab, per_connection=10) as (production, shadow, _running):
            other = (parse_shadow("10.77.2.2:81"),)
            daemon.ask(Start(taps=[web("a"), web("b", shadows=other, percent=50.0)]))

            def shares() -> dict[str, float]:
                taps = daemon.ask(Status())["taps"]
                found = {tap["name"]: (tap["ledger"] or {}).get("share", {}) for tap in taps}
                return {name: each.get("effective", 0.0) / each.get("percent", 1.0) for name, each in found.items()}

            until(lambda: 0 < shares()["a"] == shares()["b"] < 0.6, "less of both", 30.0)
            facts = daemon.ask(Status())["daemon"]["all_taps"]
            assert facts["budget"] == {"bandwidth": 20000.0} and facts["reason"].startswith("all taps: ")
            assert "bytes/s of all taps go out; the budget is 20,000" in daemon.run("status", "b").stdout
            until(lambda: daemon.ask(Status())["daemon"]["all_taps"]["used"]["bandwidth"] < 20000, "less", 30.0)
            settings.write_text("budget: {bandwidth: 1000000000}\n")
            daemon.run("reload")
            until(lambda: shares() == {"a": 1.0, "b": 1.0}, "all of both again", 60.0)
            until(
                lambda: "% of their shares: all taps: " in daemon.said() and 'msg="whole shares"' in daemon.said(),
                "the line",
            )
            for each in daemon.ask(Stop(all=True))["stopped"]:
                identity(each["ledger"])
            untorn(production, shadow)
            untorn(production, second)


def test_a_worker_that_gets_too_little_cpu_gets_less_to_do(lab: Lab) -> None:
    """It would be ever later and its ring full at last: fewer connections, each whole, and the shadow is up to date."""
    with Daemon(lab.node) as daemon, Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:
        daemon.ask(Start(taps=[web(budget=Budget(host_cpu=100.0, host_memory=100.0))]))
        (worker,) = daemon.workers()

        def seen() -> dict[str, Any]:
            (tap,) = daemon.ask(Status())["taps"]
            return dict(tap["ledger"] or {"share": {"reason": ""}})

        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=20, rate=3_000, per_connection=50)
        running = Load(lab.client, plan)
        with starved(worker, 0.02):
            until(lambda: "too little CPU" in seen()["share"]["reason"], "less", 30.0)
        share = seen()["share"]
        assert 0 < share["effective"] < 100
        assert re.fullmatch(r"the workers get too little CPU: they are \d+\.\d\d s behind", share["reason"])
        assert running.stop().failed == 0
        (done,) = daemon.ask(Stop(all=True))["stopped"]
        identity(done["ledger"])
        requests = done["ledger"]["requests"]
        assert done["ledger"]["segments"]["sampled_out"] > 0 and shadow.requests() == requests["mirrored"]
        assert set(requests["dropped"]) <= {"share"}
        assert production.requests() > requests["seen"]


def test_a_shadow_that_is_down_at_the_start_is_told_until_it_is_reached(lab: Lab) -> None:
    """Without any traffic, too: the tap runs, and mirrors as soon as there is somebody."""
    down = "shadow 10.77.2.2:80: it is down, or was at the start (Connection refused)"
    with HashSink(lab.node), Daemon(lab.node) as daemon:
        done = daemon.run(*WEB, "--percent", "100")
        line = "tapmirror: web: the shadow 10.77.2.2 port 80 cannot be reached yet (Connection refused)"
        assert done.stdout == "started: web\n"
        assert done.stderr == f"{line}; mirroring begins when it can\n"
        until(lambda: f"  {down}\n" in daemon.run("list").stdout, "the list", PATIENCE)
        assert "shadow 10.77.2.2:80: UNWELL: it is down, or was" in daemon.run("status").stdout
        daemon.run("pause", "web")
        daemon.run("resume", "web")
        assert "at present" not in daemon.run("list").stdout
        with HashSink(lab.shadow) as shadow:
            assert load(lab.client, lab.node.addr4, requests=10, connections=1).failed == 0
            shadow.wait_for(10)
            until(lambda: "shadow 10.77.2.2:80:" not in daemon.run("list").stdout, "it is well", PATIENCE)
        (stopped,) = daemon.json("stop", "--all")["stopped"]
        assert stopped["ledger"]["requests"]["mirrored"] == 10
        assert daemon.run(*WEB[:1], "--percent=0", *WEB[1:]).stderr.splitlines()[0] == (
            "tapmirror: web: nothing is mirrored: percent is 0"
        )


def test_a_shadow_that_dies_is_left_alone_and_taken_up_again_by_itself(lab: Lab) -> None:
    """The breaker opens, tries in vain, and closes; production notices nothing of it."""
    with Daemon(lab.node) as daemon, under_load(lab, per_connection=10) as (production, shadow, _running):
        daemon.ask(Start(taps=[web(budget=replace(CALM, retry=2.0))]))

        def share() -> tuple[float, str]:
            (tap,) = daemon.ask(Status())["taps"]
            assert tap["state"] == "running"
            found = (tap["ledger"] or {}).get("share", {"effective": 100.0, "reason": ""})
            return found["effective"], found["reason"]

        shadow.wait_for(50, PATIENCE)
        shadow.stop()
        for _ in range(2):  # it is tried again, too soon
            until(
                lambda: share()[0] == 0.0 and "it cannot be connected to; tried again" in share()[1], "open", PATIENCE
            )
            until(lambda: share()[0] > 0.0 and "it is tried again" in share()[1], "half-open", PATIENCE)
        with HashSink(lab.shadow) as back:
            back.wait_for(200, PATIENCE)
            until(lambda: share() == (100.0, ""), "closed", PATIENCE)
            (done,) = daemon.ask(Stop(all=True))["stopped"]
            identity(done["ledger"])
            untorn(production, back)
        assert done["ledger"]["requests"]["dropped"].keys() & {"shadow_down", "shadow_closed"}
        until(lambda: "event=share" in daemon.said(), "the line")


def test_a_forwarder_with_nobody_behind_it_is_left_alone_and_taken_up_again_by_itself(lab: Lab) -> None:
    """It takes connections and resets them: each trial fails, after a longer pause, until somebody is there."""
    with Nginx(lab.node) as production, contextlib.ExitStack() as stack:
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=40, per_connection=5, rate=500)
        with RecordingTcp(lab.shadow, 80, Behaviour(reset_after=1)):
            daemon = stack.enter_context(Daemon(lab.node))
            often = Limits(backoff_max=0.1)  # sixteen trials in a row take two seconds
            daemon.ask(Start(taps=[web(budget=replace(CALM, retry=2.0, errors=1.0), limits=often)]))
            running = Load(lab.client, plan)
            said: list[tuple[float, str]] = []

            def share() -> tuple[float, str]:
                (tap,) = daemon.ask(Status())["taps"]
                found = (tap["ledger"] or {}).get("share", {"effective": 100.0, "reason": ""})
                if not said or said[-1][1] != found["reason"]:
                    said.append((found["effective"], found["reason"]))
                return found["effective"], found["reason"]

            until(lambda: share()[0] == 0.0, "open", PATIENCE)
            until(lambda: share()[0] > 0.0 and "it is tried again" in share()[1], "half-open", PATIENCE)
            until(lambda: share()[0] == 0.0, "open", PATIENCE)
            assert share()[1].endswith("it breaks all connections off without a byte; tried again after 2 s"), said
        with Nginx(lab.shadow) as shadow:
            until(lambda: share() == (100.0, ""), "closed", PATIENCE)
            shadow.wait_for(500, PATIENCE)
            result = running.stop()
            until(lambda: production.requests() == result.answered, "the last at production")
            (done,) = daemon.ask(Stop(all=True))["stopped"]
            identity(done["ledger"])
        assert result.failed == 0


BOTS: Final = """
import socket, sys, time
for number in range(int(sys.argv[2])):
    agent = "bot" if number % 5 else "human"
    with socket.create_connection((sys.argv[1], 80), timeout=5) as sock:
        sock.sendall(f"GET /{number} HTTP/1.1\\r\\nHost: a\\r\\nUser-Agent: {agent}\\r\\n\\r\\n".encode())
        assert (sock.recv(100) == b"") is (agent == "bot")
    time.sleep(0.02)
"""
"""Four of five connections are of a client that gets no answer."""


def test_a_shadow_that_dismisses_whom_production_does_is_well_and_one_that_answers_nobody_is_not(lab: Lab) -> None:
    with Nginx(lab.node, dismisses="bot"), Daemon(lab.node) as daemon:

        def seen() -> tuple[str, dict[str, Any]]:
            (tap,) = daemon.ask(Status())["taps"]
            ledger = tap["ledger"]
            return ledger.get("share", {}).get("reason", ""), ledger["shadows"][SHADOW]

        bots = ("python3", "-c", BOTS, lab.node.addr4)
        with Nginx(lab.shadow, dismisses="bot") as shadow:
            often = Limits(backoff_max=0.5)  # sixteen trials in a row take eight seconds
            daemon.ask(Start(taps=[web(budget=replace(CALM, retry=2.0), limits=often)]))
            lab.client.run([*bots, "300"])
            until(lambda: shadow.requests() == 300, "all at the shadow", PATIENCE)
            until(lambda: seen()[1]["events"].get("unanswered_alike") == 240, "what is excused", PATIENCE)
            reason, account = seen()
            assert reason == "" and account["answers"] == {"2xx": 60, "unanswered": 240}
            assert "connect_silent" not in account["events"] and not account["requests"]["dropped"]
            assert "event=share" not in daemon.said()
        daemon.ask(Stop(all=True))
        with RecordingTcp(lab.shadow, 80, Behaviour(reset_after=1)):
            daemon.ask(Start(taps=[web(budget=replace(CALM, retry=2.0), limits=often)]))
            lab.client.run([*bots, "600"])
            cause = "it breaks all connections off without a byte; tried again after 2 s"
            until(lambda: cause in daemon.said(), f"{cause} in {daemon.said()}")
            assert "responses are errors" not in daemon.said()


def test_of_two_shadows_the_one_that_answers_errors_is_spared(lab: Lab) -> None:
    """The other one gets everything, and this one all again when it is well."""
    two = (parse_shadow(SHADOW), parse_shadow("10.77.2.2:81"))
    with Daemon(lab.node) as daemon, under_load(lab, per_connection=10) as (production, shadow, running):
        daemon.ask(Start(taps=[web(shadows=two, protocol=Protocol.HTTP, budget=replace(CALM, retry=2.0))]))

        def seen() -> tuple[float, float, str]:
            (tap,) = daemon.ask(Status())["taps"]
            ledger = tap["ledger"]
            if ledger is None or "breaker" not in ledger["shadows"]["10.77.2.2:81"]:
                return 100.0, 100.0, "closed"
            bad = ledger["shadows"]["10.77.2.2:81"]
            return ledger["share"]["effective"], bad["effective"], bad["breaker"]

        with HashSink(lab.shadow, port=81, status=500) as bad:
            until(lambda: seen() == (100.0, 0.0, "open"), "open", PATIENCE)
            assert "at present 0 %, UNWELL: " in daemon.run("status").stdout
            before = len(bad.got), len(shadow.got)
            until(lambda: seen()[2] == "half-open", "half-open", PATIENCE)
            assert len(bad.got) - before[0] < (len(shadow.got) - before[1]) / 4, "a few connections at most"
        with HashSink(lab.shadow, port=81) as well:
            until(lambda: seen() == (100.0, 100.0, "closed"), "closed", PATIENCE)
            count = len(well.got)
            well.wait_for(count + 100, PATIENCE)
            running.stop()
            (done,) = daemon.ask(Stop(all=True))["stopped"]
            identity(done["ledger"])
            untorn(production, shadow)
            untorn(production, well)
        ledger = done["ledger"]["shadows"]
        assert ledger[SHADOW]["requests"]["sampled_out"] == 0
        assert ledger["10.77.2.2:81"]["requests"]["sampled_out"] > 100
        assert ledger[SHADOW]["requests"]["mirrored"] == len(shadow.got)


def test_a_bad_daemon_yaml_is_told_and_nothing_begins(lab: Lab) -> None:
    with Daemon(lab.node, start=False) as daemon:
        (daemon.config / "daemon.yaml").write_text("budget: {cpu: much}\n")
        done = lab.node.run(daemon.words(), check=False)
        assert done.returncode == 2
        assert re.fullmatch(r"tapmirror: error: .*daemon\.yaml:1: budget\.cpu: 'much' is not a number\n", done.stderr)


def test_who_may_only_look(lab: Lab) -> None:
    with HashSink(lab.shadow), Daemon(lab.node) as daemon:
        daemon.run(*WEB)
        daemon.socket.chmod(0o666)
        # the repository, as the daemon's files, may be where only root can look: it is the socket's mode that counts
        reader = ("setpriv", "--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        other = (*reader, "--reuid=4001", "--regid=4001", "--")
        done = lab.node.run([*other, *daemon.command("list")], env=daemon.environment())
        assert "web" in done.stdout
        done = lab.node.run([*other, *daemon.command("stop", "--all")], env=daemon.environment(), check=False)
        assert done.returncode == 2 and "only root and members of the group" in done.stderr
        daemon.socket.chmod(0o600)
        done = lab.node.run([*other, *daemon.command("list")], env=daemon.environment(), check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "permission denied: be root, or in the group tapmirror" in done.stderr
        daemon.socket.chmod(0o666)
        worker = (*reader, "--reuid=nobody", "--regid=nogroup", "--")
        done = lab.node.run([*worker, *daemon.command("list")], env=daemon.environment(), check=False)
        line = "tapmirror: error: the user that workers run as may ask for nothing\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
        assert state_of(daemon) == "running"
        denied = re.compile(r"event=denied msg=\"may only look\" user=4001 uid=4001 pid=\d+ op=stop all=True")
        until(lambda: bool(denied.search(daemon.said())), "the line of what was denied")


def test_no_change_hides_among_attempts(lab: Lab) -> None:
    """Of each cause there are ten lines a second: who asks for nonsense all the time has none held back but of that."""
    with HashSink(lab.shadow), Daemon(lab.node) as daemon, Client(daemon.socket) as client:
        daemon.run(*WEB)
        for _ in range(500):
            with pytest.raises(ControlError):
                client.ask(Pause(name="nonsense"))
        client.ask(Set(name="web", percent=3))
        client.ask(Stop(name="web"))
        until(lambda: "op=stop name=web" in daemon.said(), "the line of the last change")
        assert "msg=done user=root uid=0" in daemon.said() and "op=set name=web percent=3.0" in daemon.said()
        assert daemon.said().count("name=nonsense") < 400


def test_every_field_of_list_and_status_is_documented(lab: Lab) -> None:
    two = (parse_shadow(SHADOW), parse_shadow("10.77.2.2:81"))
    with Daemon(lab.node) as daemon, under_load(lab), HashSink(lab.shadow, port=81):
        daemon.ask(Start(taps=[web(shadows=two, ttl=600.0, compare=Compare(level=Level.STATUS))]))
        until(lambda: "breaker" in daemon.run("status", "--json").stdout, "a ledger", PATIENCE)
        listed, status = (json.loads(daemon.run(command, "--json").stdout) for command in ("list", "status"))
        ledger = status["taps"][0].pop("ledger")
    assert fields(ledger) - named("The ledger") == set()
    assert rows("The ledger") - fields(ledger) == {"comparison"}, "of the last one"
    assert fields(listed) | fields(status) <= named("`list` and `status`") | {"taps", "daemon"}
    assert rows("`list` and `status`") - fields(status["taps"]) == {"ledger"}


def test_requests_by_hand(lab: Lab) -> None:
    with Daemon(lab.node) as daemon, contextlib.ExitStack() as stack:
        sock = connect(daemon.socket, stack)
        sock.sendall(b'{"v":1,"id":"a","op":"list"}\n{"v":3,"id":"b","op":"list"}\n')
        answers = stack.enter_context(sock.makefile())
        assert json.loads(answers.readline()) == {"v": 1, "id": "a", "ok": {"taps": []}}
        assert json.loads(answers.readline())["error"]["code"] == "version"
        for request, code in [(Pause(name="x"), "not_found"), (Logs(name="x"), "not_found"), (Stop(), "bad_request")]:
            with pytest.raises(ControlError) as caught:
                daemon.ask(request)
            assert caught.value.code == code


def test_a_running_tap_is_reported_and_judged_through_the_socket(lab: Lab, tmp_path: Path) -> None:
    """In every form, of two workers together, as often as one likes, and by nobody who may not."""
    with Shop(lab.node), Shop(lab.shadow, reviews=REVIEWS_V2), Daemon(lab.node) as daemon:
        compare = Compare(level=Level.BODY, noise_probe=20.0)
        daemon.ask(Start(taps=[web(protocol=Protocol.HTTP, compare=compare, workers=2, loop_check=False)]))
        load(lab.client, lab.node.addr4, requests=600, paths=("/reviews/", "/page/"), rate=300, connections=8)

        def compared() -> tuple[int, int]:
            figures = json.loads(daemon.run("report", "web", "--format=json").stdout)
            assert (figures["tap"], figures["shadow"], figures["level"]) == ("web", SHADOW, "body")
            return figures["paired"], figures["all"]["differing"]

        # The second copies, which show what is noise, come later.
        until(lambda: compared() == (600, 300), "all to be paired and judged", PATIENCE)
        for form, start in (("terminal", "web: "), ("markdown", "## web"), ("html", "<!DOCTYPE html>")):
            text = daemon.run("report", "web", f"--format={form}").stdout
            assert text.startswith(start)
            assert "rating" in text
        done = daemon.run("verdict", "web", check=1)
        assert "difference rate 50" in done.stdout
        daemon.run("verdict", "web", "--max-diff-rate=none", "--max-p99-ratio=none", "--max-error-diff=50%")
        assert "no tap has the name 'other'" in daemon.run("report", "other", check=2).output
        until(lambda: "op=report name=web" in daemon.said(), "the line")  # who looked at samples of traffic is told
        daemon.run("stop", "web")
