# SPDX-License-Identifier: Apache-2.0
"""The results of a comparison: `tapmirror report`, `tapmirror verdict`, and the same options of `tapmirror run`."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeGuard, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem

from tapmirror.cli.asking import complete, json_option, print_json, refused, socket_option
from tapmirror.cli.limits import limit_options, limits_of
from tapmirror.cli.messages import fail
from tapmirror.compare.figures import Figures, figures, merge
from tapmirror.compare.noise import Nature
from tapmirror.compare.verdict import Outcome, VerdictLimits, together
from tapmirror.compare.words import clean
from tapmirror.control.client import Client, ControlError, NoDaemonError
from tapmirror.report import FORMS, terminal
from tapmirror.report.words import EARLY, RAW, UNPAIRED, open_fields, percent
from tapmirror.spec import Compare
from tapmirror.supervisor.durable import replace

Function = TypeVar("Function", bound=Callable[..., Any])

CODES: Final = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.UNDECIDED: 3}
"""Exit code of each outcome of a verdict."""
INTERRUPTED: Final = 130
"""Exit code after SIGINT, as in shells."""
TAP_NAME: Final = re.compile(r"[^/]{1,63}")
"""An argument that is not a file, and looks like this, is the name of a tap."""
SPEC: Final = "comparison_spec"
"""Field of a saved ledger with the settings of the comparison: noise is judged by them as when the tap ran."""
FIXED: Final = (errno.EACCES, errno.EBUSY, errno.EPERM, errno.EROFS)
"""Errors that mean that a file can be written to but not replaced."""
FORM_OF: Final = {".html": "html", ".htm": "html", ".md": "markdown", ".json": "json", ".txt": "terminal"}


def keep_spec(ledger: dict[str, Any], spec: Compare) -> None:
    """Put the settings of the comparison into a ledger that has one."""
    if "comparison" in ledger:
        ledger[SPEC] = msgspec.to_builtins(spec)


def conclude(
    ledgers: Sequence[dict[str, Any]],
    specs: Sequence[Compare],
    limits: VerdictLimits,
    *,
    report_file: str | None,
    judge: bool,
    err: bool,
) -> int:
    """Write the report and print the verdict, as far as wanted.  Returns the exit code; `err` as in `tell_verdict`."""
    try:
        found = all_figures(ledgers, limits, specs)
    except (msgspec.ValidationError, ArithmeticError) as error:  # what workers say is not trusted
        fail(f"the comparison cannot be read: {' '.join(str(error).split())}", 1)
    if report_file is not None and found:
        try:
            write_report(found, report_file)
            click.echo(f"tapmirror: {report_file} written", err=True)
        except OSError as error:
            fail(f"--report: {report_file}: {error.strerror}", 1)
    return tell_verdict(found, err=err) if judge else 0


def all_figures(
    ledgers: Sequence[dict[str, Any]], limits: VerdictLimits, specs: Sequence[Compare] | None = None
) -> list[Figures]:
    """The figures of the comparisons of these taps, one for each shadow.  Raises `msgspec.ValidationError`.

    `specs`: the settings of each tap; without them, those in the ledgers.
    """
    if specs is None:
        specs = [msgspec.convert(ledger.get(SPEC, {}), Compare) for ledger in ledgers]
    return [
        figures(str(ledger.get("tap", "tap")), label, state, spec, limits)
        for ledger, spec in zip(ledgers, specs, strict=True)
        if ledger.get("comparison")
        for label, state in merge(ledger["comparison"], spec).items()
    ]


def form_of(path: str) -> str:
    """The format of a report file, by the end of its name; ends the program if that names none."""
    form = FORM_OF.get(Path(path).suffix.lower())
    if form is None:
        fail(f"--report: {path} does not end in one of {', '.join(FORM_OF)}", 2)
    return form


def check_place(path: str) -> None:
    """End the program if no report can be written there: better now than after hours of comparison."""
    file = Path(path)
    problem: int | None = None
    try:
        if file.is_dir():
            problem = errno.EISDIR
        elif not file.parent.is_dir():
            problem = errno.ENOENT
        elif not os.access(file if file.exists() else file.parent, os.W_OK):
            problem = errno.EACCES
    except OSError as error:  # the name is too long, or the directory may not be searched
        problem = error.errno
    if problem:
        fail(f"--report: {path}: {os.strerror(problem)}", 2)


def write_report(found: Sequence[Figures], path: str) -> None:
    """Write the report of all shadows.  It replaces an earlier one only when it is complete.  Raises OSError.

    A pipe, and a file that cannot be replaced (as one that is mounted into a container by itself), is written in place.
    """
    data = FORMS[form_of(path)](*found).encode()
    file = Path(path).resolve()  # a symbolic link stays one
    earlier = file.stat() if file.exists() else None
    if earlier is None or stat.S_ISREG(earlier.st_mode):
        beside = file.with_name(f".tapmirror-{os.getpid()}.new")
        try:
            replace(file, beside, data, mode=0o666, like=earlier)
        except OSError as error:
            if earlier is None or error.errno not in FIXED:
                raise
        else:
            return
    file.write_bytes(data)


def tell_verdict(found: Sequence[Figures], *, err: bool = False, as_json: bool = False) -> int:
    """Print the verdict: a line for each shadow, on standard output (`err`: standard error), or all of them as JSON.

    Returns the exit code: 0 all pass, 1 one fails, 3 undecided.
    """
    outcome = together([each.verdict.outcome for each in found])
    try:
        if as_json:
            print_json(_judged(found, outcome))
        for each in () if as_json else found:
            where = "".join(f"; {part}" for part in _where(each))
            said = f"{each.tap} {each.shadow}: {each.verdict.outcome.value}: {each.verdict.reason}{where}"
            click.echo(clean(said), err=err)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EBADF):
            raise
        # Even if nobody reads the line, the exit code is the verdict, and 1 means that a shadow fails.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- or the interpreter tries again at its end
    return CODES[outcome]


def _judged(found: Sequence[Figures], outcome: Outcome) -> Any:
    """The document of `tapmirror verdict --json`; open ends of intervals are null, as in a report."""
    shadows = [
        {
            "tap": each.tap,
            "shadow": each.shadow,
            **msgspec.structs.asdict(each.verdict),
            "where": "; ".join(_where(each)),
        }
        for each in found
    ]
    return msgspec.json.decode(msgspec.json.encode({"outcome": outcome, "alpha": found[0].alpha, "shadows": shadows}))


def _where(found: Figures) -> list[str]:
    """Where most responses differ, or why nothing was compared; empty if there is nothing to say.

    It matters even for a pass: the limits are for all requests together, and one endpoint may still be broken.
    """
    if not found.paired:
        reasons = [UNPAIRED.get(reason, reason) for reason in list(found.unpaired)[:1]]
        return [*reasons, *([f"{found.raw:,} {RAW}"] if found.raw else [])]
    worst = max(found.endpoints, key=lambda each: each.diff_rate.value or 0.0, default=None)
    if worst is None or not worst.differing:
        early = [(field.raw, each.name, field) for each in found.endpoints for field in open_fields(each)]
        if not early:
            return []
        share, name, field = max(early, key=lambda each: each[0])
        return [f"{EARLY}: {field.path or field.kind} at {name} ({percent(share)})"]
    paths = [each.path or each.kind for each in worst.fields if each.nature is Nature.DIFFERENT]
    what = f", {paths[0]}" if paths else ""
    return [f"most differ at {worst.name} ({percent(worst.diff_rate.value)}{what})"]


def complete_source(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of taps, and files."""
    return [*complete(context, parameter, incomplete), CompletionItem(incomplete, type="file")]


