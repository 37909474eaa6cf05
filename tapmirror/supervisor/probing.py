# SPDX-License-Identifier: Apache-2.0
"""Whether the shadows of a tap may be at their addresses: none is production's, as far as these tell or probes show.

Theory of operation
-------------------
An address that is production's is refused as it is.  What addresses do not tell, such as address translation, a probe
does (`probe`): if what is sent to a shadow arrives at the tap, the shadow leads back to production.

The capture counts probes and does not tell them apart, so what arrived belongs to what was sent last: one trial at a
time, of one shadow's addresses or of those that are new of a name.  Of several that lead back together it is not known
which of them does, and they are refused together.

A trial takes half a second where an address answers nothing, and nobody waits for it but a tap's start: it is looked at
between iterations of whoever drives the tap.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tapmirror import privsep
from tapmirror.safety import plain, refusal
from tapmirror.source.sockets import HANDED_OVER
from tapmirror.spec import TapSpec
from tapmirror.supervisor.addresses import Address, local_addresses
from tapmirror.supervisor.links import present
from tapmirror.supervisor.probe import Probe
from tapmirror.supervisor.resolving import ResolveError, look_up
from tapmirror.supervisor.workers import TapError, TapRefusedError

PROBED: Final = 600.0
"""Seconds for which what a probe of an address found counts."""
LOOK_TIME: Final = 0.05
"""Seconds between two looks at a probe that is under way."""
LEADS_BACK: Final = "connections to it arrive at the tap as production's: it leads back to production"
RING_TIME: Final = 3 * HANDED_OVER
"""Seconds for which a probe is looked for behind AF_PACKET's ring, which hands over late where the host is busy."""


def field(spec: TapSpec, index: int) -> str:
    """How a shadow is called in a message."""
    return "shadow" if len(spec.shadows) == 1 else f"shadows[{index}]"


def resolved(spec: TapSpec, index: int) -> list[Address]:
    """A shadow's socket addresses, none of which is production.

    Waits for a name server.  Raises `TapError`, OSError.
    """
    shadow = spec.shadows[index]
    local, _ = local_addresses()
    for i, addr in enumerate(spec.addrs):
        elsewhere = spec.promisc or spec.decap or spec.many
        if plain(addr) not in {plain(a) for a in local} and not elsewhere and present(spec.links()):
            behind = f"if it is behind the interface (a container), name that by a pattern: {spec.iface}*"
            behind += "; if that is a mirror port (SPAN): --promisc (in a file: promisc: true)"
            raise TapRefusedError(f"addrs[{i}]: {addr} is not an address of this host; {behind}")
    try:
        found = look_up(shadow, privsep.worker_identity())
    except ResolveError as error:
        raise TapError(f"{field(spec, index)}: cannot resolve {shadow.host!r}: {error}") from None
    reason = refused(spec, index, found)
    if reason is not None:
        raise TapRefusedError(f"{field(spec, index)}: {reason}")
    return found


def refused(spec: TapSpec, index: int, addresses: Sequence[Address]) -> str | None:
    """Why a shadow may not have these addresses: one of them is production's, or not that of a host.

    Raises OSError.
    """
    local, broadcasts = local_addresses()
    for _, address in addresses:
        reason = refusal(spec.ports, spec.addrs, str(address[0]), spec.shadows[index].port, local)
        if reason is not None:
            return reason
        if str(address[0]) in broadcasts:
            return f"{address[0]} is not the address of one host"
    return None


class Found(msgspec.Struct, frozen=True):
    """What a trial found."""

    until: float
    """When the finding counts no more."""
    leads_back: bool
    failure: OSError | None
    """Why none of the addresses can be reached; None: one can."""


class _Trial:
    """Addresses while they are probed."""

    def __init__(self, addresses: Sequence[Address], seq: int, before: int) -> None:
        self.addresses = frozenset(addresses)
        self.probe = Probe(addresses, seq)
        self.before = before
        """Probes that had arrived when it began."""
        self.sent_by: float | None = None
        """When all of it was known to be sent."""
        self.due = 0.0
        """When the next look is due."""


