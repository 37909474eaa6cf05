# SPDX-License-Identifier: Apache-2.0
"""Which requests a shadow gets twice, so that differences can be told from noise: how many, and why.

A *probe* is any safe request.  A *check* is one whose responses have just differed, in a field about which more should
be known.  Together they are at most a share of the safe requests (`Compare.noise_probe`).

Pure: nothing here knows the clock or chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from tapmirror.compare.noise import evidence_of, short, wanted
from tapmirror.compare.summary import Endpoint, Field

ANY: Final = ("",)
"""In place of the fields, if a request is sent again whatever its responses differ in."""
WHOLE_REQUEST: Final = 100.0
"""What one request costs; savings are in percent of a request."""
CHECKS_SAVED: Final = 5
"""Most checks that may be made at once after a time without any."""


class Recheck(msgspec.Struct, frozen=True):
    """A request that a shadow is to get once more, as `shadow + PROBE`."""

    flow: int
    number: int
    shadow: int
    request: bytes
    flags: int
    """Flags of the request's parts (`Part.flags`)."""


class ProbeAllowance:
    """How many more requests may be sent twice: each safe request adds `percent` of a request to the savings."""

    __slots__ = ("_checks", "_checks_wanted", "_percent", "_probes")

    def __init__(self, percent: float) -> None:
        self._percent = percent
        self._probes = 0.0
        """Savings for probes."""
        self._checks = 0.0
        """Savings for checks."""
        self._checks_wanted = False

    def probes(self, possible: bool) -> bool:
        """Save for one more safe request.  Returns whether it should be sent twice, if `possible`; it is paid for then.

        Once there was something to check, half is saved for checks, as long as there is not enough for them.
        """
        percent = self._percent
        if self._checks_wanted:
            self._checks = min(CHECKS_SAVED * WHOLE_REQUEST, self._checks + percent / 2)
            percent /= 2 if self._checks < CHECKS_SAVED * WHOLE_REQUEST else 1
        self._probes += percent
        if possible and self._probes >= WHOLE_REQUEST:
            self._probes -= WHOLE_REQUEST
            return True
        return False

    def checks(self, count: int = 1) -> bool:
        """Whether `count` checks may be made."""
        return self._checks >= count * WHOLE_REQUEST

    def want_checks(self) -> None:
        """Say that there is something to check."""
        self._checks_wanted = True

    def pay_check(self) -> None:
        """Pay for one check."""
        self._checks -= WHOLE_REQUEST


def worth_checking(endpoint: Endpoint, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the fields in which an exchange differs that are known; empty if a check of none is worth it."""
    fields = {name: endpoint.fields[name] for name in names if name in endpoint.fields}
    for field in fields.values():
        seldom = 2 * field.raw <= endpoint.compared
        if seldom and wanted(field.raw, endpoint.compared, evidence_of(endpoint, field)):
            return tuple(fields)
    return ()


def lacks_pairs(endpoint: Endpoint, fields: Iterable[Field]) -> bool:
    """Whether one of the fields lacks only pairs of one version to be judged."""
    return any(short(field.raw, endpoint.compared, evidence_of(endpoint, field)) for field in fields)


def touch(one: str, other: str) -> bool:
    """Whether one of two paths is the other, or within it."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short) and (len(long) == len(short) or long[len(short)] in ".[")