source_argument: Final = click.argument("source", metavar="NAME|FILE", shell_complete=complete_source)


@click.command(short_help="Report how a shadow's responses differ.")
@source_argument
@click.option(
    "--format", "form", type=click.Choice([*FORMS]), default="terminal", show_default=True, help="Format of the report."
)
@limit_options
@socket_option
def report(source: str, form: str, socket: Path, **options: Any) -> None:
    """Report how the shadow's responses differ from production's.

    NAME is a tap that runs in the daemon.  FILE is what `tapmirror run --compare … --json` printed; - is standard
    input.  If a file has that name, the file is used.

    \b
    Examples:
      tapmirror report web
      tapmirror report web --format html > report.html
      tapmirror report ledger.json --format markdown
    """  # noqa: D301 -- click wants the control character
    found = source_figures(source, limits_of(options), socket)
    width = shutil.get_terminal_size((120, 40)).columns
    colour = sys.stdout.isatty()
    click.echo(terminal(*found, width=width, colour=colour) if form == "terminal" else FORMS[form](*found))


@click.command(short_help="Judge a shadow by its responses.")
@source_argument
@limit_options
@json_option
@socket_option
def verdict(source: str, as_json: bool, socket: Path, **options: Any) -> None:
    """Judge whether the shadow keeps the limits.

    NAME and FILE are as for `tapmirror report`.  Ask as often as you like: more is known the longer a tap runs.

    Exit codes: 0 pass; 1 fail; 2 no verdict can be given; 3 undecided.
    """
    limits = limits_of(options, judge=True)
    try:
        found = source_figures(source, limits, socket, CODES[Outcome.UNDECIDED])
    except SystemExit as error:
        raise SystemExit(2 if error.code == 1 else error.code) from None  # 1 would be a shadow that fails
    except KeyboardInterrupt:  # click would end with 1
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(tell_verdict(found, as_json=as_json))


