# SPDX-License-Identifier: Apache-2.0
"""The lab itself: what the other tests stand on."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab import (
    PATIENCE,
    Behaviour,
    Faults,
    HashSink,
    Lab,
    Load,
    LoadPlan,
    Nginx,
    RecordingTcp,
    Redis,
    Snapshot,
    body,
    hosts,
    load,
    redis_pipe,
    until,
    wrk,
)
from lab.instructions import CASES, response, serve, worked
from lab.soak import Look, Report, violations
from lab.wrk import command, parse, pause
from tapmirror.spec import Level

sending = importlib.import_module("lab.load")  # `lab.load` is the function

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def exists(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second: it ended between open and read
        return False


def test_hosts_reach_their_neighbours_only(lab: Lab) -> None:
    for host, neighbour in ((lab.client, lab.node), (lab.node, lab.shadow)):
        for address in (neighbour.addr4, neighbour.addr6):
            with host.enter(), pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, 9), timeout=PATIENCE)
    for address in (lab.shadow.addr4, lab.shadow.addr6):
        with lab.client.enter(), pytest.raises(OSError, match="unreachable"):
            socket.create_connection((address, 9), timeout=PATIENCE)


def test_leaving_a_host_leaves_its_network(lab: Lab) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    with lab.node.enter():
        assert os.readlink("/proc/thread-self/ns/net") != before
        inside = socket.socket()
    assert os.readlink("/proc/thread-self/ns/net") == before
    with inside:
        inside.bind((lab.node.addr4, 0))


def test_everything_ends_with_the_lab() -> None:
    with Lab() as lab:
        holder, sleeper = lab.node.pid, lab.node.popen(["sleep", "1000"]).pid
        assert exists(holder) and exists(sleeper)
    assert not exists(holder) and not exists(sleeper)


def test_everything_ends_with_a_killed_process() -> None:
    script = (
        "import sys, time; from lab import Lab\n"
        "lab = Lab().__enter__(); sleeper = lab.node.popen(['sleep', '1000'])\n"
        "print(lab.node.pid, sleeper.pid, flush=True); time.sleep(1000)\n"
    )
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", script], env=path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2 and all(exists(pid) for pid in pids)
        process.kill()
    until(lambda: not any(exists(pid) for pid in pids), "the end of the lab")


def test_nginx_counts_to_the_request(lab: Lab) -> None:
    with Nginx(lab.node, (80, 8080), log=True) as nginx:
        for port, address in ((80, lab.node.addr4), (8080, lab.node.addr6)):
            result = load(lab.client, address, port=port, requests=500, connections=7)
            assert (result.answered, result.failed, result.statuses) == (500, 0, {"200": 500})
        assert nginx.requests() == 1000
        logged = nginx.logged()
        assert sorted(int(line.uri[1:]) for line in logged) == sorted([*range(500)] * 2)
        assert {line.host for line in logged} == {"production.test"}
    refused = load(lab.client, lab.node.addr4, requests=3, connections=2)
    assert (refused.sent, refused.answered, refused.connections) == (0, 0, 2)


def test_load_makes_a_connection_for_each_request(lab: Lab) -> None:
    with Nginx(lab.node) as nginx:
        result = load(lab.client, lab.node.addr4, requests=300, connections=10, per_connection=1)
        assert (result.answered, result.connections, nginx.requests()) == (300, 300, 300)


def test_load_ends_early_with_nothing_cut(lab: Lab) -> None:
    with Nginx(lab.node) as nginx:
        running = Load(lab.client, LoadPlan(address=lab.node.addr4, requests=10**9, connections=5, rate=2000))
        nginx.wait_for(100)
        assert running.running()
        result = running.stop()
        assert result.failed == 0
        assert result.answered == result.sent == nginx.requests()


def test_a_load_can_be_stopped_while_it_makes_a_request(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A load that missed it would wait for an hour."""
    made = sending.request

    def interrupted(plan: LoadPlan, number: int) -> bytes:
        if number == 3:
            signal.raise_signal(signal.SIGINT)
        data: bytes = made(plan, number)
        return data

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sending, "request", interrupted)
    plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=1, bodies=(10,), timeout=3600.0)
    monkeypatch.setattr(sys, "argv", ["load", msgspec.json.encode(plan).decode()])
    with HashSink(lab.node) as sink, lab.client.enter():
        try:
            sending.main()
        finally:
            signal.signal(signal.SIGINT, before)
        assert json.loads(capsys.readouterr().out)["answered"] == len(sink.got) >= 4


