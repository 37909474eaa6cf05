# SPDX-License-Identifier: Apache-2.0
"""Which requests a shadow gets twice, so that what differs can be told from noise: how many of them, and for what.

A *probe* is a request of any kind.  A *check* is one whose responses just differed, in a field of which more is to be
known.  Together they are no more than a share of the safe requests (`Compare.noise_probe`).

Pure: nothing here knows the clock or chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from tapmirror.compare.noise import evidence_of, short, wanted
from tapmirror.compare.summary import Endpoint, Field

ANY: Final = ("",)
"""Stands for the fields of a request that is sent again whatever its answers differ in."""
WHOLE_REQUEST: Final = 100.0
"""What one request costs of what is saved, which is in percent of a request."""
CHECKS_SAVED: Final = 5
"""Checks that may be made at once when nothing was to be checked for a while."""


class Recheck(msgspec.Struct, frozen=True):
    """A request that a shadow is to get once more, as `shadow + PROBE`."""

    flow: int
    number: int
    shadow: int
    request: bytes
    flags: int
    """Flags of the request's parts (`Part.flags`)."""


class ProbeAllowance:
    """How many more may be sent twice.  `percent` of each safe request is saved."""

    __slots__ = ("_checks", "_checks_wanted", "_percent", "_probes")

    def __init__(self, percent: float) -> None:
        self._percent = percent
        self._probes = 0.0
        """What is saved for requests of any kind."""
        self._checks = 0.0
        """What is saved for checks."""
        self._checks_wanted = False

    def probes(self, possible: bool) -> bool:
        """Save of one more safe request.  Returns whether it is sent twice, if that is possible; it is paid for then.

        Half is for checks, from when there was first something to check, as long as not enough is saved.
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
        """Whether so many checks may be made."""
        return self._checks >= count * WHOLE_REQUEST

    def want_checks(self) -> None:
        """There is something to check."""
        self._checks_wanted = True

    def pay_check(self) -> None:
        """One is made."""
        self._checks -= WHOLE_REQUEST


def worth_checking(endpoint: Endpoint, names: Sequence[str]) -> tuple[str, ...]:
    """Of the fields in which an exchange differs those that are known; none, if no check of them is worth it."""
    fields = {name: endpoint.fields[name] for name in names if name in endpoint.fields}
    for field in fields.values():
        seldom = 2 * field.raw <= endpoint.compared
        if seldom and wanted(field.raw, endpoint.compared, evidence_of(endpoint, field)):
            return tuple(fields)
    return ()


def lacks_pairs(endpoint: Endpoint, fields: Iterable[Field]) -> bool:
    """Whether nothing but pairs of one version is missing for one of the fields to be judged."""
    return any(short(field.raw, endpoint.compared, evidence_of(endpoint, field)) for field in fields)


def touch(one: str, other: str) -> bool:
    """Whether one of two paths is the other, or within it."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short) and (len(long) == len(short) or long[len(short)] in ".[")
