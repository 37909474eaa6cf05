# SPDX-License-Identifier: Apache-2.0
"""The worker as its supervisor meets it: one socket, three messages, and an end however the other side ends."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scapy.all import IP, UDP, Raw

from captures import Wire
from lab import PATIENCE, HashSink, Host, Lab, RecordingTcp, body, cpu_seconds, identity, load, until
from lab.load import Load, LoadPlan
from tapmirror import loader, privsep
from tapmirror.contract import CONTRACT
from tapmirror.events import LOOP_DSCP
from tapmirror.source.sockets import open_live
from tapmirror.spec import Compare, Level, Limits, Pacing, Protocol, TapSpec, parse_shadow
from tapmirror.supervisor.addresses import packed
from tapmirror.worker.assembly import SPARE_FILES
from tapmirror.worker.loop import BATCH
from tapmirror.worker.setup import MESSAGE, Setup

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

SHADOW = "10.77.2.2"
QUICK = Limits(drain_time=0.5)
ROOM = Limits(ring_bytes=64 << 20)
"""However little a busy host gives it."""
LATE = parse_shadow(f"{SHADOW}:80", connect_time=PATIENCE)
"""However late the host is with what lets connections in again."""
CAPTURES = ["ring", "packet"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


class Bare:
    """A worker process whose supervisor is the test."""

    def __init__(
        self, node: Host, capture: str = "packet", *, addresses: list[tuple[int, list[Any]]] | None = None, **spec: Any
    ) -> None:
        self._node = node
        self._loaded: loader.Loaded | None = None
        self.attached: loader.Attachment | None = None
        self.spec = TapSpec(**{"iface": "eth0", "ports": (80,), "shadows": (parse_shadow(f"{SHADOW}:80"),), **spec})
        uid, gid = privsep.worker_identity()
        setup = Setup(
            spec=self.spec,
            addresses=[addresses or [(int(socket.AF_INET), [SHADOW, 80])]],
            capture=capture,
            excluded=[(packed(SHADOW), 80)],
            cpus=os.cpu_count() or 1,
            uid=uid,
            gid=gid,
        )
        with node.enter():
            fds = self._open(capture)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process: subprocess.Popen[str] = start(node, theirs)
        privsep.send_large(self.control, msgspec.to_builtins(setup), fds)
        for fd in fds:
            os.close(fd)

    def _open(self, capture: str) -> list[int]:
        limits = self.spec.limits
        if capture == "packet":
            return [open_live("eth0", limits.ring_bytes, loopback=False, ports=None).detach()]
        request = loader.Request(
            ports=list(self.spec.ports),
            addrs=[],
            excluded=[(packed(SHADOW), 80)],
            threshold=self.spec.threshold(),
            seed=self.spec.seed,
            dscp=LOOP_DSCP,
            egress_all=self.spec.pacing is Pacing.WAIT,
            ring_bytes=limits.ring_bytes,
        )
        self._loaded = loader.load(request)
        self.attached = loader.Attachment(self._loaded, "eth0")
        return self._loaded.worker_fds()

    def __enter__(self) -> Bare:
        self.pid = int(self.hear("ready"))
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        for part in (self.attached, self._loaded):
            if part is not None:
                part.close()
        self._node.stop(self.process, signal.SIGKILL)

    def hear(self, name: str, seconds: float = PATIENCE) -> Any:
        """The next message, which is this one."""
        assert select.select([self.control], [], [], seconds)[0], f"no {name!r} within {seconds:g} s"
        message, fds = privsep.receive(self.control, MESSAGE)
        assert (list(message), fds) == ([name, "handover"] if name == "snapshot" else [name], [])
        return message[name]

    def ask(self, request: str, name: str) -> dict[str, Any]:
        """The reply to a request."""
        privsep.send(self.control, {"op": request})
        reply: dict[str, Any] = self.hear(name)
        return reply

    def ended(self, seconds: float = PATIENCE) -> tuple[int, str]:
        """Wait for its end: exit status and all that it wrote."""
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output


def start(node: Host, control: socket.socket) -> subprocess.Popen[str]:
    """The worker's process, with its end of the socket pair."""
    return node.popen(
        [sys.executable, "-m", "tapmirror.worker", str(control.fileno()), CONTRACT],
        pass_fds=[control.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# --- the conversation


@pytest.mark.parametrize("capture", CAPTURES)
def test_ready_snapshot_drain(lab: Lab, capture: str) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Bare(lab.node, capture) as worker:
        assert worker.pid == worker.process.pid
        first = worker.ask("snapshot", "snapshot")
        assert (first["segments"]["seen"], first["flows"], first["answers"]) == (0, 0, {})
        assert load(lab.client, lab.node.addr4, requests=40, connections=4, bodies=(0, 3000)).answered == 40
        shadow.wait_for(40)
        final = worker.ask("drain", "final")
        identity(final)
        assert final["requests"]["mirrored"] == final["requests"]["seen"] == 40
        assert [final[unit]["in_flight"] for unit in ("segments", "bytes", "requests")] == [0, 0, 0]
        assert final["worker"]["pid"] == worker.pid
        assert final["worker"]["cpu_s"] > 0 and final["worker"]["rss_kb"] > 1000
        assert worker.ended() == (0, "")
        assert worker.control.recv(1) == b""


@pytest.mark.parametrize("capture", CAPTURES)
def test_everything_is_accounted_for_in_every_snapshot_under_load(lab: Lab, capture: str) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Bare(lab.node, capture, limits=ROOM) as worker:
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=20, rate=1_000, bodies=(10, 9_000))
        running = Load(lab.client, plan)
        found: set[int] = set()

        def looked() -> bool:
            ledger = worker.ask("snapshot", "snapshot")
            identity(ledger)
            found.add(ledger["segments"]["seen"])
            return len(found) > 20

        until(looked, "20 looks of which each finds something new")
        result = running.stop()
        assert result.failed == 0
        shadow.wait_for(result.answered, PATIENCE)
        final = worker.ask("drain", "final")
        identity(final)
        assert final["requests"]["mirrored"] == result.answered and shadow.bad == []


@pytest.mark.parametrize("wanted", [True, False])
def test_what_the_comparison_knows_is_in_the_last_ledger_only_if_it_is_asked_for(lab: Lab, wanted: bool) -> None:
    with Bare(lab.node, "packet", compare=Compare(level=Level.STATUS)) as worker:
        privsep.send(worker.control, {"op": "drain", "comparison": wanted})
        pieces, reply = privsep.Pieces(1 << 20), dict[str, Any]()
        while not reply:
            assert select.select([worker.control], [], [], PATIENCE)[0]
            reply = pieces.take(privsep.receive(worker.control, MESSAGE)[0])
        final = reply["final"]
        assert "compare" in final and ("comparison" in final) == wanted


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("way", ["drain", "the supervisor is gone", "SIGTERM"])
def test_however_it_ends_what_is_queued_goes_to_the_shadow(lab: Lab, capture: str, way: str) -> None:
    more: dict[str, Any] = {"limits": Limits(drain_time=PATIENCE), "shadows": (LATE,)}
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Bare(lab.node, capture, **more) as worker:
        with lab.shadow.blocked(80):
            # on one connection: another one that is begun a second later is not even tried
            assert load(lab.client, lab.node.addr4, requests=40, connections=1).answered == 40
            until(lambda: bool(worker.ask("snapshot", "snapshot")["requests"]["seen"] == 40), "all of it is queued")
            assert len(shadow.got) == 0
            if way == "drain":
                privsep.send(worker.control, {"op": "drain"})
            elif way == "SIGTERM":
                worker.process.terminate()
            else:
                worker.control.close()
        shadow.wait_for(40, PATIENCE)
        if way != "the supervisor is gone":
            final = worker.hear("final")
            identity(final)
            assert final["requests"]["mirrored"] == 40
        assert worker.ended() == (0, "")
        assert (len(shadow.got), shadow.bad) == (40, [])


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.RAW])
@pytest.mark.parametrize("shadow_does", ["nothing", "not read"])
def test_the_drain_has_an_end(lab: Lab, capture: str, protocol: Protocol, shadow_does: str) -> None:
    size = 3_000_000  # more than the sockets' buffers on the way take
    limits = msgspec.structs.replace(QUICK, queue_bytes=2 * size)
    with (
        HashSink(lab.node),
        RecordingTcp(lab.shadow, 80) as shadow,
        Bare(lab.node, capture, limits=limits, protocol=protocol, shadows=(LATE,)) as worker,
    ):
        if shadow_does == "not read":
            shadow.behaviour = type(shadow.behaviour)(read=False)
        else:
            lab.shadow.run(["nft", "add table inet lab; add chain inet lab in { type filter hook input priority 0; }"])
            lab.shadow.run(["nft", "add rule inet lab in tcp dport 80 drop"])
        try:
            assert load(lab.client, lab.node.addr4, requests=2, connections=2, bodies=(size,)).answered == 2
            final = worker.ask("drain", "final")
        finally:
            lab.shadow.run(["nft", "delete table inet lab"], check=False)
        identity(final)
        assert final["bytes"]["dropped"]["shutdown"] > size // 2
        assert [final[unit]["in_flight"] for unit in ("segments", "bytes", "requests")] == [0, 0, 0]
        assert worker.ended() == (0, "")