def test_wrk(lab: Lab) -> None:
    with Nginx(lab.node) as nginx:
        result = wrk(lab.client, f"http://{lab.node.addr4}/", connections=10, duration=1)
        assert result.errors == 0
        assert 0 <= nginx.requests() - result.requests <= 10
        assert 0 < result.p50 <= result.p99


def test_wrk_pauses_before_each_request(lab: Lab, tmp_path: Path) -> None:
    script = tmp_path / "pause.lua"
    script.write_text(pause(100))
    with Nginx(lab.node) as nginx:
        words = command(f"http://{lab.node.addr4}/", connections=4, duration=1, script=str(script))
        began = time.monotonic()
        assert 0 < parse(lab.client.run(words).stdout).requests <= nginx.requests()
        assert nginx.requests() <= 4 * (10 * (time.monotonic() - began) + 1)


def test_what_wrk_prints_is_read() -> None:
    printed = (
        "  Latency Distribution\n     50%  812.00us\n     75%    1.00ms\n     90%    1.20ms\n     99%    1.05s \n"
        "  91 requests in 1.00s, 15.32KB read\n  Socket errors: connect 1, read 2, write 3, timeout 4\n"
        "  Non-2xx or 3xx responses: 5\nRequests/sec:     91.00\n"
    )
    result = parse(printed)
    assert (result.requests, result.errors, result.p50, result.p99) == (91, 15, 0.812, 1050.0)


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_arrive_as_they_follow_from_their_numbers(lab: Lab, chunked: bool) -> None:
    with HashSink(lab.node) as sink:
        sizes = (1, 0, 1447, 100_000, 3_000_001)
        plan = LoadPlan(address=lab.node.addr4, requests=20, connections=3, bodies=sizes, chunked=chunked, seed=4)
        result = Load(lab.client, plan).result()
        assert (result.answered, result.failed) == (20, 0)
        assert sink.bad == []
        assert {got.uri: (got.length, got.sha256, got.whole) for got in sink.got} == {
            f"/{n}": (sizes[n % 5], hashlib.sha256(body(n, sizes[n % 5], 4)).hexdigest(), True) for n in range(20)
        }


def test_pipelined_requests_are_told_apart(lab: Lab) -> None:
    with HashSink(lab.node) as sink:
        assert load(lab.client, lab.node.addr4, requests=1000, connections=2, depth=16).answered == 1000
        assert sorted(int(got.uri[1:]) for got in sink.got) == [*range(1000)]
        assert sink.connections == 2


def connect(lab: Lab, port: int) -> socket.socket:
    with lab.client.enter():
        return socket.create_connection((lab.node.addr4, port), timeout=PATIENCE)


@pytest.mark.parametrize(
    ("sent", "whole", "bad"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf", [False], 0),
        (b"GET / HTTP/1.1\r\nHost", [], 1),
        (b"GET / HTTP/1.1\r\n\r\n\x16\x03\x01\r\n\r\n", [True], 1),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", [], 1),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\nT: v\r\n\r\n", [True], 0),
    ],
)
def test_what_was_torn_is_told(lab: Lab, sent: bytes, whole: list[bool], bad: int) -> None:
    with HashSink(lab.node, 81) as sink:
        with connect(lab, 81) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1000):
                pass
        until(lambda: (len(sink.got), len(sink.bad)) == (len(whole), bad), f"{sink.got} {sink.bad}")
        assert [got.whole for got in sink.got] == whole


