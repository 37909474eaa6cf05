# SPDX-License-Identifier: Apache-2.0
"""Where segments come from.  All sources yield the same record, so no later stage can tell which source it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

import msgspec

from tapmirror.events import FlowKey, Segment

ENDLESS: Final = 1 << 62
"""A number of bytes that stands for no limit."""


def nothing() -> None:
    """The default for `finish` of `Source.read`: every segment is done with as soon as the next one is asked for."""


class Counters(msgspec.Struct, frozen=True):
    """(records, bytes) since the start, as `enum tap_count` of bpf/tap.h counts them.

    seen, emitted, sampled_out, loop, ring_full, fragment and client count segments with payload from client to
    production; seen is the sum of the other six.  All others count packets.
    """

    seen: tuple[int, int]
    emitted: tuple[int, int]
    sampled_out: tuple[int, int]
    loop: tuple[int, int]
    ring_full: tuple[int, int]
    fragment: tuple[int, int]
    client: tuple[int, int]
    syn: tuple[int, int]
    syn_ack: tuple[int, int]
    accepted: tuple[int, int]
    bare_ack: tuple[int, int]
    egress: tuple[int, int]
    control_lost: tuple[int, int]
    loop_syn: tuple[int, int]
    responses: tuple[int, int]
    responses_lost: tuple[int, int]


class Source(Protocol):
    """A capture that is being read."""

    @property
    def received(self) -> tuple[int, int]:
        """(segments with payload from client to production, their bytes) that `read` has yielded, including to a worker
        before this one.
        """

    cut: bool
    """Whether the last `read` left something because of its limit in bytes."""

    def fileno(self) -> int:
        """The descriptor that is readable while there is something to read."""

    def read(self, limit: int, size: int = ENDLESS, finish: Callable[[], object] = nothing) -> Iterator[Segment]:
        """Yield at most `limit` of the segments that are there now, and none that begins after `size` bytes of the
        capture.

        The payloads of several segments are valid at a time.  `finish` is called before they become invalid: it must do
        whatever is still to be done with the segments yielded by then.  If the caller stops in the middle, after doing
        that, it gets the other segments next time.
        """

    def empty(self) -> bool:
        """Whether nothing is there to be read."""

    def age(self, now: float) -> float:
        """Seconds from the capture of what will be read next to `now` (CLOCK_MONOTONIC); 0: nothing is there."""

    def want_ack(self, key: FlowKey, wanted: bool) -> None:
        """Begin or stop to yield production's acknowledgements of this flow (and of those in its bucket)."""

    def want_responses(self, first: int, count: int) -> None:
        """Yield production's payload in `count` of the 65,536 buckets from `first` on; after the last bucket comes the
        first.
        """

    def keep_responses(self, key: FlowKey, wanted: bool) -> None:
        """Begin or stop to yield production's payload in this flow's bucket, wherever that window is."""

    def counters(self) -> Counters:
        """What the capture counted."""

    def fill(self) -> float:
        """How full the ring is, from 0 to 1."""

    def set_threshold(self, threshold: int) -> None:
        """Take only flows whose hash is below `threshold` from now on, if the kernel does not decide that."""

    def woken(self) -> None:
        """The descriptor is readable, or has an error."""

    def stop(self) -> None:
        """Capture nothing more.  What was captured can still be read."""

    def discard(self) -> None:
        """Read nothing more.  What is there stays captured, but is never received."""

    def close(self) -> None:
        """Release everything."""
