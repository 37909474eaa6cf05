# SPDX-License-Identifier: Apache-2.0
"""The command: scenarios by their number, one line for each run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from lab.hosts import LabError, leave_on_signals
from lab.network import Lab
from lab.scenarios import Outcome, Scenario
from lab.scenarios.deaths import killed
from lab.scenarios.flood import flooded
from lab.scenarios.midstream import joined
from lab.scenarios.shadows import down, endless, unread
from lab.scenarios.stopped import stopped
from lab.scenarios.tuples import used_again

HEAD: Final = b"HTTP/1.1 200 OK\r\n%b"
SCENARIOS: Final[dict[int, dict[str, Scenario]]] = {
    1: {"processes killed under load": killed},
    2: {
        "shadow that refuses connections": partial(down, how="refused"),
        "shadow that does not answer at all": partial(down, how="black-holed"),
    },
    4: {
        "worker stopped for 5 s": partial(stopped, factor=1),
        "worker stopped for 5 s, 10 times the load": partial(stopped, factor=10),
    },
    6: {"50,000 ports used again": used_again},
    7: {
        "SYN flood of 200,000": partial(flooded, count=200_000),
        "SYN flood of 1,000,000": partial(flooded, count=1_000_000),
    },
    10: {
        "1,000 connections to a shadow that does not read": partial(unread, read_rate=0.0),
        "1,000 connections to a shadow that reads 1 byte/s": partial(unread, read_rate=1.0),
    },
    11: {
        "responses of 10 GB": partial(endless, start=HEAD % b"Content-Length: 10000000000\r\n\r\n", again=b"x"),
        "responses with endless headers": partial(endless, start=HEAD % b"", again=b"X: a\r\n"),
        "responses in endless chunks of 1 byte": partial(
            endless, start=HEAD % b"Transfer-Encoding: chunked\r\n\r\n", again=b"1\r\nx\r\n"
        ),
        "responses that are not HTTP": partial(endless, start=b"\x00\xff", again=b"garbage"),
    },
    20: {"10,000 connections in mid-stream": joined},
}
CAPTURES: Final = ("ebpf", "packet")
OF_SHADOWS: Final = (2, 10, 11)
"""About what is done with shadows; how it was captured is the same to that, so once is enough."""


def run(numbers: Sequence[int], captures: Sequence[str], scale: float) -> bool:
    """Run these, each in a lab of its own, and print what was seen; whether everything held."""
    held = True
    for number in numbers:
        for name, scenario in SCENARIOS[number].items():
            for capture in captures[:1] if number in OF_SHADOWS else captures:
                began = time.monotonic()
                outcome = of(scenario, capture, scale)
                held = held and not outcome.wrong
                verdict = f"does not hold ({'; '.join(outcome.wrong)})" if outcome.wrong else "holds"
                seconds = time.monotonic() - began
                figures = "; ".join(outcome.figures)
                print(f"{number} {name}, {capture}: {verdict}: {figures} ({seconds:.0f} s)", flush=True)
    return held


def of(scenario: Scenario, capture: str, scale: float) -> Outcome:
    """One run."""
    with Lab() as lab:
        try:
            return scenario(lab, capture, scale)
        except LabError as error:
            return Outcome(wrong=[" ".join(str(error).split())])


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0 if everything held."""
    parser = argparse.ArgumentParser(prog="scripts/scenarios")
    parser.add_argument("numbers", type=int, nargs="*", metavar="NUMBER", help=f"of {', '.join(map(str, SCENARIOS))}")
    parser.add_argument("--capture", choices=CAPTURES, help="only this one (default: each)")
    parser.add_argument("--scale", type=float, default=1.0, help="of what is counted or lasts (%(default)s)")
    options = parser.parse_args(words)
    if unknown := set(options.numbers) - SCENARIOS.keys():
        parser.error(f"not here: {', '.join(map(str, sorted(unknown)))}")
    leave_on_signals()
    captures = (options.capture,) if options.capture else CAPTURES
    return 0 if run(options.numbers or [*SCENARIOS], captures, options.scale) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"scenarios: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