def test_a_recorder_tells_fin_from_reset(lab: Lab) -> None:
    with RecordingTcp(lab.node, 90) as recorder:
        with connect(lab, 90) as client:
            client.sendall(b"one")
        with connect(lab, 90) as client:
            client.sendall(b"two")
            recorder.wait_for(6)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        records = recorder.wait_ended(2)
        assert [(bytes(r.content), r.end) for r in records] == [(b"one", "eof"), (b"two", "reset")]
        assert records[0].sha256 == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize(
    ("behaviour", "response"),
    [
        (Behaviour(echo=True), b"ping"),
        (Behaviour(response=b"pong", delay=0.05), b"pong"),
        (Behaviour(flood=3_000_000, flood_start=b"head"), b"head" + bytes(3_000_000)),
        (Behaviour(flood=3, drip=0.01), bytes(3)),
        (Behaviour(close_after=4), b""),
        (Behaviour(reset_after=4), None),
        (Behaviour(reset_after=0), None),
    ],
)
def test_behaviour(lab: Lab, behaviour: Behaviour, response: bytes | None) -> None:
    with RecordingTcp(lab.node, 91, behaviour):
        got = b""
        try:
            with connect(lab, 91) as client:
                client.sendall(b"ping")
                while len(got) < len(response or b"-") and (data := client.recv(1 << 16)):
                    got += data
        except ConnectionResetError:
            assert response is None
        else:
            assert got == response


@pytest.mark.parametrize("behaviour", [Behaviour(read=False), Behaviour(accept=False)])
def test_a_window_closes_where_nobody_reads(lab: Lab, behaviour: Behaviour) -> None:
    with RecordingTcp(lab.node, 92, behaviour) as recorder:
        with connect(lab, 92) as client:
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.sendall(bytes(64 << 20))
        assert recorder.received() == 0


def test_redis(lab: Lab) -> None:
    with Redis(lab.node) as one, Redis(lab.shadow) as other:
        assert one.digest() == other.digest()
        commands = [("SET", f"key{i}", "x" * i) for i in range(2000)]
        assert redis_pipe(lab.client, lab.node.addr4, commands) == 2000
        assert one.keys() == 2000
        assert one.digest() != other.digest()
        redis_pipe(lab.node, lab.shadow.addr4, commands)
        assert one.digest() == other.digest()


def test_a_blocked_port_is_silent(lab: Lab) -> None:
    with RecordingTcp(lab.node, 93) as recorder:
        with lab.node.blocked(93), lab.client.enter(), pytest.raises(TimeoutError):
            socket.create_connection((lab.node.addr4, 93), timeout=0.3)
        connect(lab, 93).close()
        recorder.wait_ended(1)


def test_a_bad_link_loses_delays_and_duplicates_and_tcp_mends_it() -> None:
    with Lab(faults=Faults(lose=0.02, delay=0.1, duplicate=0.05, seed=3)) as lab:
        assert lab.relay is not None
        with HashSink(lab.node) as sink:
            result = load(lab.client, lab.node.addr4, requests=2000, connections=20, bodies=(1, 5000))
            assert (result.answered, result.failed) == (2000, 0)
            assert {got.sha256 for got in sink.got} == {
                hashlib.sha256(body(n, (1, 5000)[n % 2])).hexdigest() for n in range(2000)
            }
            count = lab.relay.stop()
            assert count.overrun == 0
            frames = count.passed + count.lost - count.duplicated
            assert 0.01 < count.lost / frames < 0.03
            assert 0.08 < count.delayed / frames < 0.12
            assert 0.03 < count.duplicated / frames < 0.07


def test_jumbo_frames() -> None:
    with Lab(mtu=9000) as lab, RecordingTcp(lab.node, 94), connect(lab, 94) as client:
        assert 8900 < client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) < 9000


@pytest.mark.apart
def test_a_snapshot_shows_what_is_attached(lab: Lab) -> None:
    before = Snapshot.of(lab.node)
    assert Snapshot.of(lab.node).difference(before) == {}
    with lab.node.enter():
        packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    lab.node.run(["ip", "addr", "add", "10.77.9.9/32", "dev", "lo"])
    lab.node.run(["tc", "qdisc", "add", "dev", "eth1", "clsact"])
    lab.node.run(["ip", "link", "set", "eth1", "promisc", "on"])
    changed = Snapshot.of(lab.node).difference(before)
    assert {"packet_sockets", "addresses", "qdiscs", "links"} <= changed.keys()
    packet.close()
    lab.node.run(["ip", "addr", "del", "10.77.9.9/32", "dev", "lo"])
    lab.node.run(["tc", "qdisc", "del", "dev", "eth1", "clsact"])
    lab.node.run(["ip", "link", "set", "eth1", "promisc", "off"])
    assert Snapshot.of(lab.node).difference(before) == {}


