# SPDX-License-Identifier: Apache-2.0
"""`tapmirror run`: taps in the foreground, until they are stopped."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any, Final

import click
from click.core import ParameterSource

from tapmirror.cli.limits import limit_options, limits_of
from tapmirror.cli.live import can_redraw, lost_if_full, say_no_more, view_of
from tapmirror.cli.messages import as_option, error_line, fail, warn, worker_said
from tapmirror.cli.numbers import TIME
from tapmirror.cli.options import specs_of, tap_options
from tapmirror.spec import Level
from tapmirror.supervisor.claims import ClaimedError, Claims
from tapmirror.supervisor.tap import Tap
from tapmirror.supervisor.workers import TapError

COMPARING: Final = {
    "report_file": "--report",
    "judge": "--verdict",
    "max_error_diff": "--max-error-diff",
    "max_p99_ratio": "--max-p99-ratio",
    "max_diff_rate": "--max-diff-rate",
    "alpha": "--alpha",
}
"""Options that have no meaning unless something is compared, by parameter."""


@click.command(short_help="Mirror traffic in the foreground until stopped.")
@tap_options
@click.option("--duration", type=TIME, metavar="TIME", help="Stop after this time: 90 (seconds), 15m, 2h.")
@click.option(
    "--report",
    "report_file",
    type=click.Path(),
    metavar="FILE",
    help="Write the comparison report to FILE (.html, .md, .json, .txt).",
)
@click.option(
    "--verdict",
    "judge",
    is_flag=True,
    help="Judge the shadow at the end: exit code 0 (pass), 1 (fail) or 3 (undecided).",
)
@limit_options
@click.option("--json", "as_json", is_flag=True, help="Print the final ledger as JSON.")
@click.pass_context
def run(
    context: click.Context,
    /,
    *,
    file: str | None,
    resolve: tuple[str, ...],
    strict: bool,
    duration: float | None,
    as_json: bool,
    report_file: str | None,
    judge: bool,
    **options: Any,
) -> None:
    """Mirror the traffic of production's port to a shadow until Ctrl-C, then print the ledger.

    A second Ctrl-C ends it at once, without a ledger.

    \b
    Examples:
      tapmirror run --iface eth0 --port 80 --shadow staging.internal:8080
      tapmirror run --iface eth0 --port 80 --shadow '[2001:db8::7]:80' --percent 5 --duration 60
      tapmirror run --iface lo --port 6379 --shadow 10.0.0.9:6379 --protocol raw --pacing wait
      tapmirror run -f tap.yaml
    """  # noqa: D301 -- click wants the control character
    limits = limits_of(options, judge=judge)
    if report_file is not None:
        from tapmirror.cli.compared import check_place, form_of

        form_of(report_file)
        check_place(report_file)
    specs = specs_of(context, file, resolve, strict=strict, options=options)
    given = [name for name in COMPARING if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    comparing = any(spec.compare.level is not Level.OFF for spec in specs)
    if comparing:
        # As many modules as all others together, so only if needed.  At the end the package may have been replaced.
        from tapmirror.cli import briefs, compared

        briefs.load()
    elif given:
        fail(f"{COMPARING[given[0]]}: nothing is compared: give --compare too", 2)
    if not as_json:
        from tapmirror.cli import account  # noqa: F401 -- loaded now, as above
    if can_redraw():
        from tapmirror.cli import redrawn  # noqa: F401 -- loaded now, as above
    taps = [Tap(spec, tell, partial(tell, say=worker_said)) for spec in specs]
    ledgers, broken = mirror(taps, duration, as_json=as_json, by_options=file is None)
    specs = [tap.spec for tap in taps]
    if comparing:
        for ledger, spec in zip(ledgers, specs, strict=True):
            compared.keep_spec(ledger, spec.compare)
    printed = print_ledgers(ledgers, as_json=as_json)
    code = 0
    if comparing:
        compares = [spec.compare for spec in specs]
        code = compared.conclude(ledgers, compares, limits, report_file=report_file, judge=judge, err=as_json)
    if broken or not printed:
        code = 1
    if code:
        raise SystemExit(code)


def mirror(
    taps: list[Tap], duration: float | None, *, as_json: bool, by_options: bool
) -> tuple[list[dict[str, Any]], bool]:
    """Start the taps and drive them until it is time to stop; returns what `watch` does.

    Taps that were not started are removed from the list (`start`).  If none can be started, or a signal comes while the
    first one is starting, the program ends here with exit code 2.
    """
    stop_read, stop_write = os.pipe()
    signals = Signals(stop_write)
    say_starting(as_json=as_json)
    try:
        claims = start(taps, signals, stop_read)
    except Interrupted:
        tell("stopped while it was starting: there is no ledger")
        os._exit(2)  # the interpreter's own end takes a fifth of a second
    except (TapError, ClaimedError, OSError) as error:
        fail(as_option(str(error)) if by_options else str(error), 2)
    lasts = [tap.spec.ttl for tap in taps if tap.spec.ttl is not None]
    try:
        return watch(taps, stop_read, min([*lasts, math.inf if duration is None else duration]))
    finally:
        for claim in claims:
            claim.close()


def print_ledgers(ledgers: Sequence[dict[str, Any]], *, as_json: bool) -> bool:
    """Print the final ledgers; returns whether that worked.  An error is reported and ends nothing."""
    try:
        if as_json:
            click.echo(json.dumps(ledgers[0] if len(ledgers) == 1 else {"taps": ledgers}))
        else:
            from tapmirror.cli.account import print_ledger

            for ledger in ledgers:
                print_ledger(ledger)
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- or the interpreter tries again at its end
        error_line(f"the ledger could not be printed: {error.strerror}")
        return False
    return True


class Interrupted(BaseException):
    """A signal came while the first tap was starting."""


class Signals:
    """Handles SIGINT, SIGTERM and SIGHUP (a closed terminal; not under nohup): the first only writes a byte to a pipe.

    The second one, or Ctrl-C after any, has its default action.  A second SIGHUP has none: the shell, sudo and the
    kernel may each send one.
    """

    def __init__(self, write_end: int) -> None:
        self._write_end = write_end
        self._interrupts = False
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Meanwhile a signal raises `Interrupted`, wherever that waits.

        Where Python takes no exception (amid the end of an object) it is lost; there is the byte all the same.
        """
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(self._write_end, b"x")
        if self._interrupts:
            self._interrupts = False
            raise Interrupted


