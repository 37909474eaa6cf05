# SPDX-License-Identifier: Apache-2.0
"""Where segments come from.  All sources yield the same record; nothing after them can tell which it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

import msgspec

from tapmirror.events import FlowKey, Segment

ENDLESS: Final = 1 << 62
"""More bytes than there are."""


def nothing() -> None:
    """What is left to do with segments that are done with at once."""


class Counters(msgspec.Struct, frozen=True):
    """(records, bytes) since the start, as `enum tap_count` of bpf/tap.h counts them.

    seen, emitted, sampled_out, loop, ring_full, fragment and client count segments with payload from client to
    production, so that seen is the sum of the others of these.  The rest count packets.
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
    answers: tuple[int, int]
    answers_lost: tuple[int, int]


class Source(Protocol):
    """A capture that is being read."""

    @property
    def received(self) -> tuple[int, int]:
        """Segments with payload from client to production, and their bytes, that `read` has yielded, also to a worker
        before us.
        """

    cut: bool
    """The last `read` left something for its bound of bytes."""

    def fileno(self) -> int:
        """Readable while there is something to read."""

    def read(self, limit: int, size: int = ENDLESS, finish: Callable[[], object] = nothing) -> Iterator[Segment]:
        """Yield at most `limit` of the segments that are there now, and none after so many bytes of the capture.

        The payloads of several segments are valid at a time.  `finish` is called before they are not any more: it does
        what is left to do with those that were yielded by then.  Who leaves it in the middle, having done that, gets
        the others next time.
        """

    def empty(self) -> bool:
        """Nothing is there to be read."""

    def age(self, now: float) -> float:
        """Seconds from the capture of what will be read next to `now` (CLOCK_MONOTONIC); 0: nothing is there."""

    def want_ack(self, key: FlowKey, wanted: bool) -> None:
        """Begin or stop to yield production's acknowledgements of this flow (and of those in its bucket)."""

    def want_answers(self, first: int, count: int) -> None:
        """Yield production's payload too, of the flows in so many of the 65,536 buckets from `first` on and around."""

    def keep_answers(self, key: FlowKey, wanted: bool) -> None:
        """The same of this flow's bucket, wherever these are."""

    def counters(self) -> Counters:
        """What the capture counted."""

    def fill(self) -> float:
        """How full the ring is, from 0 to 1."""

    def set_threshold(self, threshold: int) -> None:
        """From here on take only flows whose hash is below it, where this is not decided in the kernel."""

    def woken(self) -> None:
        """The descriptor is readable, or has an error."""

    def stop(self) -> None:
        """Capture nothing more; what is there can still be read."""

    def discard(self) -> None:
        """Read nothing more: what is there is captured and not received."""

    def close(self) -> None:
        """Let go of everything."""
