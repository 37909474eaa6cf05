# SPDX-License-Identifier: Apache-2.0
"""`Sampled` as a decision: is this request (this connection) among the share that is mirrored?

Theory of operation
-------------------
A hash of 32 bits is compared with a threshold: what is selected at 10 % is also selected at 20 %, and the same seed
gives the same selection again.  The hash is of the connection (as bpf/tap.c computes it), of the connection and the
request's number on it, or of a key in the request.  Each level (tap, rule, mirror, shadow) mixes in its own salt, so
that half of a half is a quarter.  All shadows share one salt, so that two shadows with 10 % each get the same requests
and can be compared.

A ramp is a threshold that moves: connections keep what was decided when they began.

Caps are token buckets (as in tc-tbf(8)) that hold one second's worth.  A bucket of bytes may go into debt, because the
length of a request need not be known when it begins.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from tapmirror.events import FlowKey
from tapmirror.packet import flow_hash
from tapmirror.policy.request import Request
from tapmirror.spec import By, Sampled
from tapmirror.spec.sampled import FULL, steps, threshold

TAP: Final = 0
RULE: Final = 1
MIRROR: Final = 2
SHADOW: Final = 3
_SALTS: Final = (0x2545F491, 0x6C62272E, 0x1B873593, 0x7FEB352D)
_ALL: Final = 1 << 32


def mix(value: int) -> int:
    """The finaliser of MurmurHash3: each bit of 32 depends on each."""
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return value ^ (value >> 16)


class SampledConnection:
    """What sampling knows of a production connection."""

    __slots__ = ("hash", "key", "number", "since")

    def __init__(self, key: FlowKey, seed: int, now: float) -> None:
        self.key = key
        self.hash = flow_hash(key, seed)
        self.number = 0
        """Number of the connection's request that is decided on, counted from 1."""
        self.since = now


class Bucket:
    """Tokens at a rate a second, at most one second's worth (and one)."""

    __slots__ = ("_at", "_most", "_rate", "_tokens")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(rate, 1.0)
        self._tokens = self._most
        self._at: float | None = None

    def allows(self, least: float, now: float) -> bool:
        """Whether there are at least `least` tokens."""
        if self._at is not None:
            self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return self._tokens >= least

    def take(self, tokens: float) -> None:
        """Take tokens, into debt if need be."""
        self._tokens -= tokens


class Sampler:
    """The share of one `Sampled` at one level."""

    def __init__(self, spec: Sampled, level: int, seed: int) -> None:
        self._by = spec.by
        self._salt = mix(seed ^ _SALTS[level])
        self._kernels = level == TAP
        self._ramp = spec.ramp
        self._began: float | None = None
        self._steps = steps(spec.percent)
        self._threshold = threshold(spec.percent)
        self._even = 0
        self._key = key_reader(spec.key) if spec.key is not None else None
        self._requests = Bucket(spec.max_requests) if spec.max_requests is not None else None
        self.bytes = Bucket(spec.max_bytes) if spec.max_bytes is not None else None
        """The bucket that is charged with the bytes that pass; None: they have no cap."""
        self.always = spec.most() == 100 and spec.ramp is None
        """Whether every request is in the share (a cap may still say no)."""
        self.capped = self._requests is not None or self.bytes is not None

    def begin(self, at: float) -> None:
        """Say when the ramp began; otherwise it begins with the first decision."""
        self._began = at

    def set_percent(self, percent: float) -> None:
        """Change the share; a ramp is over then."""
        self._ramp = None
        self._steps = steps(percent)
        self._threshold = threshold(percent)
        self.always = percent == 100

    def takes_connection(self, talk: SampledConnection) -> bool:
        """Whether the connection is in the share; for `by: connection` only."""
        return self.always or self._connection(talk) < self._limit(talk.since)

    def takes(self, request: Request, talk: SampledConnection, now: float) -> bool:
        """Whether the request is in the share."""
        if self.always:
            return True
        if self._by is By.EXACT:
            return self._evenly(now)
        if self._by is By.CONNECTION:
            return self._connection(talk) < self._limit(talk.since)
        if self._by is By.REQUEST:
            return mix(mix(talk.hash ^ self._salt) ^ (talk.number * 0x9E3779B1 & 0xFFFFFFFF)) < self._limit(now)
        value = self._key(request) if self._key is not None else None
        if value is None:
            value = request.client
        return mix(zlib.crc32(value) ^ self._salt) < self._limit(now)

    def within_cap(self, now: float) -> bool:
        """Whether the caps allow one more request, which is counted then."""
        if self.bytes is not None and not self.bytes.allows(1.0, now):
            return False
        if self._requests is not None:
            if not self._requests.allows(1.0, now):
                return False
            self._requests.take(1.0)
        return True

    def percent(self, now: float) -> float:
        """The share at this time, in percent."""
        if self._ramp is None:
            return self._steps * 100 / FULL
        if self._began is None:
            self._began = now
        passed = min(1.0, max(0.0, (now - self._began) / self._ramp.over))
        return self._ramp.start + (self._ramp.end - self._ramp.start) * passed

    def _connection(self, talk: SampledConnection) -> int:
        """The connection's hash at this level; at the tap's it is the one that the kernel compared."""
        return talk.hash if self._kernels else mix(talk.hash ^ self._salt)

    def _limit(self, now: float) -> int:
        return self._threshold if self._ramp is None else threshold(self.percent(now))

    def _evenly(self, now: float) -> bool:
        self._even += self._steps if self._ramp is None else steps(self.percent(now))
        if self._even < FULL:
            return False
        self._even -= FULL
        return True


def key_reader(key: str) -> Callable[[Request], bytes | None]:
    """The function that reads a key (`header:NAME`, …) of a request; it gives None if there is none."""
    kind, _, name = key.partition(":")
    wanted = name.encode()
    if kind == "header":
        lower = wanted.lower()
        return lambda request: request.fields.get(lower)
    if kind == "cookie":
        return lambda request: request.cookies.get(wanted)
    if kind == "query":
        return lambda request: request.parameters.get(wanted)
    if kind == "jwt":

        def claim(request: Request) -> bytes | None:
            found = request.claims.get(name)
            return str(found).encode("utf-8", "replace") if isinstance(found, str | int | float) else None

        return claim
    return lambda request: request.client