@pytest.mark.parametrize("capture", CAPTURES)
def test_after_the_drain_has_begun_nothing_new_is_taken(lab: Lab, capture: str) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Bare(lab.node, capture) as worker:
        if worker.attached is not None:
            worker.attached.close()  # as the supervisor does before it asks
        with lab.shadow.blocked(80):
            privsep.send(worker.control, {"op": "drain"})
            final = worker.hear("final")
            assert load(lab.client, lab.node.addr4, requests=10, connections=2).answered == 10
        assert final["segments"]["seen"] == 0
        assert worker.ended() == (0, "")
        assert shadow.got == []


def test_ctrl_c_is_not_the_workers_business(lab: Lab) -> None:
    with Bare(lab.node) as worker:
        worker.process.send_signal(signal.SIGINT)
        assert worker.ask("snapshot", "snapshot")["worker"]["pid"] == worker.pid
        assert worker.process.poll() is None
        assert worker.ask("drain", "final")["segments"]["seen"] == 0


# --- the other side is not there, or wrong


def test_without_a_supervisor_it_goes_quietly(lab: Lab) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        process = start(lab.node, theirs)
    output, _ = process.communicate(timeout=PATIENCE)
    assert output == ""


def test_a_supervisor_that_goes_before_it_is_ready_is_no_accident(lab: Lab) -> None:
    worker = Bare(lab.node)
    worker.control.close()
    try:
        assert worker.ended()[1] == ""
    finally:
        worker.__exit__()


