# SPDX-License-Identifier: Apache-2.0
"""Both sources on one interface at once, and frames to put on the wire: what one yields the other must yield."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import msgspec
from scapy.all import IP, TCP, Ether, Raw

from lab import Host, Lab
from tapmirror import loader
from tapmirror.admission import Admission
from tapmirror.events import FROM_SERVER, LOOP_DSCP
from tapmirror.source import Counters, Source
from tapmirror.source.live import LiveSource
from tapmirror.source.ring import RingSource
from tapmirror.source.sockets import BLOCK_BYTES, open_live
from tapmirror.spec.clients import as_ranges
from tapmirror.supervisor.addresses import packed

RING_BYTES: Final = 1 << 20
LIVE_BYTES: Final = 48 << 20
QUIET: Final = 0.15
"""Seconds without a packet after which there will be none."""
Kept: TypeAlias = tuple[bytes, int, int, int, int, bytes]
"""A segment without its time, its payload copied."""


class Both:
    """A ring source and a packet source, attached to an interface of a host; what they yield is kept.

    Options are those of `loader.Request`; addresses in text.
    """

    def __init__(
        self,
        host: Host,
        iface: str = "eth0",
        *,
        ports: Sequence[int] = (80,),
        addrs: Sequence[str] = (),
        excluded: Sequence[tuple[str, int]] = (),
        clients: Sequence[str] = (),
        threshold: int = 1 << 32,
        seed: int = 0,
        probe: int = 0,
        egress_all: bool = False,
        response_bytes: int = 0,
        ring_bytes: int = RING_BYTES,
        live_block: int = BLOCK_BYTES,
        live_bytes: int = LIVE_BYTES,
    ) -> None:
        self.ring: list[Kept] = []
        self.live: list[Kept] = []
        with host.enter():
            request = loader.Request(
                ports=list(ports),
                addrs=[packed(address) for address in addrs],
                excluded=[(packed(address), port) for address, port in excluded],
                clients=as_ranges(clients),
                threshold=threshold,
                seed=seed,
                dscp=LOOP_DSCP,
                probe=probe,
                egress_all=egress_all,
                response_bytes=response_bytes,
                ring_bytes=ring_bytes,
            )
            self._loaded = loader.load(request)
            ring, counters, wants = self._loaded.worker_fds()
            self.ring_source = RingSource(ring, counters, wants, ring_bytes=ring_bytes, seed=seed, cpus=request.cpus)
            admission = Admission(
                ports=ports,
                addrs=request.addrs,
                excluded=request.excluded,
                clients=request.clients,
                threshold=threshold,
                seed=seed,
                dscp=LOOP_DSCP,
                probe=probe,
                egress_all=egress_all,
                response_bytes=response_bytes,
            )
            self.live_source = LiveSource(
                open_live(
                    iface,
                    live_bytes,
                    loopback=loader.is_loopback(iface),
                    ports=ports,
                    response_bytes=response_bytes,
                    block_bytes=live_block,
                ),
                admission,
                live_bytes,
                block_bytes=live_block,
            )
            self._attached = loader.Attachment(self._loaded, iface)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attached.close()
        self._loaded.close()
        self.ring_source.close()
        self.live_source.close()

    def want_ack(self, key: bytes, wanted: bool) -> None:
        """To both."""
        self.ring_source.want_ack(key, wanted)
        self.live_source.want_ack(key, wanted)

    def want_responses(self, first: int, count: int) -> None:
        """To both."""
        self.ring_source.want_responses(first, count)
        self.live_source.want_responses(first, count)

    def keep_responses(self, key: bytes, wanted: bool) -> None:
        """To both."""
        self.ring_source.keep_responses(key, wanted)
        self.live_source.keep_responses(key, wanted)

    def settle(self) -> None:
        """Read both until nothing comes any more."""
        looked, end = 0.0, time.monotonic() + QUIET
        while looked < end:  # behind the time in which this process has no CPU there is one more look
            looked = time.monotonic()
            if take(self.ring_source, self.ring) + take(self.live_source, self.live):
                end = time.monotonic() + QUIET
            else:
                time.sleep(0.005)

    def agreed(self) -> list[Kept]:
        """What both yielded, which must be the same, in segments and in counts."""
        self.settle()
        assert by_stream(self.ring) == by_stream(self.live)
        counts = self.ring_source.counters()
        assert named(counts) == named(self.live_source.counters()), (named(counts), named(self.live_source.counters()))
        whole = [sum(each) for each in zip(*fates(counts), strict=True)]
        assert list(counts.seen) == whole
        assert self.ring_source.received == self.live_source.received == counts.emitted
        return self.ring


def by_stream(kept: Sequence[Kept]) -> dict[tuple[str, int], list[tuple[Any, ...]]]:
    """The segments of each direction of each flow, sorted: two processors may show two packets, even of one
    flow, to two sockets in different order."""
    found: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
    for each in kept:
        found.setdefault((each[0].hex(), each[1] & FROM_SERVER), []).append(show(each))
    for segments in found.values():
        segments.sort()
    return found


def payloads(kept: Sequence[Kept]) -> list[bytes]:
    """Of the segments of clients."""
    return [each[5] for each in kept if each[4] and not each[1] & FROM_SERVER]


def text_of(kept: Sequence[Kept]) -> bytes:
    """The bytes of one client's stream, from its segments in any order; repeated ones lie on each other."""
    found = [each for each in kept if each[4] and not each[1] & FROM_SERVER]
    first = found[0][2]
    places = [(((seq - first + (1 << 31)) & 0xFFFFFFFF) - (1 << 31), data) for _, _, seq, _, _, data in found]
    start = min(place for place, _ in places)
    text = bytearray(max(place + len(data) for place, data in places) - start)
    for place, data in places:
        text[place - start : place - start + len(data)] = data
    return bytes(text)


