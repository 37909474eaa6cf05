# SPDX-License-Identifier: Apache-2.0
"""Comparison: how far answers are compared, what does not count, and the bounds of it all."""

from __future__ import annotations

import enum
import math
import re
from typing import Final

from tapmirror.spec.errors import Checked, Found, shown
from tapmirror.spec.match import TOKEN, regex_error
from tapmirror.spec.numbers import Seconds
from tapmirror.spec.rewrite import Redact

IGNORED_HEADERS: Final = (
    # times and ages of this very answer
    *("date", "age", "expires", "last-modified", "etag", "server-timing", "x-runtime", "x-response-time"),
    "x-envoy-upstream-service-time",
    # names of this very request
    *("x-request-id", "x-correlation-id", "x-trace-id", "request-id", "traceparent", "tracestate", "b3", "cf-ray"),
    *("x-b3-traceid", "x-b3-spanid", "x-amzn-trace-id", "x-amzn-requestid", "x-amz-request-id", "x-amz-id-2"),
    # of the connection, and the body's framing, which is compared with it (RFC 9110, 7.6.1)
    *("connection", "keep-alive", "transfer-encoding", "content-length", "upgrade", "via", "alt-svc"),
    # changing counters
    *("x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit-remaining", "ratelimit-reset"),
)
ROUNDING: Final = 1e-9
NOISE_PROBE: Final = 1.0
_TEMPLATE: Final = re.compile(r"(?:[A-Z]{1,20} )?/[!-~]{0,500}")


class Level(enum.Enum):
    """How far answers are compared.  Each level includes those before it."""

    OFF = "off"
    STATUS = "status"
    """Status and times; bodies are skipped by their length."""
    HEADERS = "headers"
    BODY = "body"


HEADERS_BYTES: Final = 4096
"""Captured of each segment of production where only the head and the framing matter, also for the status alone, which
ends with the head: nginx's own are below 1 KiB, cookies and policies make some of 3."""
BODY_BYTES: Final = 65_536
"""The whole segment."""