@pytest.mark.parametrize(
    "message",
    [b"{}", b"[]", b"{", json.dumps({"spec": {}, "uid": 0, "gid": 0}).encode(), b"x" * 100],
    ids=["empty", "list", "cut", "no spec", "no JSON"],
)
def test_with_a_wrong_set_up_it_never_becomes_ready(lab: Lab, message: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = start(lab.node, theirs)
        ours.send(message)
        process.communicate(timeout=PATIENCE)
        assert process.returncode != 0
        assert ours.recv(MESSAGE) == b""


# --- what it costs and where it goes


@pytest.mark.parametrize("capture", CAPTURES)
def test_idle_costs_next_to_nothing(lab: Lab, capture: str) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Bare(lab.node, capture) as worker:
        assert load(lab.client, lab.node.addr4, requests=10, connections=2).answered == 10
        shadow.wait_for(10)
        before, start_time = cpu_seconds([worker.pid]), time.monotonic()
        until(lambda: time.monotonic() > start_time + 2, "two seconds")
        assert cpu_seconds([worker.pid]) - before <= 0.1


def test_the_limit_of_descriptors_follows_the_connections(lab: Lab) -> None:
    with Bare(lab.node, limits=Limits(connections=100)) as worker:
        lines = Path(f"/proc/{worker.pid}/limits").read_text().splitlines()
        limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
        assert limits["Max open files"][0] == str(100 + SPARE_FILES)
        assert limits["Max core file size"] == ["0", "0"]


@pytest.mark.parametrize("capture", CAPTURES)
def test_the_next_address_is_tried_when_the_first_does_not_answer(lab: Lab, capture: str) -> None:
    addresses: list[tuple[int, list[Any]]] = [
        (int(socket.AF_INET6), ["fd77:2::2", 81, 0, 0]),
        (int(socket.AF_INET), [SHADOW, 80]),
    ]
    with (
        HashSink(lab.node),
        HashSink(lab.shadow) as shadow,
        Bare(lab.node, capture, addresses=addresses) as worker,
    ):

        def mirrors() -> bool:
            assert load(lab.client, lab.node.addr4, requests=2, connections=1).answered == 2
            return bool(shadow.got)

        until(mirrors, "mirroring over the second address", PATIENCE)
        assert worker.ask("snapshot", "snapshot")["events"]["connect_ECONNREFUSED"] >= 1


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_body_in_flight_at_the_drain_is_given_up_whole(lab: Lab, capture: str) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Bare(lab.node, capture, limits=QUICK) as worker:
        with lab.client.enter():
            client = socket.create_connection((lab.node.addr4, 80), timeout=PATIENCE)
        with client:
            client.sendall(b"POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + body(1, 2500))
            until(lambda: bool(worker.ask("snapshot", "snapshot")["requests"]["seen"] == 1), "the request's begin")
            final = worker.ask("drain", "final")
        identity(final)
        assert final["requests"]["mirrored"] == 0
        assert sum(final["requests"]["dropped"].values()) == 1
        assert worker.ended() == (0, "")
        assert not [got for got in shadow.got if got.whole]


def test_draining_goes_on_behind_packets_that_give_nothing(lab: Lab) -> None:
    with Bare(lab.node, "packet") as worker, Wire(lab) as wire:
        os.kill(worker.pid, signal.SIGSTOP)
        junk = bytes(wire.ether / IP(src=lab.client.addr4, dst=lab.node.addr4) / UDP(dport=80) / Raw(bytes(40)))
        for _ in range(4 * BATCH):
            wire.send(junk)
        wire.send(wire.segment(b"behind"))
        privsep.send(worker.control, {"op": "drain"})
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.hear("final")["segments"]["seen"] == 1