def source_figures(source: str, limits: VerdictLimits, socket: Path, early: int = 1) -> list[Figures]:
    """The figures of a saved ledger, or of a tap of the daemon; ends the program if there is no comparison.

    `early`: the exit code if there is none at the moment.
    """
    if source == "-" or Path(source).exists() or not TAP_NAME.fullmatch(source):
        return read_figures(source, limits)
    return asked_figures(source, limits, socket, early)


def asked_figures(name: str, limits: VerdictLimits, socket: Path, early: int) -> list[Figures]:
    """The figures of a tap of the daemon; ends the program if it has no comparison."""
    try:
        with Client(socket) as client:
            reply, data = client.report(name)
        states = msgspec.json.decode(data, type=list[dict[str, Any]])
        spec = msgspec.convert(reply["compare"], Compare)
        found = all_figures([{"tap": reply["tap"], "comparison": states}], limits, [spec])
    except NoDaemonError as error:
        fail(f"there is no file {name}, and {error}", 2)
    except ControlError as error:
        refused(error)
    except (msgspec.MsgspecError, ArithmeticError, KeyError, RecursionError, ValueError) as error:
        fail(f"{name}: the daemon's report cannot be read: {' '.join(str(error).split())}", 1)
    if not found:
        fail(f"{name}: no comparison yet: its worker is being restarted", early)
    return found


def read_figures(source: str, limits: VerdictLimits) -> list[Figures]:
    """The figures of a saved ledger (`-`: standard input); ends the program if it has no comparison."""
    if source == "-" and sys.stdin is None:  # it was closed when the program started
        fail("-: standard input is closed", 2)
    try:
        with click.open_file(source, encoding="utf-8") as file:
            text = file.read()
        if not text.strip():
            fail(f"{source}: it is empty", 2)
        document = json.loads(text)
        ledgers = document.get("taps", [document]) if isinstance(document, dict) else None
        if not _are_ledgers(ledgers):
            fail(f"{source}: not a ledger, as `tapmirror run --json` prints it", 2)
        found = all_figures(ledgers, limits)
    except OSError as error:
        fail(f"{source or repr(source)}: {error.strerror}", 2)
    except UnicodeDecodeError:
        fail(f"{source}: not a ledger with a comparison: not UTF-8", 2)
    except json.JSONDecodeError as error:
        fail(f"{source}: not a ledger with a comparison: not JSON (line {error.lineno})", 2)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        fail(f"{source}: not a ledger with a comparison: {' '.join(str(error).split())}", 2)
    except (ArithmeticError, AttributeError, KeyError, TypeError):
        fail(f"{source}: not a ledger with a comparison", 2)
    if not found:
        fail(f"{source}: it has no comparison: the tap ran without --compare", 2)
    return found


def _are_ledgers(found: object) -> TypeGuard[list[dict[str, Any]]]:
    return (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(each, dict) and not {"comparison", "segments"}.isdisjoint(each) for each in found)
    )
