# SPDX-License-Identifier: Apache-2.0
"""What differs by itself and so says nothing about the shadow: times, identifiers, random order.

Theory of operation
-------------------
Two kinds of pairs show it, without a second production:

* A *probe*: a safe request that the shadow got twice.  Its two responses come from the same version.
* A *repeat*: the same request (method, target, fields that choose a response) that production answered again later.

Noise is what both show.  If a field differs among probes only, the shadow is inconsistent where production is not.  If
it differs among repeats only, data changed in between.

A field of an endpoint has a raw rate (of exchanges in which it differs) and a noise rate (of such pairs).  It may be
different when both rates are further apart than Diffy's thresholds (Twitter 2015): relatively, |raw - noise| / (raw +
noise), and absolutely.  Diffy has as many noise pairs as exchanges.  Here they are few, so in addition it must be
certain that the rates differ (confidence sequences, `statistics`), in one of two ways:

* The raw rate is higher than that of noise.
* The difference *holds*.  To exclude noise of 1 % takes a thousand pairs of any requests.  So half of the probes are
  *checks*: a safe request whose responses just differed in something that is not known to be noise goes to the
  shadow once more.  A fault of the new version is there again: its second response is as its first.  Were both
  versions alike, each of the three responses could be the odd one, by symmetry with the same probability; that it is
  production's, and not the shadow's first, then has a probability of one half at most, whatever the noise is like
  and however rare.  So ten checks that all hold are a surprise of 1 in 100.  What is left of that half goes to more
  pairs of endpoints where nothing else is missing.

Symmetry fails if what differs depends on time: the first two responses are milliseconds apart, and the check comes
seconds later.  A clock that shows minutes differs among the first two if its tick is between them, and then holds.  But
a probe is `DRIFT` times further from the first copy than the two responses to one request are from each other, so such
a field differs among probes that many times as often.  So the second way also requires that noise is rarer than `DRIFT`
times the raw rate.

A field is called different with a probability of error of `SURPRISE`, whenever one looks.  A verdict, which is about
all fields together, requires more (`figures`).  NOTE: if a cache of the shadow answers the second time, the difference
holds, even if it would not without the cache.

If there will be no noise pairs (for POST requests), nothing is known about noise.  Then a field is taken for noise if
it is noise at other endpoints, and otherwise counts as different.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from hashlib import blake2b
from typing import Final

import msgspec

from tapmirror.compare.statistics import majority_evidence, share_high, share_low
from tapmirror.compare.summary import Endpoint, Field
from tapmirror.exchange import Response

ENOUGH: Final = 20
"""How many pairs of one kind are needed to rely on that kind alone."""
SURPRISE: Final = 0.01
"""Probability that a field is ever called different and is not, whenever one looks."""
DRIFT: Final = 10
"""A probe is sent 1.5 s after the first copy, a check too; both sides answer within 150 ms of each other."""
NEVER: Final = 1e-5
"""Checks, and pairs, are made until the probability of error is below this, which is enough for a verdict too."""
CHECKS: Final = 64
"""Most checks of one field."""
UNSTEADY: Final = 4
"""A field is not checked any more after this many checks that did not hold, if they are a third of all."""
CHOOSING: Final = frozenset(
    {
        *(b"accept", b"accept-encoding", b"accept-language", b"authorization", b"cookie", b"range", b"host", b"origin"),
        # conditions (RFC 9110, 13.1): 304 or 412 to some, 200 to others
        *(b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range"),
    }
)
"""Request fields on which a response usually depends."""


class Nature(enum.Enum):
    """What a field's differences are."""

    DIFFERENT = "different"
    NOISE = "noise"
    WAITING = "waiting"
    """It differs more often than the noise seen so far, but with so few noise pairs that this may be chance."""


class Thresholds(msgspec.Struct, frozen=True):
    """How far a field's rate of differences may be above its noise and still be noise, as shares (0 to 1)."""

    relative: float
    absolute: float


class Evidence(msgspec.Struct, frozen=True):
    """What noise pairs say of a field."""

    noisy: int
    pairs: int
    checks: int = 0
    held: int = 0
    """Checks in which the field's difference held, of `checks`."""
    coming: bool = False
    """More noise pairs will come, so it is too early to judge by few."""

    def holds(self, alpha: float) -> bool:
        """Whether checks show that the field is no noise; it is wrong with probability `alpha` at most."""
        return self.checks > 0 and majority_evidence(self.held, self.checks) > -math.log(alpha)

    @property
    def unsteady(self) -> bool:
        """Whether checks show that the field is noise."""
        failed = self.checks - self.held
        return failed >= UNSTEADY and 3 * failed >= self.checks