def test_what_a_snapshot_had_is_missed_unless_the_kernel_frees_it_when_it_has_time() -> None:
    """A program or map that is gone may be another's; that it was detached is seen where it was."""
    nothing: dict[str, Any] = {each.name: frozenset() for each in fields(Snapshot)}
    now = Snapshot(**nothing)
    for each in fields(Snapshot):
        before = Snapshot(**{**nothing, each.name: frozenset({"it"})})
        assert before.difference(now) == {each.name: "+it"}
        assert now.difference(before) == ({} if each.name in ("programs", "maps") else {each.name: "-it"})


def test_the_soak_sees_what_does_not_add_up_and_what_grows() -> None:
    found = {
        ("tapmirror_seen_bytes_total", "a"): 5.0,
        ("tapmirror_settled_bytes_total", "a"): 3.0,
        ("tapmirror_in_flight_bytes", "a"): 2.0,
    }
    assert [*violations(found)] == []
    assert "bytes: seen 6" in next(violations({**found, ("tapmirror_seen_bytes_total", "a"): 6.0}))
    assert "seen 5" in next(violations({**found, ("tapmirror_unaccounted_bytes", "a"): 1.0}))
    looks = [
        Look(60.0 * minute, {"daemon": 40_960 + 1024 * minute // 30, "worker": 40_960}, {"daemon": 30, "worker": 9})
        for minute in range(180)
    ]
    report = Report(seconds=180 * 60.0, looks=looks, scrapes=3, wrong=["scrape 2: a: bytes"], failed=1)
    assert report.failures()[:2] == ["scrape 2: a: bytes", "1 requests of production's failed"]
    assert report.failures()[2].startswith("the daemon grows by 2.0")
    assert "2 of 3 scrapes" in report.lines()[2]
    assert "(+0.00 ± 0.00 MiB an hour), descriptors 9 to 9" in report.lines()[5]
    saw = [Look(60.0 * each, {"worker": 40_960 + 1024 * (each % 2)}, {}) for each in range(120)]
    swings = Report(seconds=120 * 60.0, looks=saw)
    assert swings.margin("worker") == pytest.approx(2 * 0.5 * (60 / 58) ** 0.5 / 5**0.5, abs=0.001)
    assert Report(seconds=120.0, looks=saw[:2]).margin("worker") is None
    idle = Report(seconds=300.0, requests=170_000, mirrored=1_378)
    assert idle.failures() == ["only 0.8% of the requests were mirrored: is the host busy?"]
    few = Report(seconds=300.0, looks=looks[:5], requests=1_000, mirrored=100)
    assert few.failures() == [] and few.slope("daemon") is not None
    few.looks[-1].files["daemon"] = 32
    assert few.failures() == []
    few.looks[-1].files["daemon"] = 33
    few.looks[-1].memory["worker"] += 2048
    assert few.failures() == ["the worker grew by 2.0 MiB", "the daemon's descriptors grew from 30 to 33"]


def test_what_a_run_that_was_killed_left_in_tmp_is_cleared_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen(["true"]) as gone:
        pass
    names = [f"tapmirror-lab-{pid}-abc" for pid in (gone.pid, os.getpid(), os.getppid())]
    for name in (*names, "tapmirror-lab-abc", f"other-{gone.pid}-abc"):
        (tmp_path / name / "below").mkdir(parents=True)
    (tmp_path / f"tapmirror-lab-{gone.pid}-x.conf").touch()
    assert hosts.prefix() == f"tapmirror-lab-{os.getpid()}-"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*names[1:], "tapmirror-lab-abc", f"other-{gone.pid}-abc"]
    )


@pytest.mark.parametrize("name", CASES)
def test_of_what_is_counted_in_instructions_all_is_sent_and_answered(name: str) -> None:
    """It raises where it is not."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        message = response(CASES[name].get("compare", Level.OFF), 1)
        threading.Thread(target=serve, args=(listener, message), daemon=True).start()
        worked(name, 500, listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