def say_starting(*, as_json: bool) -> None:
    """Say what happens now, as it may take seconds, if a person is watching and not a program that reads JSON."""
    if sys.stderr and sys.stderr.isatty() and (sys.stdout.isatty() or not as_json):
        tell("loading the program ...")


SERVICE: Final = 1.0
"""Most seconds between two calls of `Tap.service`."""


def tell(message: str, say: Callable[[str], None] = warn) -> None:
    """Print a line, and ignore errors in printing: a tap that ends may print one, and its ledger comes later."""
    try:
        with lost_if_full():
            say(message)
    except OSError:
        say_no_more()


def start(taps: list[Tap], signals: Signals, stop: int) -> list[Claims]:
    """Start all taps or none; returns their claims.  Raises `TapError`, `ClaimedError` and `Interrupted`.

    A signal before the first tap mirrors raises `Interrupted`.  Later, when `stop` is readable, there is something to
    report: then the taps that were not started yet are removed from the list.
    """
    claims: list[Claims] = []
    for i, tap in enumerate(taps):
        if i and told(stop):
            del taps[i:]
            break
        try:
            with contextlib.nullcontext() if i else signals.interrupting():
                if not i and told(stop):  # just before
                    raise Interrupted
                claims.append(Claims(tap.spec))
                tap.start()
        except BaseException as error:
            tap.close(at_once=not isinstance(error, Exception))
            for begun in taps[:i]:
                begun.close()
            for claim in claims:
                claim.close()
            raise
    return claims


def told(stop: int) -> bool:
    """Whether it is time to stop."""
    return bool(select.select([stop], [], [], 0)[0])


def watch(taps: Sequence[Tap], stop: int, duration: float) -> tuple[list[dict[str, Any]], bool]:
    """Drive the taps and show their state.

    Ends when `stop` is readable, the time is over, all taps have broken down, or nobody reads what is shown.  Returns
    the final ledgers, and whether a tap broke down.
    """
    end = time.monotonic() + duration
    specs = [tap.spec for tap in taps]
    view = view_of(specs)
    ledgers: dict[Tap, dict[str, Any]] = {}
    broken: set[Tap] = set()
    try:
        with view:
            shown = -math.inf
            while len(broken) < len(taps) and (now := time.monotonic()) < end:
                for tap in taps:
                    tap.service(now)
                    if now >= shown + view.interval or tap.state == "stopped":
                        look(tap, ledgers, broken, several=len(taps) > 1)
                if now >= shown + view.interval:
                    try:
                        view.show([ledgers[tap] for tap in taps])
                    except OSError:  # nobody reads what is shown
                        say_no_more()
                        break
                    shown = now
                if wait(taps, stop, min(end, now + SERVICE, shown + view.interval)):
                    with contextlib.suppress(OSError):  # a closed terminal is a signal, too
                        view.stopping()
                    break
            last = [tap.stop() for tap in taps]
        return last, bool(broken) or any(tap.loops for tap in taps)
    finally:
        for tap in taps:
            tap.close()


def look(tap: Tap, ledgers: dict[Tap, dict[str, Any]], broken: set[Tap], *, several: bool) -> None:
    """Take a tap's ledger.  If the tap has broken down, say so once and keep its last ledger."""
    if tap in broken:
        return
    try:
        ledgers[tap] = tap.snapshot()
    except TapError as error:
        ledgers.setdefault(tap, tap.last())
        broken.add(tap)
        tell(f"{tap.spec.name}: {error}" if several else str(error), error_line)


def wait(taps: Sequence[Tap], stop: int, until: float) -> bool:
    """Sleep until `until`, or until a tap has something to do; returns whether it is time to stop."""
    for tap in taps:
        due = tap.due()
        until = until if due is None else min(until, due)
    poll = select.poll()  # poll: select(2) takes no descriptor beyond 1024
    for fd in (stop, *(fd for tap in taps for fd in tap.filenos())):
        poll.register(fd, select.POLLIN)
    left = max(0.0, until - time.monotonic())
    return any(fd == stop for fd, _ in poll.poll(math.ceil(left * 1000)))
