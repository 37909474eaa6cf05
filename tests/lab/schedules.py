# SPDX-License-Identifier: Apache-2.0
"""Schedules to ask the oracle about, and what a tap makes of their packets, live and from a file."""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass

from lab.hosts import LabError, leave_on_signals
from lab.oracle import PORT, Oracle, Outcome, Step
from tapmirror.admission import Admission
from tapmirror.events import ACK, FIN, FROM_SERVER, LOOP_DSCP, PSH, RST, SYN, URG, End, Gap
from tapmirror.flows import BEGINS, FlowTable
from tapmirror.ledger import Ledger
from tapmirror.packet import decode
from tapmirror.spec import Limits
from tapmirror.streams import StreamTable
from tapmirror.tcp import MASK


@dataclass
class Reading:
    """What a tap passed on, and how it saw the stream end ("", "fin", "reset")."""

    read: bytes = b""
    ended: str = ""
    gaps: int = 0
    unaccounted: tuple[int, int] = (0, 0)


def reading(outcome: Outcome) -> Reading:
    """Feed a live tap's stages with the packets of a connection, in their order."""
    ledger = Ledger()
    table = FlowTable(Limits(), 0, ledger)
    admission = Admission(
        ports=[PORT],
        addrs=[],
        excluded=[],
        threshold=1 << 32,
        seed=0,
        dscp=LOOP_DSCP,
        egress_all=False,
    )
    found = Reading()
    given = [0, 0]
    for now, (outgoing, frame) in enumerate(outcome.packets):
        header = decode(memoryview(frame), len(frame))
        if header is None:
            continue
        for segment in admission.admit(header, outgoing, now):
            if segment[4] and not segment[1] & FROM_SERVER:
                given[0] += 1
                given[1] += segment[4]
            if segment[1] & BEGINS:
                begun, waited = table.accept(segment, now / 1e6)
                events = [*begun, *(event for each in waited for event in table.feed(each, now / 1e6))]
            else:
                events = [*table.feed(segment, now / 1e6)]
            for _, chunk, _ in events:
                if isinstance(chunk, End):
                    found.ended = found.ended or ("reset" if chunk.reset else "fin")
                elif isinstance(chunk, Gap):
                    found.gaps += 1
                elif isinstance(chunk, bytes | memoryview):
                    found.read += chunk
        for key, wanted in table.ack_requests:
            admission.want_ack(key, wanted)
        table.ack_requests.clear()
    segments, size = table.held()
    found.unaccounted = (
        given[0] - ledger.segments.settled() - segments,
        given[1] - ledger.bytes.settled() - size - len(found.read),
    )
    return found


def reading_of_file(outcome: Outcome) -> bytes:
    """The same from a capture file: the client's bytes up to the first hole."""
    table = StreamTable(Limits(), Ledger(), [PORT])
    read, whole = b"", True
    for now, (_, frame) in enumerate([*outcome.packets, (False, b"")]):
        header = decode(memoryview(frame), len(frame))
        events = table.feed(header, now / 1e6) if header is not None else table.close()
        for stream, chunk, _ in events:
            whole = whole and not (stream.is_client and isinstance(chunk, Gap))
            if whole and stream.is_client and not isinstance(chunk, Gap | End):
                read += chunk
    return read


def ambiguous(steps: list[Step]) -> bool:
    """Whether the outcome depends on what is not on the wire: see the theory of operation in tapmirror/tcp.py.

    A held segment may follow directly on one of two others, where another covers its first byte.
    """
    spans = [(step.at, step.at + len(step.data) + bool(step.flags & FIN)) for step in steps]
    for n, (start, _) in enumerate(spans):
        others = spans[:n] + spans[n + 1 :]
        ends_here = any(end == start and begin < end for begin, end in spans)
        if ends_here and any(begin <= start < end for begin, end in others):
            return True
    return False


def random_steps(rand: random.Random) -> list[Step]:
    """A schedule of segments with differing overlaps, mostly without flags that end it."""
    steps = []
    for _ in range(rand.randint(1, 9)):
        flags = ACK | (PSH if rand.random() < 0.3 else 0)
        size = rand.randint(0, 5)
        urgent = 0
        chance = rand.random()
        if chance < 0.08:
            flags |= FIN
        elif chance < 0.12:
            flags |= RST | rand.choice((0, 0, 0, SYN, FIN, SYN | FIN))
            size = rand.choice((0, 0, size))
        elif chance < 0.15:
            flags |= SYN
        elif chance < 0.25:
            flags |= URG
            urgent = rand.randint(0, 7)
        elif chance < 0.28:
            flags &= ~ACK
        steps.append(
            Step(rand.randint(-3, 14), bytes(rand.choices(b"abcdefghijklmnopqrstuvwxyz", k=size)), flags, urgent)
        )
    return steps


def show(steps: list[Step]) -> str:
    """A schedule, to be read and pasted into a test."""
    return "[" + ", ".join(f"Step({s.at}, {s.data!r}, {s.flags:#x}, {s.urgent})" for s in steps) + "]"


def spoke(outcome: Outcome, first: int) -> bool:
    """Whether production said anything of the connection after its SYN-ACK.

    Until then it is none, and it says nothing if it is reset before it delays its first acknowledgement no longer.
    """
    server = None
    for outgoing, frame in outcome.packets:
        header = decode(memoryview(frame), len(frame)) if outgoing else None
        if header is None:
            continue
        if header.flags & SYN:
            if server not in (None, header.seq):  # it was reset, and a SYN of the schedule began the next one
                return False
            server = header.seq
        elif header.length or header.flags & FIN or (header.flags & ACK and header.ack != first & MASK):
            return True
    return False


def differs(oracle: Oracle, steps: list[Step], first: int) -> str | None:
    """Ask the kernel about a schedule; how the tap's reading is another, in words, or None."""
    outcome = oracle.ask(steps, first)
    found = reading(outcome)
    wanted = Reading(outcome.read, outcome.ended) if spoke(outcome, first) else Reading()
    return None if found == wanted else f"production read {wanted}, the tap {found}"


def shrunk(oracle: Oracle, steps: list[Step], first: int) -> list[Step]:
    """The schedule without the segments that the difference does not need."""
    for n in range(len(steps)):
        fewer = steps[:n] + steps[n + 1 :]
        if fewer and not ambiguous(fewer) and differs(oracle, fewer, first):
            return shrunk(oracle, fewer, first)
    return steps


def main() -> int:
    """`scripts/oracle`: random schedules, for as long as is wanted."""
    parser = argparse.ArgumentParser(
        prog="scripts/oracle", description="Compare reassembly with the Linux kernel on random schedules of segments."
    )
    parser.add_argument("--count", type=int, default=100_000, help="of schedules (%(default)s: half a minute)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    leave_on_signals()
    rand = random.Random(options.seed)
    asked = skipped = bad = 0
    with Oracle() as oracle:
        while asked < options.count and bad < 10:
            steps, first = random_steps(rand), rand.choice([1000, 0xFFFFFFF8])
            if ambiguous(steps):
                skipped += 1
                continue
            asked += 1
            if differs(oracle, steps, first):
                bad += 1
                steps = shrunk(oracle, steps, first)
                print(f"{show(steps)}, first {first}:\n    {differs(oracle, steps, first)}", flush=True)
    print(f"{asked:,} schedules, {bad} read otherwise; {skipped:,} not asked: their outcome is not decided on the wire")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"oracle: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
