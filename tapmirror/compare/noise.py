# SPDX-License-Identifier: Apache-2.0
"""What differs by itself and so says nothing about the shadow: times, identifiers, random order.

Theory of operation
-------------------
Two kinds of pairs show it, without a second production:

* A *probe*: a safe request that the shadow got twice.  Its two answers come from the same version.
* A *repeat*: the same request (method, target, fields that choose an answer) that production answered again later.

Noise is what both show.  A field that differs among probes only is a shadow that cannot make up its mind where
production can; one that differs among repeats only is data that changed in between.

A field of an endpoint has a raw rate (of exchanges in which it differs) and a noise rate (of such pairs).  It counts
as different when both are further apart than Diffy's thresholds (Twitter 2015): relatively, |raw - noise| / (raw +
noise), and absolutely.  Diffy has as many noise pairs as exchanges; here they are few, so one thing more is asked:
that so few noisy pairs would be a surprise if all of the raw rate were noise.

Without any noise pair nothing is known about noise (of POST requests, say): then a field is taken for noise if it is
noise at other endpoints, and else counts as different.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from hashlib import blake2b
from typing import Final

import msgspec

from tapmirror.exchange import Answer

ENOUGH: Final = 20
"""Pairs of one kind from which on it is believed."""
SURPRISE: Final = 0.2
"""Probability below which so few noisy pairs are a surprise.  A difference in 1 % of the exchanges takes 160 pairs."""
GREAT_SURPRISE: Final = 0.01
"""The same for fields that vary in time."""
CHOOSING: Final = (b"accept", b"accept-encoding", b"accept-language", b"authorization", b"cookie", b"range", b"host")
"""Request fields on which an answer depends as a rule."""


class Nature(enum.Enum):
    """What a field's differences are."""

    DIFFERENT = "different"
    NOISE = "noise"
    WAITING = "waiting"
    """More often than the noise seen so far, but with so few noise pairs that may be chance."""


class Thresholds(msgspec.Struct, frozen=True):
    """As shares."""

    relative: float
    absolute: float


class Evidence(msgspec.Struct, frozen=True):
    """What noise pairs say of a field."""

    noisy: int
    pairs: int
    varies: bool = False
    """Production varies it in time."""


def nature(raw: int, exchanges: int, evidence: Evidence, limits: Thresholds) -> Nature:
    """What a field is that differs in `raw` of so many exchanges."""
    noisy, pairs = evidence.noisy, evidence.pairs
    if not raw or not exchanges:
        return Nature.NOISE
    if not pairs:
        return Nature.DIFFERENT
    rate, noise = raw / exchanges, noisy / pairs
    if rate <= noise or (rate - noise) / (rate + noise) <= limits.relative or rate - noise <= limits.absolute:
        return Nature.NOISE
    surprise = GREAT_SURPRISE if evidence.varies else SURPRISE
    return Nature.DIFFERENT if _at_most(noisy, pairs, rate) < surprise else Nature.WAITING


def weigh(probed: int, probe_noise: int, repeated: int, repeat_noise: int) -> Evidence:
    """What counts of so many probes and repeats, of which so many differed: where there are enough of both, those
    that differ less often.
    """
    if probed < ENOUGH and repeated < ENOUGH:
        return Evidence(probe_noise + repeat_noise, probed + repeated)
    if repeated < ENOUGH:
        return Evidence(probe_noise, probed)
    if probed < ENOUGH:
        return Evidence(repeat_noise, repeated)
    if not probe_noise and not repeat_noise:
        return Evidence(0, probed + repeated)
    if probe_noise * repeated < repeat_noise * probed:
        return Evidence(probe_noise, probed, True)
    return Evidence(repeat_noise, repeated)


def _at_most(hits: int, count: int, share: float) -> float:
    """Probability of at most so many hits: binomial, for many by the normal approximation."""
    if share >= 1:
        return 0.0 if hits < count else 1.0
    if hits > 50:
        spread = math.sqrt(count * share * (1 - share))
        return 0.5 * math.erfc((count * share - hits - 0.5) / (spread * math.sqrt(2)))
    log_share, log_rest = math.log(share), math.log1p(-share)
    total = 0.0
    for k in range(hits + 1):
        choices = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        total += math.exp(choices + k * log_share + (count - k) * log_rest)
    return min(1.0, total)


class Repeats:
    """Production's last answers to some requests, at most so many and so many bytes."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._free = most_bytes
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()

    def swap(self, key: bytes, answer: Answer) -> Answer | None:
        """Remember an answer; the one before it to the same request."""
        before = self._answers.pop(key, None)
        if before is not None:
            self._free += _size(before)
        size = _size(answer)
        while self._answers and (self._free < size or len(self._answers) >= self._most):
            self._free += _size(self._answers.popitem(last=False)[1])
        if self._free >= size:
            self._answers[key] = answer
            self._free -= size
        return before


def request_key(head: bytes) -> bytes:
    """What two requests have in common that should get the same answer."""
    lines = head.split(b"\r\n")
    chosen = [line for line in lines[1:] if line.partition(b":")[0].lower() in CHOOSING]
    return blake2b(b"\n".join([lines[0], *sorted(chosen)]), digest_size=16).digest()


def _size(answer: Answer) -> int:
    return 200 + len(answer.head) + len(answer.body)