class Probing:
    """The probes of one tap.

    `arrived` tells how many have been seen to arrive at the tap; `warn` is told which shadow cannot be reached.  Call
    `look` at each iteration, by `due` at the latest, and after it as often as wanted `all_found` and `found`; `give_up`
    while nothing is captured, and at the end.  Times are of the monotonic clock.
    """

    def __init__(self, spec: TapSpec, arrived: Callable[[], int], warn: Callable[[str], None]) -> None:
        self.seq = int.from_bytes(os.urandom(4)) or 1
        """The first sequence number of the SYNs, by which the capture knows them."""
        self.behind_ring = False
        """What arrives is seen late: by AF_PACKET."""
        self._spec = spec
        self._arrived = arrived
        self._warn = warn
        self._all_found = False
        self.unreached: dict[str, str] = {}
        """Why shadows could not be reached when all were probed last, by label."""
        self._trial: _Trial | None = None
        self._found: dict[frozenset[Address], Found] = {}

    def due(self) -> float | None:
        """When `look` may find something; None: nothing is under way."""
        return None if self._trial is None else self._trial.due

    def look(self, now: float) -> None:
        """Take note of what is under way."""
        trial = self._trial
        if trial is None:
            return
        trial.due = now + LOOK_TIME
        if not trial.probe.over():
            return
        if trial.sent_by is None:
            trial.sent_by = now
        leads_back = self._arrived() > trial.before
        if leads_back or not self.behind_ring or now >= trial.sent_by + RING_TIME:
            self._found[trial.addresses] = Found(now + PROBED, leads_back, trial.probe.failure)
            self.give_up()

    def wait(self) -> None:
        """Until the next look may find something."""
        trial = self._trial
        if trial is not None and trial.probe.over(LOOK_TIME):
            time.sleep(0.0 if trial.sent_by is None else max(0.0, trial.due - time.monotonic()))

    def all_found(self, addresses: Sequence[Sequence[Address]], now: float) -> bool:
        """Whether each shadow is known not to lead back, at these addresses of all; that is probed once.

        Raises `TapError`: one of them does.
        """
        if self._all_found:
            return True
        failures: list[OSError | None] = []
        for index, those in enumerate(addresses):
            found = self.found(those, now)
            if found is None:
                return False
            if found.leads_back:
                raise TapError(f"{field(self._spec, index)}: {LEADS_BACK}")
            failures.append(found.failure)
        self._all_found = True
        self.unreached = {}
        told: set[str] = set()
        for shadow, failure in zip(self._spec.shadows, failures, strict=True):
            if failure is not None:
                why = failure.strerror or str(failure)
                self.unreached |= dict.fromkeys(shadow.copy_labels, why)
                where = f"{shadow.host} port {shadow.port}"
                line = f"the shadow {where} cannot be reached yet ({why}); mirroring begins when it can"
                if line not in told:  # several may be at one address
                    told.add(line)
                    self._warn(line)
        return True

    def found(self, addresses: Sequence[Address], now: float) -> Found | None:
        """What is known of a shadow's addresses; None: nothing yet, they are probed now or after what is.

        What was found lasts for `PROBED`: a name that leads back is asked for again and again.
        """
        self._found = {those: found for those, found in self._found.items() if found.until > now}
        wanted = frozenset(addresses)
        if wanted in self._found:
            return self._found[wanted]
        unknown = wanted
        for those, found in self._found.items():
            if not found.leads_back:
                unknown -= those
            elif those <= wanted:
                return found
        if not unknown:
            return Found(now, leads_back=False, failure=None)
        if self._trial is None:
            self._trial = _Trial([each for each in addresses if each in unknown], self.seq, self._arrived())
        return None

    def give_up(self) -> None:
        """End what is under way; it is not known then."""
        if self._trial is not None:
            self._trial.probe.close()
            self._trial = None

    def forget(self) -> None:
        """All shadows are to be probed anew, when something is captured again."""
        self.give_up()
        self._found = {}
        self._all_found = False
