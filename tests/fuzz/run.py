# SPDX-License-Identifier: Apache-2.0
"""`scripts/fuzz`: atheris on one target after the other; and a short run without it, for the suite."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from fuzz.targets import TARGETS, seeds

INPUTS: Final = Path(__file__).parent / "inputs"
LONGEST: Final = 4_096
"""Bytes of an input."""


def kept(target: str) -> list[Path]:
    """Inputs that once went wrong."""
    return sorted(path for path in (INPUTS / target).glob("*") if path.is_file())


def mutated(data: bytes, others: list[bytes], rand: random.Random) -> bytes:
    """A neighbour of an input: bytes changed, put in, left out, repeated, or of another."""
    found = bytearray(data)
    for _ in range(rand.randint(1, 6)):
        at = rand.randrange(len(found) + 1)
        size = min(rand.choice([1, 1, 2, 4, 16, 64]), len(found) - at)
        what = rand.randrange(6)
        if what == 0 and at < len(found):
            found[at] = rand.choice([0, 1, 0x7F, 0x80, 0xFF, rand.randrange(256), found[at] ^ 1 << rand.randrange(8)])
        elif what == 1:
            found[at:at] = rand.randbytes(rand.choice([1, 2, 8]))
        elif what == 2:
            del found[at : at + size]
        elif what == 3:
            found[at:at] = found[at : at + size]
        elif what == 4:
            other = rand.choice(others)
            place = rand.randrange(len(other) + 1)
            found[at : at + size] = other[place : place + rand.choice([4, 16, 64])]
        else:
            found[at : at + size] = bytes(reversed(found[at : at + size]))
    return bytes(found[:LONGEST])


def short_run(target: str, count: int, seed: int) -> None:
    """Feed `count` neighbours of the seeds, and neighbours of those."""
    rand = random.Random(seed)
    run = TARGETS[target]
    pool = [*seeds(target), *(path.read_bytes() for path in kept(target))]
    for data in pool:
        run(data)
    for n in range(count):
        data = mutated(rand.choice(pool), pool, rand)
        try:
            run(data)
        except Exception as error:
            raise AssertionError(f"{target}: {data.hex()}") from error
        if n % 50 == 0:
            pool.append(data)


def fuzz(target: str) -> None:
    """Run atheris, with the rest of the command line for libFuzzer."""
    import atheris

    with atheris.instrument_imports(include=["tapmirror"]):
        for name in [name for name in sys.modules if name.startswith(("tapmirror", "fuzz.targets"))]:
            del sys.modules[name]
        targets = importlib.import_module("fuzz.targets")
    atheris.Setup(sys.argv, targets.TARGETS[target])
    atheris.Fuzz()


def main() -> int:
    """All targets for a time each, or one of them in this process (`--one`)."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz what reads the network's bytes.")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="only this; repeatable")
    parser.add_argument("--seconds", type=int, default=60, help="for each (%(default)s)")
    parser.add_argument("--one", choices=sorted(TARGETS), help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.one:
        sys.argv[1:] = rest
        fuzz(options.one)
        return 0
    bad = 0
    for target in options.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix="tapmirror-fuzz-") as folder:
            corpus, found = Path(folder, "corpus"), Path(folder, "found")
            corpus.mkdir()
            found.mkdir()
            for data in [*seeds(target), *(path.read_bytes() for path in kept(target))]:
                (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
            limits = [f"-max_total_time={options.seconds}", f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=1024"]
            command = [sys.executable, "-m", "fuzz.run", "--one", target, f"-artifact_prefix={found}/", *limits, corpus]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [line for line in done.stderr.splitlines() if line.startswith("#") and "cov:" in line]
            print(f"{target}: {lines[-1] if lines else done.stderr[-500:]}", flush=True)
            for path in found.iterdir():
                bad += 1
                (INPUTS / target).mkdir(parents=True, exist_ok=True)
                (INPUTS / target / path.name).write_bytes(path.read_bytes())
                print(done.stderr[-3_000:], f"kept: {INPUTS / target / path.name}", sep="\n", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
