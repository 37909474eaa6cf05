# SPDX-License-Identifier: Apache-2.0
"""The capture from which a tap's workers read: the loaded program, or packet sockets; and how interfaces are added to
it.

It is opened once, with privilege, and outlives workers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence

from tapmirror import loader
from tapmirror.events import LOOP_DSCP
from tapmirror.source.sockets import (
    HAND_OVER_MS,
    PROMPT_MS,
    be_promiscuous,
    block_bytes,
    open_live,
    open_shared,
)
from tapmirror.spec import Capture, Pacing, TapSpec
from tapmirror.spec.clients import as_ranges, captured_clients
from tapmirror.supervisor.addresses import largest_packet, packed
from tapmirror.supervisor.links import Attached, Bound, Hold, Shared, present
from tapmirror.supervisor.workers import TapError


class OpenCapture:
    """An open capture, attached to no interface at first: see `hold`.  Made by `open_capture`."""

    def __init__(
        self,
        spec: TapSpec,
        workers: int,
        loaded: loader.Loaded | None,
        sockets: Sequence[socket.socket] = (),
        block_bytes: int = 0,
    ) -> None:
        self.block_bytes = block_bytes
        """Bytes of a block of the sockets' rings; AF_PACKET only."""
        self._spec = spec
        self._workers = workers
        self._loaded = loaded
        self._sockets = sockets
        """By AF_PACKET: one for each worker."""
        self._numbers: dict[str, int] = {}
        """By AF_PACKET, where sockets see all interfaces: those that are captured, with their numbers."""

    @property
    def is_ebpf(self) -> bool:
        """Whether the program captures; otherwise AF_PACKET does."""
        return self._loaded is not None

    @property
    def cpus(self) -> int:
        """For how many processors the program has counters; 1 with AF_PACKET."""
        return 1 if self._loaded is None else self._loaded.cpus

    def hold(self, name: str) -> Hold:
        """Begin to capture on an interface.  Raises OSError."""
        if self._loaded is not None:
            hold: Attached | Bound | Shared = Attached(self._loaded, name)
        elif self._workers > 1 or self._spec.many:
            ports = None if self._spec.decap else self._spec.ports
            hold = Shared(self._sockets, ports, name, self._numbers, self._spec.compare.captured_bytes)
        else:
            hold = Bound(self._sockets[0], name)
        if self._spec.promisc:
            be_promiscuous(hold.socket, name)
        return hold

    def worker_fds(self, shard: int) -> list[int]:
        """The descriptors that a worker reads from; they become the caller's."""
        if self._loaded is not None:
            return self._loaded.worker_fds(shard)
        return [os.dup(self._sockets[shard].fileno())]

    def set_threshold(self, threshold: int) -> None:
        """Let the kernel capture connections whose hash is below this.  With AF_PACKET only the workers decide."""
        if self._loaded is not None:
            loader.set_threshold(self._loaded, threshold)

    def set_excluded(self, excluded: list[tuple[bytes, int]]) -> None:
        """Let the kernel leave out these end points.  With AF_PACKET only the workers do that."""
        if self._loaded is not None:
            loader.set_excluded(self._loaded, excluded)

    def close(self) -> None:
        """End the capture."""
        for part in (self._loaded, *self._sockets):
            if part is not None:
                part.close()


def open_capture(
    spec: TapSpec,
    workers: int,
    *,
    excluded: list[tuple[bytes, int]],
    threshold: int,
    probe: int,
    warn: Callable[[str], None],
) -> OpenCapture:
    """Open the capture that the spec asks for; nothing is attached to an interface yet.  Raises `TapError`, OSError.

    `excluded`: end points that are not captured.  `probe`: the initial sequence number of probes.
    """
    if spec.capture is not Capture.PACKET and not spec.decap:
        request = loader.Request(
            ports=list(spec.ports),
            addrs=[packed(addr) for addr in spec.addrs],
            excluded=excluded,
            clients=as_ranges(captured_clients(spec)),
            threshold=threshold,
            seed=spec.seed,
            dscp=LOOP_DSCP,
            probe=probe,
            egress_all=spec.pacing is Pacing.WAIT,
            promisc=spec.promisc,
            response_bytes=spec.compare.captured_bytes,
            many=spec.many,
            either_way=spec.many and bool(spec.addrs),
            ring_bytes=spec.limits.ring_bytes,
            workers=workers,
        )
        try:
            return OpenCapture(spec, workers, loader.load(request))
        except loader.LoaderError as error:
            if spec.capture is Capture.EBPF or error.kind == "contract":
                raise TapError(str(error)) from None
            warn(f"{error}; capturing through AF_PACKET instead")
    size, loopback = spec.limits.ring_bytes, spec.iface == "lo"
    block = block_bytes(max(map(largest_packet, present(spec.links())), default=0))
    responses = spec.compare.captured_bytes
    wait = PROMPT_MS if responses else HAND_OVER_MS
    if workers > 1:
        sockets = open_shared(workers, size, loopback=loopback, block_bytes=block, hand_over_ms=wait)
    else:
        ports = None if spec.decap else spec.ports
        sockets = [
            open_live(
                None,
                size,
                loopback=loopback,
                ports=ports,
                response_bytes=responses,
                block_bytes=block,
                hand_over_ms=wait,
            )
        ]
    return OpenCapture(spec, workers, None, sockets, block)
