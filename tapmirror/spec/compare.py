# SPDX-License-Identifier: Apache-2.0
"""Comparison: how far responses are compared, what does not count, and the bounds of it all."""

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
    # times and ages of this very response
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
    """How far responses are compared.  Each level includes those before it."""

    OFF = "off"
    STATUS = "status"
    """Status and times; bodies are skipped by their length."""
    HEADERS = "headers"
    BODY = "body"


HEADERS_BYTES: Final = 4096
"""Bytes captured of each of production's segments if only the head and the framing matter (also for the status alone,
because the whole head is read): nginx's own heads are shorter than 1 KiB; with cookies and policies some have 3 KiB."""
BODY_BYTES: Final = 65_536
"""The whole segment is captured."""


class Compare(Checked, frozen=True, kw_only=True):
    """How responses of production and the shadows are compared; short form: a level."""

    level: Level = Level.OFF
    """What is compared: `off`, `status` (and times), `headers`, `body`."""
    ignore_headers: tuple[str, ...] = ()
    """Fields to ignore, in addition to dates, identifiers and the like, which are always ignored."""
    all_headers: bool = False
    """Ignore only `ignore_headers`."""
    ignore_paths: tuple[str, ...] = ()
    """JSON members to ignore, with everything inside them: `meta.time`, `items[].id`; `**.id` at any depth,
    `meta.**` everything inside.  Also elements and attributes of XML: `feed.entry.updated` of each entry,
    `**.@id`."""
    ignore_patterns: tuple[str, ...] = ()
    """Regular expressions (RE2) for parts of texts to ignore: texts are compared without what matches."""
    float_tolerance: float = ROUNDING
    """Relative difference up to which numbers are equal.  The default covers rounding by another order of
    additions.  Two whole numbers must be equal, unless more is given."""
    time_tolerance: Seconds = 0.0
    """Difference in seconds up to which times (RFC 3339) are equal."""
    noise_probe: float = NOISE_PROBE
    """Percent of the safe requests (GET, HEAD, OPTIONS) that a shadow gets twice, to learn which values always
    differ.  Half of them are requests whose responses have just differed."""
    noise_relative: float = 20.0
    """Percent.  A field counts as different if its rate of differences and that of noise differ by more than this
    share of their sum, as in Diffy."""
    noise_absolute: float = 0.03
    """Percent of the exchanges by which the two rates must differ as well, as in Diffy."""
    endpoints: tuple[str, ...] = ()
    """Templates that are tried first: `/users/{name}/orders`, `GET /files/{path...}`.  Others are learned.  Where
    GraphQL, JSON-RPC or SOAP name an operation, its name is added: `POST /graphql getUser`."""
    samples: int = 3
    """Samples kept of each difference: the request as a curl command, and both responses."""
    redact: Redact | None = None
    """What is redacted in samples, in addition to the tap's own redaction; default: what `privacy: strict` names."""
    body_bytes: int = 64 << 10
    """Bytes of each body that are kept; most JSON is shorter.  Of longer bodies a hash is compared."""
    decoded_bytes: int = 256 << 10
    """Bytes of a decompressed body; 4 times `body_bytes`.  While a worker inspects two of them it does nothing
    else: about 50 ms at worst."""
    hash_bytes: int = 8 << 20
    """Bytes of a body that are hashed; of longer ones the length is compared."""
    held_bytes: int = 64 << 20
    """Bytes kept at one time for all requests in progress: heads, bodies, and about 1 KB for each request.  The
    default is enough for 2,000 requests a second to a shadow that answers none within `answer_time`.  A body that
    does not fit is hashed; a request that does not fit is not compared."""
    pending: int = 256
    """Requests in progress on one connection.  A client that pipelines more is rare, and its responses count as
    unpaired."""
    answer_time: Seconds = 30.0
    """Time-out for a response in seconds, from the start of the request."""
    max_exchanges: float = 2000.0
    """Exchanges a second that each worker compares; above this, connections take turns.  All are mirrored.
    120,000 a minute are enough, and comparing all would cost twice what mirroring does."""
    max_bodies: float = 2000.0
    """Exchanges a second whose bodies are compared, for bodies of up to 2 KB; longer ones that differ count
    several times, by their length.  Of the rest, status and times are compared."""
    max_timed: float = 250.0
    """Exchanges a second that are timed, selected at random; of the rest, status and content are compared.  Kernel
    timestamps, and waking up for each response, cost more than everything else."""
    max_endpoints: int = 100
    """Further endpoints are counted together as `other`.  100 are more than a page shows, and take about 5 MB. Up
    to three quarters of them may be operations that share a path; further ones are `{operation}`."""
    max_fields: int = 64
    """Differing fields of one endpoint; further ones are counted together as `other`."""
    max_samples: int = 200
    """Samples in total."""
    nodes: int = 20_000
    """JSON values, or XML elements, of one response that are inspected: about 5 ms at most."""
    differences: int = 32
    """Differences of one exchange that are counted."""

    @property
    def captured_bytes(self) -> int:
        """How many bytes of each of production's segments are captured."""
        return {Level.OFF: 0, Level.BODY: BODY_BYTES}.get(self.level, HEADERS_BYTES)

    @property
    def probes(self) -> bool:
        """Whether shadows get some requests twice, to see what differs by itself."""
        return self.level in (Level.HEADERS, Level.BODY) and self.noise_probe > 0

    def slips(self, *, probe_given: bool = False) -> Found:
        """As `TapSpec.slips`; `probe_given`: `noise_probe` was given, even if with the default value."""
        given = probe_given or self.noise_probe != NOISE_PROBE
        if self.level is Level.OFF and given:
            yield "noise_probe", "nothing is compared: set compare to a level"
        elif self.level is Level.STATUS and given and self.noise_probe:
            yield "noise_probe", "has no effect with level status: it needs headers or body"

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