class Compare(Checked, frozen=True, kw_only=True):
    """How production's and the shadows' answers are compared; a level for short."""

    level: Level = Level.OFF
    """How far: `off`, `status` (and times), `headers`, `body`."""
    ignore_headers: tuple[str, ...] = ()
    """Fields that do not count, beside dates, identifiers and the like that are ignored anyway."""
    all_headers: bool = False
    """Only `ignore_headers` are ignored."""
    ignore_paths: tuple[str, ...] = ()
    """Members of JSON that do not count, with all within them: `meta.time`, `items[].id`; `**.id` at any depth,
    `meta.**` all within.  So do elements and attributes of XML, `feed.entry.updated` of each entry, `**.@id`."""
    ignore_patterns: tuple[str, ...] = ()
    """Expressions (RE2) for parts of texts that do not count: texts are compared without what matches."""
    float_tolerance: float = ROUNDING
    """Relative difference up to which numbers are equal.  What another order of additions makes is smaller; two whole
    numbers count exactly, unless more is given."""
    time_tolerance: Seconds = 0.0
    """Seconds up to which times (RFC 3339) are equal."""
    noise_probe: float = NOISE_PROBE
    """Percent of the safe requests (GET, HEAD, OPTIONS) that a shadow gets twice, to see what differs by itself; half
    are of those whose answers have just differed."""
    noise_relative: float = 20.0
    """Percent: a field counts as different if its rate of differences and that of noise differ by more than this,
    of their sum.  As Diffy."""
    noise_absolute: float = 0.03
    """Percent of the exchanges, by which they must differ as well.  As Diffy."""
    endpoints: tuple[str, ...] = ()
    """Templates that are tried first: `/users/{name}/orders`, `GET /files/{path...}`; others are learned.  Where
    GraphQL, JSON-RPC or SOAP name an operation, its name stands behind it: `POST /graphql getUser`."""
    samples: int = 3
    """Kept of each difference: the request as a curl line, and both answers."""
    redact: Redact | None = None
    """What is taken out of samples, beside what the tap takes out of requests; without it what `privacy: strict`
    names."""
    body_bytes: int = 64 << 10
    """Of each body that are kept.  Most JSON is shorter; of what is longer a hash is compared."""
    decoded_bytes: int = 256 << 10
    """Of a body once it is decompressed; 4 times `body_bytes`.  While a worker looks into two of them it does
    nothing else: some 50 ms at worst."""
    hash_bytes: int = 8 << 20
    """Of a body; of what is longer the length is compared."""
    held_bytes: int = 16 << 20
    """Of heads and bodies kept at one time, of all requests under way.  A body that finds no room is hashed; a request
    whose heads find none is not compared."""
    pending: int = 256
    """Requests under way on one connection.  A client that pipelines more is rare, and its answers count unpaired."""
    answer_time: Seconds = 30.0
    """Seconds for an answer, from the start of the request: then the shadow timed out."""
    max_exchanges: float = 2000.0
    """A second that each worker compares, of connections that take turns; mirrored are all.  120,000 a minute tell
    enough, and all of them would cost twice what mirroring does."""
    max_bodies: float = 2000.0
    """A second whose bodies are compared, of up to 2 KB: longer ones that differ count as so many as they are long.  Of
    the others status and times."""
    max_timed: float = 250.0
    """A second whose times are taken, drawn by chance; of the others status and content are compared.  Asking the
    kernel for stamps, and waking up for each answer, costs more than all else does."""
    max_endpoints: int = 100
    """What comes after them is one more, called other.  More than a page shows; 100 take about 5 MB.  Three quarters
    of them may be operations that share paths, more are `{operation}`."""
    max_fields: int = 64
    """Differing fields of one endpoint; what comes after them is one more, called other."""
    max_samples: int = 200
    """In all."""
    nodes: int = 20_000
    """JSON values, or elements of XML, of one answer that are looked at: some 5 ms at most."""
    differences: int = 32
    """Of one exchange that are counted."""

    @property
    def captured_bytes(self) -> int:
        """How much of each of production's segments is captured."""
        return {Level.OFF: 0, Level.BODY: BODY_BYTES}.get(self.level, HEADERS_BYTES)

    @property
    def probes(self) -> bool:
        """Whether shadows get some requests twice, to see what differs by itself."""
        return self.level in (Level.HEADERS, Level.BODY) and self.noise_probe > 0

    def slips(self) -> Found:
        """As of `TapSpec`."""
        if self.level is Level.OFF and self.noise_probe != NOISE_PROBE:
            yield "noise_probe", "nothing is compared: set compare to a level"

    def _check(self) -> Found:
        for i, name in enumerate(self.ignore_headers):
            if not TOKEN.fullmatch(name):
                yield f"ignore_headers[{i}]", f"{shown(name)} is not a field name"
        if self.all_headers and self.level in (Level.OFF, Level.STATUS):
            yield "all_headers", f"has no effect with level: {self.level.value}"
        for i, path in enumerate(self.ignore_paths):
            if not path or len(path) > 200:
                yield f"ignore_paths[{i}]", f"{shown(path)} is not a path of up to 200 characters"
        for i, text in enumerate(self.ignore_patterns):
            wrong = regex_error(text)
            if wrong:
                yield f"ignore_patterns[{i}]", wrong
        for i, template in enumerate(self.endpoints):
            if not _TEMPLATE.fullmatch(template):
                yield f"endpoints[{i}]", f"{shown(template)} is not a path, or a method and a path"
        for name in sorted(PERCENT):
            if not 0 <= getattr(self, name) <= 100:
                yield name, f"{getattr(self, name)} is not between 0 and 100"
        for name in ("float_tolerance", "time_tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                yield name, f"{getattr(self, name)} is not a number from 0 on"
        for name in ("answer_time", "max_exchanges", "max_bodies", "max_timed"):
            if not 0 < getattr(self, name) < math.inf:
                yield name, f"{getattr(self, name)} is not a number above 0"
        for name, low, high in _RANGES:
            if not low <= getattr(self, name) <= high:
                yield name, f"{getattr(self, name)} is not between {low} and {high}"


PERCENT: Final = frozenset({"noise_probe", "noise_relative", "noise_absolute"})
"""Fields that are shares of 100."""
_RANGES: Final = (
    ("samples", 0, 100),
    ("body_bytes", 0, 16 << 20),
    ("decoded_bytes", 1, 64 << 20),
    ("hash_bytes", 0, 1 << 40),
    ("held_bytes", 0, 1 << 32),
    ("pending", 1, 10_000),
    ("max_endpoints", 1, 10_000),
    ("max_fields", 1, 10_000),
    ("max_samples", 0, 10_000),
    ("nodes", 1, 10_000_000),
    ("differences", 1, 1000),
)