def nature(raw: int, exchanges: int, evidence: Evidence, limits: Thresholds) -> Nature:
    """Whether a field that differs in `raw` of `exchanges` is noise, a difference, or not known yet."""
    if not raw or not exchanges:
        return Nature.NOISE
    if not evidence.pairs:
        return Nature.WAITING if evidence.coming or evidence.unsteady else Nature.DIFFERENT
    if is_noise(raw, exchanges, evidence, limits):
        return Nature.NOISE
    return Nature.DIFFERENT if apart(raw, exchanges, evidence, SURPRISE) else Nature.WAITING


def is_noise(raw: int, exchanges: int, evidence: Evidence, limits: Thresholds) -> bool:
    """Whether a field that differs in `raw` of `exchanges` differs hardly more often than in noise pairs.

    There must be at least one noise pair.
    """
    if not raw or not exchanges:
        return True
    rate, noise = raw / exchanges, evidence.noisy / evidence.pairs
    return rate <= noise or (rate - noise) / (rate + noise) <= limits.relative or rate - noise <= limits.absolute


def apart(raw: int, exchanges: int, evidence: Evidence, alpha: float) -> bool:
    """Whether a field that differs in `raw` of `exchanges` is not noise; wrong with probability `alpha` at most."""
    low = share_low(raw, exchanges, alpha / 2)
    if evidence.holds(alpha / 4):
        low *= DRIFT
    return low > share_high(evidence.noisy, evidence.pairs, alpha / 4)


def wanted(raw: int, exchanges: int, evidence: Evidence) -> bool:
    """Whether a field that has just differed should be checked.

    It should if it differs in at most half of the exchanges, is not known to be noise, and was not checked often
    enough.
    """
    if 2 * raw > exchanges or evidence.checks >= CHECKS or evidence.unsteady or evidence.holds(NEVER):
        return False
    return evidence.noisy * exchanges < raw * evidence.pairs or not evidence.noisy


def short(raw: int, exchanges: int, evidence: Evidence) -> bool:
    """Whether checks show that a field is not noise, but there are too few noise pairs to be certain (`NEVER`)."""
    return raw > 0 and evidence.holds(SURPRISE) and not apart(raw, exchanges, evidence, NEVER)


def weigh(probed: int, probe_noise: int, repeated: int, repeat_noise: int) -> tuple[int, int]:
    """Returns (noisy, pairs): how many of the noise pairs that count differ, and how many count.

    As long as neither kind has `ENOUGH` pairs, all count.  Otherwise only the kind that has enough counts; if both
    have, the one that differs less often.
    """
    if probed < ENOUGH and repeated < ENOUGH:
        return probe_noise + repeat_noise, probed + repeated
    if repeated < ENOUGH:
        return probe_noise, probed
    if probed < ENOUGH:
        return repeat_noise, repeated
    if not probe_noise and not repeat_noise:
        return 0, probed + repeated
    if probe_noise * repeated < repeat_noise * probed:
        return probe_noise, probed
    return repeat_noise, repeated


def evidence_of(endpoint: Endpoint, field: Field, probes: bool = False) -> Evidence:
    """What noise pairs and checks say of a field; `probes`: more pairs will come."""
    pairs = weigh(endpoint.probed, field.probes, endpoint.repeated, field.repeats)
    return Evidence(*pairs, field.checks, field.held, probes)


def apart_by_either(endpoint: Endpoint, field: Field, alpha: float) -> bool:
    """Whether probes alone, or repeats alone, show that a field is not noise; wrong with probability up to `alpha`."""
    pairs = ((field.probes, endpoint.probed), (field.repeats, endpoint.repeated))
    return any(
        apart(field.raw, endpoint.compared, Evidence(*each, field.checks, field.held), alpha / 2) for each in pairs
    )


class Repeats:
    """Production's last responses to some requests, at most so many and so many bytes."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._free = most_bytes
        self._responses: OrderedDict[bytes, Response] = OrderedDict()

    def swap(self, key: bytes, response: Response) -> Response | None:
        """Remember a response; returns the one before it to the same request, None if none is remembered."""
        before = self._responses.pop(key, None)
        if before is not None:
            self._free += _size(before)
        size = _size(response)
        while self._responses and (self._free < size or len(self._responses) >= self._most):
            self._free += _size(self._responses.popitem(last=False)[1])
        if self._free >= size:
            self._responses[key] = response
            self._free -= size
        return before


def request_key(head: bytes) -> bytes:
    """A hash of what a request's response depends on: its first line, and the fields of `CHOOSING`."""
    lines = head.split(b"\r\n")
    chosen = [line for line in lines[1:] if line.partition(b":")[0].lower() in CHOOSING]
    return blake2b(b"\n".join([lines[0], *sorted(chosen)]), digest_size=16).digest()


def _size(response: Response) -> int:
    return 200 + len(response.head) + len(response.body)