def fates(counts: Counters) -> list[tuple[int, int]]:
    """What becomes of what is seen."""
    return [counts.emitted, counts.sampled_out, counts.loop, counts.ring_full, counts.fragment, counts.client]


def named(counts: Counters) -> dict[str, Any]:
    """By name, for a failure that can be read."""
    return msgspec.structs.asdict(counts)


def show(kept: Kept) -> tuple[Any, ...]:
    """A segment without its key, in a form that can be read."""
    _, flags, seq, ack, length, payload = kept
    return flags, seq, ack, length, len(payload), hashlib.sha256(payload).hexdigest(), payload[:40]


def take(source: Source, into: list[Kept]) -> int:
    """Read what is there."""
    before = len(into)
    for key, flags, seq, ack, length, payload, _ in source.read(10_000):
        into.append((bytes(key), flags, seq, ack, length, bytes(payload)))
    return len(into) - before


class Wire:
    """The client's end of the link: frames go out as they are given."""

    def __init__(self, lab: Lab, iface: str = "eth0") -> None:
        self.near = lab.client.json("ip", "-j", "link", "show", iface)[0]["address"]
        self.far = lab.node.json("ip", "-j", "link", "show", iface)[0]["address"]
        self.ether = Ether(src=self.near, dst=self.far)
        self._ips = lab.client.addr4, lab.node.addr4
        with lab.client.enter():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sock.bind((iface, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, frame: Any) -> None:
        """One frame."""
        self._sock.send(bytes(frame))

    def segment(self, data: bytes = b"", **fields: Any) -> Any:
        """A segment to port 80 of the node, over IPv4."""
        base = {"sport": 40_000, "dport": 80, "seq": 1, "ack": 1, "flags": "PA"}
        packet = self.ether / IP(src=self._ips[0], dst=self._ips[1]) / TCP(**{**base, **fields})
        return packet / Raw(data) if data else packet
