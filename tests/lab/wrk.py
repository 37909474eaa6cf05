# SPDX-License-Identifier: Apache-2.0
"""wrk: the heaviest load for its CPU.  It counts what was answered; what is under way at its end is cut."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from lab.hosts import PATIENCE, Host, LabError

UNIT: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


class WrkResult(msgspec.Struct, frozen=True, kw_only=True):
    """What wrk reports; times in milliseconds."""

    requests: int
    errors: int
    """Socket errors and responses other than 2xx and 3xx."""
    rate: float
    p50: float
    p99: float


def command(
    url: str, *, connections: int = 32, threads: int = 1, duration: float = 10.0, script: str = ""
) -> list[str]:
    """The command line; whole seconds.  `script`: a file in Lua.  A response that is late is no error."""
    often = [f"-c{connections}", f"-t{threads}", f"-d{max(1, round(duration))}s", f"--timeout={PATIENCE:.0f}s"]
    return ["wrk", "--latency", *often, *(["-s", script] if script else []), url]


def pause(milliseconds: int) -> str:
    """A script: each connection waits so long before each request."""
    return f"function delay() return {milliseconds} end\n"


def wrk(host: Host, url: str, *, connections: int = 32, threads: int = 1, duration: float = 10.0) -> WrkResult:
    """Run wrk from a host."""
    words = command(url, connections=connections, threads=threads, duration=duration)
    return parse(host.run(words, timeout=duration + 30).stdout)


def parse(output: str) -> WrkResult:
    """Read what wrk printed."""

    def percentile(name: str) -> float:
        found = re.search(rf"^\s+{name}%\s+([\d.]+)(us|ms|s|m)\s*$", output, re.MULTILINE)
        return float(found[1]) * UNIT[found[2]] if found else 0.0

    done = re.search(r"(\d+) requests in ", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if done is None or rate is None:
        raise LabError(f"wrk printed no result: {output.strip()}")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    return WrkResult(
        requests=int(done[1]),
        errors=(sum(map(int, errors.groups())) if errors else 0) + (int(refused[1]) if refused else 0),
        rate=float(rate[1]),
        p50=percentile("50"),
        p99=percentile("99"),
    )
