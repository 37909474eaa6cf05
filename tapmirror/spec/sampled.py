# SPDX-License-Identifier: Apache-2.0
"""How much is mirrored: a share, how it is selected, a cap, a ramp.  The same for taps, rules and shadows."""

from __future__ import annotations

import enum
import math
import re
from typing import Final, TypeVar

import msgspec

from tapmirror.spec.errors import Checked, Found, shown
from tapmirror.spec.numbers import Seconds

STEP: Final = 0.0001
"""Least difference between two shares, in percentage points: Envoy's finest denominator is a million."""
FULL: Final = 1_000_000
"""Steps in 100 percent."""
KEY: Final = re.compile(r"client|(header|cookie|query|jwt):([!#$%&'*+\-.^_`|~0-9A-Za-z\[\]/]{1,128})")
"""An expression for what a key is taken from; of a JSON Web Token it is one claim (RFC 7519, 4)."""


SomeSampled = TypeVar("SomeSampled", bound="Sampled")


class By(enum.Enum):
    """What is selected as a whole."""

    CONNECTION = "connection"
    """A client's connection.  For a tap the kernel decides, and what is left out costs nothing."""
    REQUEST = "request"
    KEY = "key"
    """All requests with the same value of `key`.  Requests without one are selected by their client's address."""
    EXACT = "exact"
    """Every n-th request, evenly spaced."""


class Ramp(Checked, frozen=True, kw_only=True, rename={"start": "from", "end": "to"}):
    """A share that changes linearly with time, beginning at the start of the tap."""

    start: float
    """Percent at the start."""
    end: float
    """Percent at the end."""
    over: Seconds
    """Seconds from start to end."""

    def _check(self) -> Found:
        for name, value in (("from", self.start), ("to", self.end)):
            if not 0 <= value <= 100:
                yield name, f"{value} is not between 0 and 100"
        if not 0 < self.over < math.inf:
            yield "over", f"{self.over} is not a number of seconds above 0"


class Sampled(Checked, frozen=True, kw_only=True):
    """Something of which a share is taken."""

    percent: float = 100.0
    """Share that is mirrored, in percent, in steps of 0.0001; 0: nothing."""
    by: By = By.CONNECTION
    """What is selected as a whole: all of it is mirrored, or none."""
    key: str | None = None
    """For `by: key`: `header:NAME`, `cookie:NAME`, `query:NAME`, `jwt:CLAIM` or `client`."""
    ramp: Ramp | None = None
    """Instead of `percent`: a share that changes with time."""
    max_requests: float | None = None
    """Highest number of requests a second, with bursts of one second's worth."""
    max_bytes: float | None = None
    """Highest number of bytes a second, with bursts of one second's worth."""

    def _check(self) -> Found:
        if not 0 <= self.percent <= 100:
            yield "percent", f"{self.percent} is not between 0 and 100"
        elif self.percent and not steps(self.percent):
            yield "percent", f"{self.percent} is too small: shares are in steps of {STEP}"
        if self.by is By.KEY and self.key is None:
            yield "key", "by: key needs a key (header:NAME, cookie:NAME, query:NAME, jwt:CLAIM or client)"
        if self.key is not None:
            if self.by is not By.KEY:
                yield "key", f"has no effect with by: {self.by.value}"
            if not KEY.fullmatch(self.key):
                yield "key", f"{shown(self.key)} is not header:NAME, cookie:NAME, query:NAME, jwt:CLAIM or client"
        if self.ramp is not None and self.percent != 100:
            yield "ramp", "give percent or ramp, not both"
        for name in ("max_requests", "max_bytes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                yield name, f"{value} is not a number above 0"

    def most(self) -> float:
        """The largest percentage that this ever reaches."""
        return max(self.ramp.start, self.ramp.end) if self.ramp is not None else self.percent

    def needs_requests(self) -> bool:
        """Whether it can be decided only if requests are known."""
        return self.by is not By.CONNECTION or self.max_requests is not None or self.max_bytes is not None


def divided(one: SomeSampled, workers: int) -> SomeSampled:
    """The structure with one worker's part of its caps."""
    caps = {name: getattr(one, name) for name in ("max_requests", "max_bytes")}
    return msgspec.structs.replace(one, **{name: cap / workers for name, cap in caps.items() if cap is not None})


def steps(percent: float) -> int:
    """How many steps of 0.0001 (`STEP`) a percentage has."""
    return round(percent / STEP)


def part_of(percent: float, part: float) -> float:
    """A part (0 to 1) of a percentage, rounded to 0.0001; the whole is not rounded."""
    return percent if part >= 1 else round(percent * part, 4)


def threshold(percent: float) -> int:
    """How many of the 2**32 values of a hash are mirrored at this percentage, rounded to its step."""
    return steps(percent) * (1 << 32) // FULL


def defaults_only(one: Sampled) -> bool:
    """Whether nothing limits the share: everything is taken."""
    return all(getattr(one, field.name) == field.default for field in msgspec.structs.fields(Sampled))
