# SPDX-License-Identifier: Apache-2.0
"""The set-up of a worker.  The supervisor imports this module, and none of those that read the network."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tapmirror.source.sockets import BLOCK_BYTES
from tapmirror.spec import Level, TapSpec

MESSAGE: Final = 1 << 16
"""Most bytes of a message between supervisor and worker, except the first."""
STATE_BYTES: Final = 64 << 20
"""Most bytes of a message with the state of a comparison: 100 endpoints, 200 samples."""
COMPARED_BYTES: Final = 128 << 20
"""Bytes that a comparison holds beside bodies: 100 endpoints, 200 samples, repeats, and its state as one message."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told before it gives up its privileges."""

    spec: TapSpec
    addresses: list[list[tuple[int, list[Any]]]]
    """For each shadow, its pairs of (address family, socket address), in the order in which they are tried."""
    capture: str
    """`ring` (descriptors: ring, counters, wants) or `packet` (descriptor: the AF_PACKET socket)."""
    excluded: list[tuple[bytes, int]] = []
    """Shadow end points (16-byte address, port) that are never captured; for `packet`."""
    addrs: list[bytes] = []
    """Production's addresses in 16 bytes; for `packet`."""
    block_bytes: int = BLOCK_BYTES
    """Bytes of a block of the capture ring; for `packet`."""
    cpus: int = 1
    """How many processors have counters of their own; for `ring`."""
    shard: int = 0
    """Number of this worker among the tap's, from 0."""
    workers: int = 1
    """How many workers the tap has; each has its part of the connections."""
    threshold: int = 1 << 32
    """Connections whose flow hash is below this are captured; 2**32: all are."""
    thresholds: list[int] = []
    """For each shadow, the flow hash below which it gets a connection; empty: each gets all that is captured."""
    probe: int = 0
    """Initial sequence number of the SYN that probes whether a shadow leads back to production; for `packet`."""
    secret: bytes = b""
    """Key of the hashes of redaction, the same for all workers of the tap; JSON carries it as base64."""
    began: float = 0.0
    """When the tap began, in seconds of CLOCK_MONOTONIC."""
    past: dict[str, Any] | None = None
    """The last ledgers of the worker whose place this one takes."""
    uid: int
    gid: int


class SetupError(Exception):
    """The tap cannot run as specified; the message is one line that begins with the field."""


def memory_limit(spec: TapSpec) -> int:
    """A worker's limit of private memory in bytes (setrlimit(2), RLIMIT_DATA).  The ring is shared, so it does not
    count.
    """
    copies = sum(shadow.copies for shadow in spec.shadows)
    compared = spec.compare.held_bytes + COMPARED_BYTES if spec.compare.level is not Level.OFF else 0
    return spec.limits.memory + (copies - 1) * spec.limits.queues_bytes + compared * copies
