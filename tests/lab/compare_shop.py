# SPDX-License-Identifier: Apache-2.0
"""A small service and its next version in three variants: what comparison says of each, with its defaults.

    sudo scripts/compare-shop [--requests N] [same] [broken] [slow]

    same     nothing may be said to differ, in spite of times, identifiers and random order
    broken   a fault in 1 % of the requests of one endpoint is to be found and named, and its sample to show it
    slow     20 % more time at the 99th percentile is to be measured, within 5 %; the verdict may be undecided yet,
             after so few requests, and must not be that it is fast enough

Exit status 0: all as it should be.  The load is low, so that the shadow does not compete with production for the
processors, as it would not on a host of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Final

from lab import Lab, load
from lab.shop import Shop, SlowShop
from lab.tap import Tap
from tapmirror.cli.compared import all_figures
from tapmirror.compare.figures import Figures
from tapmirror.compare.noise import Nature
from tapmirror.compare.verdict import Outcome, VerdictLimits

PATHS: Final = ("/users/", "/orders/", "/page/")
RATE: Final = 1500
SLOW_RATE: Final = 400
"""Its responses take 10 to 50 ms, in one process each."""
FAIR: Final = 0.05
FAULT: Final = '"total":null'


def compared(lab: Lab, requests: int, level: str, rate: int, paths: tuple[str, ...], connections: int) -> Figures:
    """What comparison says of so many requests; nothing of them may be lost."""
    with Tap(lab.node, shadow=f"{lab.shadow.addr4}:80", protocol="http", compare=level) as tap:
        result = load(lab.client, lab.node.addr4, requests=requests, rate=rate, paths=paths, connections=connections)
        ledger = tap.stop()
    (figures,) = all_figures([ledger], VerdictLimits())
    print(
        f"  {result.answered:,} requests answered, {result.failed:,} failed; {figures.paired:,} paired, "
        f"{figures.unpaired or 'none'} unpaired"
    )
    for check in figures.verdict.checks:
        print(f"  {check.name}: {check.estimate:.5f} ({check.low:.5f} to {check.high:.5f}): {check.outcome.value}")
    return figures


def said(figures: Figures) -> Iterator[str]:
    """The fields that are said to differ."""
    for endpoint in figures.endpoints:
        for field in endpoint.fields:
            if field.nature is not Nature.NOISE:
                share = f"{100 * field.raw:.2f} % of {endpoint.compared:,}"
                yield f"{endpoint.name} {field.kind} {field.path}: {share}, {field.nature.value}"


def same(lab: Lab, requests: int) -> bool:
    """Whether nothing is said to differ; of a load that catches up, for the host stalled, a part is not compared."""
    with Shop(lab.node), Shop(lab.shadow):
        figures = compared(lab, requests, "body", RATE, PATHS, 16)
    found = [*said(figures)]
    print(f"  said to differ: {found or 'nothing'}; noise: {sorted(noise(figures))}")
    return not found and figures.paired + figures.unpaired.get("thinned", 0) == requests


def noise(figures: Figures) -> set[str]:
    """Paths that are taken for noise."""
    return {field.path for endpoint in figures.endpoints for field in endpoint.fields if field.nature is Nature.NOISE}


def broken(lab: Lab, requests: int) -> bool:
    """Whether the fault is found and named, and shown by its sample."""
    with Shop(lab.node), Shop(lab.shadow, broken="1%"):
        figures = compared(lab, requests, "body", RATE, PATHS, 16)
        found = [*said(figures)]
        print(f"  said to differ: {found or 'nothing'}")
        samples = [
            sample
            for endpoint in figures.endpoints
            for field in endpoint.fields
            if field.nature is Nature.DIFFERENT
            for sample in field.samples
        ]
        shown = [lab.node.run(["bash", "-c", sample.curl]).stdout for sample in samples]
    right = sum(FAULT in text for text in shown)
    print(f"  {right} of {len(shown)} samples show it when they are run")
    wanted = [each.startswith("GET /orders/{id} type body.total: ") and each.endswith("different") for each in found]
    return wanted == [True] and 0 < right == len(shown)


def slow(lab: Lab, requests: int) -> bool:
    """Whether the slower tail is measured."""
    with SlowShop(lab.node), SlowShop(lab.shadow, slower=1.2):
        figures = compared(lab, min(requests, 40_000), "status", SLOW_RATE, ("/a/",), 32)
    (endpoint,) = figures.endpoints
    ratio = endpoint.shadow.last["p99"] / endpoint.production.last["p99"]
    print(f"  p99 {endpoint.production.last['p99']:.2f} ms and {endpoint.shadow.last['p99']:.2f} ms: x{ratio:.3f}")
    outcome = next(check.outcome for check in figures.verdict.checks if check.name == "p99 ratio")
    undecided = " (it may take more requests than these)" if outcome is Outcome.UNDECIDED else ""
    print(f"  verdict on p99: {outcome.value}{undecided}")
    return abs(ratio / 1.2 - 1) <= FAIR and outcome is not Outcome.PASS


VARIANTS: Final[dict[str, Callable[[Lab, int], bool]]] = {"same": same, "broken": broken, "slow": slow}


def main() -> None:
    parser = argparse.ArgumentParser(prog="compare-shop")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", default=[])
    given = parser.parse_args()
    wrong = []
    with Lab() as lab:
        for name in given.variants or VARIANTS:
            print(f"{name}:", flush=True)
            good = VARIANTS[name](lab, given.requests)
            print(f"  {'as it should be' if good else 'NOT as it should be'}", flush=True)
            wrong += [] if good else [name]
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
