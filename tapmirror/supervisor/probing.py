# SPDX-License-Identifier: Apache-2.0
"""Checks that no shadow is production: by its addresses, and by probes.

Theory of operation
-------------------
An address of production's is refused at once.  What addresses cannot show, such as address translation, a probe shows
(`probe`): if what is sent to a shadow arrives at the tap, the shadow leads back to production.

The capture counts probes and does not tell them apart.  So there is one trial at a time, and what arrives belongs to
it: a trial is of the addresses of one shadow, or of the new addresses of a name.  If addresses of a trial lead back, it
is not known which, and all of them are refused.

A trial takes half a second if an address does not answer.  Only a tap's start waits for it; otherwise whoever drives
the tap looks at the trial between iterations.
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
"""Seconds for which the outcome of a probe is used."""
LOOK_TIME: Final = 0.05
"""Seconds between two looks at a probe that is under way."""
LEADS_BACK: Final = "connections to it arrive at the tap as production's: it leads back to production"
RING_TIME: Final = 3 * HANDED_OVER
"""Seconds for which a probe may take to arrive by AF_PACKET, whose ring hands packets over late on a busy host."""


def field(spec: TapSpec, index: int) -> str:
    """The name of a shadow's field in messages."""
    return "shadow" if len(spec.shadows) == 1 else f"shadows[{index}]"


def resolved(spec: TapSpec, index: int) -> list[Address]:
    """A shadow's socket addresses, checked not to be production's.

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
    """The outcome of a trial."""

    until: float
    """When the outcome is not used any more."""
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
        """When everything had been sent for certain."""
        self.late = False
        """Whether there was a look when `RING_TIME` was over."""
        self.due = 0.0
        """When the next look is due."""


class Probing:
    """The probes of one tap.

    `arrived` returns how many probes arrived at the tap; `warn` gets the shadows that cannot be reached.  Call `look`
    in each iteration, at `due` at the latest, then `all_found` and `found` as often as you like.  Call `give_up` while
    nothing is captured, and at the end.  Times are of the monotonic clock.
    """

    def __init__(self, spec: TapSpec, arrived: Callable[[], int], warn: Callable[[str], None]) -> None:
        self.seq = int.from_bytes(os.urandom(4)) or 1
        """The first sequence number of the SYNs, by which the capture knows them."""
        self.behind_ring = False
        """Whether arrivals are seen late, which is so with AF_PACKET."""
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
        """Look at the trial that is under way, if any."""
        trial = self._trial
        if trial is None:
            return
        trial.due = now + LOOK_TIME
        if not trial.probe.over():
            return
        if trial.sent_by is None:
            trial.sent_by = now
        leads_back = self._arrived() > trial.before
        if leads_back or not self.behind_ring or trial.late:
            self._found[trial.addresses] = Found(now + PROBED, leads_back, trial.probe.failure)
            self.give_up()
        # A worker that had no CPU may answer before it reads its ring; it has read that before it answers again.
        trial.late = now >= trial.sent_by + RING_TIME

    def wait(self) -> None:
        """Sleep until the next look may find something."""
        trial = self._trial
        if trial is not None and trial.probe.over(LOOK_TIME):
            time.sleep(0.0 if trial.sent_by is None else max(0.0, trial.due - time.monotonic()))

    def all_found(self, addresses: Sequence[Sequence[Address]], now: float) -> bool:
        """Whether it is known that no shadow leads back, with these addresses of all shadows.  They are probed once.

        Raises `TapError` if one leads back.
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
        """What is known of a shadow's addresses; None: nothing yet, they are probed now or after the present trial.

        An outcome is used for `PROBED`, because a name that leads back is looked up again and again.
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
        """End the present trial without an outcome."""
        if self._trial is not None:
            self._trial.probe.close()
            self._trial = None

    def forget(self) -> None:
        """Forget all outcomes: shadows are probed again when something is captured again."""
        self.give_up()
        self._found = {}
        self._all_found = False
