# SPDX-License-Identifier: Apache-2.0
"""Which requests are refused for their content: taps that may not run together, or only with `--force`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from tapmirror.control.messages import MAX_TAPS
from tapmirror.spec import TapSpec
from tapmirror.supervisor.plan import conflict, needs_force
from tapmirror.supervisor.workers import automatic


class RefusedError(Exception):
    """A request is not done; `code` is one of the protocol's, the message one line for people.

    `problems`: a line for each where there are several; the message has the first.
    """

    def __init__(self, code: str, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.problems = problems


def distinct(specs: Sequence[TapSpec], running: Collection[str]) -> None:
    """Check that all names differ, and that there are not too many taps with those that run.  Raises `RefusedError`."""
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RefusedError("refused", f"two taps have the name {twice!r}")
    if len({*names, *running}) > MAX_TAPS:
        raise RefusedError("refused", f"a daemon has {MAX_TAPS} taps at most")


def unslipped(specs: Iterable[TapSpec]) -> None:
    """Raises `RefusedError` if one of them has a mistake that is only tolerated in old files (`TapSpec.slips`)."""
    for spec in specs:
        for field, message in spec.slips(automatic()):
            raise RefusedError("refused", f"{spec.name}: {field}: {message}")


def allowed(specs: Iterable[TapSpec], beside: Sequence[TapSpec], *, force: bool) -> None:
    """Raises `RefusedError` if one of them may not run beside these."""
    for spec in specs:
        reason = conflict(spec, beside)
        if reason is None and not force:
            reason = needs_force(spec)
            reason = reason and f"{reason}; --force starts it all the same"
        if reason is not None:
            raise RefusedError("refused", f"{spec.name}: {reason}")
