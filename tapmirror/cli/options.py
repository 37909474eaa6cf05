# SPDX-License-Identifier: Apache-2.0
"""The options that describe a tap, the same for every command that takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from tapmirror.cli.messages import as_option, fail
from tapmirror.cli.numbers import WHOLE
from tapmirror.spec import Capture, Compare, Level, Pacing, Protocol, Rewrite, SpecError, TapSpec, parse_shadow
from tapmirror.spec.numbers import number_of, whole_of

Function = TypeVar("Function", bound=Callable[..., Any])


def _workers(_context: click.Context, _parameter: click.Parameter, value: str) -> int | str:
    """A click callback: a number, or auto.  The spec checks the range."""
    if value == "auto":
        return value
    found = whole_of(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a number, nor auto")
    return found


def _percent(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    """A click callback: `1` or `1%`.  The spec checks the range."""
    found = number_of(value.removesuffix("%"))
    if found is None:
        raise click.BadParameter(f"{value!r} is not a number")
    return found


def joined(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """A click callback: joins the values of a repeated option with commas."""
    return ",".join(values) if values else None


OPTIONS: Final = (
    click.option(
        "-f",
        "--file",
        type=click.Path(allow_dash=True, readable=False),  # only for completion; errors are found when the file is read
        metavar="FILE",
        help="Read taps from a YAML file, instead of the options that describe one; - is standard input.",
    ),
    click.option(
        "--resolve",
        multiple=True,
        metavar="NAME=HOST:PORT",
        help="Address of a destination (HOST or HOST:SUBSET) in the Istio or Gateway API rules of FILE; repeatable.",
    ),
    click.option("--strict", is_flag=True, help="Refuse a Kubernetes FILE if a mirror cannot do a part of it."),
    click.option(
        "--iface",
        multiple=True,
        callback=joined,
        metavar="IFACE",
        help="Interface that production's traffic passes; a pattern (veth*), or any; repeatable.",
    ),
    click.option("--port", "ports", type=WHOLE, multiple=True, metavar="PORT", help="Production's port; repeatable."),
    click.option("--addr", "addrs", multiple=True, metavar="ADDRESS", help="Production's local address; repeatable."),
    click.option(
        "--shadow",
        "shadows",
        multiple=True,
        metavar="HOST:PORT",
        help="Where the copies go; IPv6 in brackets. Repeatable: each shadow gets every request.",
    ),
    click.option(
        "--percent",
        callback=_percent,
        default="100",
        show_default=True,
        metavar="PERCENT",
        help="Share of the connections to mirror.",
    ),
    click.option(
        "--seed", type=WHOLE, default=0, show_default=True, metavar="N", help="Selects which connections are mirrored."
    ),
    click.option(
        "--protocol",
        type=click.Choice([p.value for p in Protocol]),
        default="auto",
        show_default=True,
        help="http: mirror HTTP/1 requests; raw: mirror bytes; auto: decide by the first bytes of each connection.",
    ),
    click.option(
        "--capture",
        type=click.Choice([c.value for c in Capture]),
        default="auto",
        show_default=True,
        help="Capture by an eBPF program, or by AF_PACKET (needs more CPU); auto: eBPF if the host has it.",
    ),
    click.option(
        "--pacing",
        type=click.Choice([p.value for p in Pacing]),
        default="asap",
        show_default=True,
        help="asap: send at once; wait: wait for the shadow's response where production gave one (stateful protocols).",
    ),
    click.option(
        "--promisc", is_flag=True, help="Take packets addressed to other hosts too: the interface is a mirror port."
    ),
    click.option(
        "--decap",
        is_flag=True,
        help="Decode tunnels (VXLAN, GENEVE, GRE, ERSPAN, IP in IP), reassemble IP fragments; uses AF_PACKET.",
    ),
    click.option(
        "--compare",
        type=click.Choice([level.value for level in Level]),
        default="off",
        show_default=True,
        help="Compare the shadow's responses with production's, up to this level.",
    ),
    click.option(
        "--noise-probe",
        callback=_percent,
        default="1",
        show_default=True,
        metavar="PERCENT",
        help="With headers or body: share of safe requests sent twice, to learn which values always differ.",
    ),
    click.option(
        "--workers",
        callback=_workers,
        default="1",
        show_default=True,
        metavar="N|auto",
        help="Processes that share the connections; auto: half the number of processors.",
    ),
    click.option(
        "--no-loop-check",
        "loop_check",
        is_flag=True,
        flag_value=False,
        default=True,
        help="Do not send the field Tapmirror-Loop, which detects a shadow that forwards to production.",
    ),
    click.option("--host", metavar="NAME", help="Host header for the shadow [default: the client's]."),
)


def tap_options(function: Function) -> Function:
    """Give a command these options."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


BESIDE: Final = frozenset({"iface", "ports", "addrs", "capture", "seed", "promisc", "decap", "workers"})
"""Options that say where to tap, for use with a Kubernetes file, which does not."""
LISTS: Final = frozenset({"ports", "addrs"})
OPTION_NAMES: Final = {"ports": "port", "addrs": "addr", "shadows": "shadow"}


def beside(iface: str | None, ports: tuple[int, ...]) -> dict[str, Any]:
    """The fields that options add to a Kubernetes file, for commands that have only these options."""
    return {name: value for name, value in (("iface", iface), ("ports", list(ports))) if value}


def specs_of(
    context: click.Context,
    file: str | None,
    resolve: tuple[str, ...],
    *,
    strict: bool,
    options: dict[str, Any],
) -> list[TapSpec]:
    """The taps of a file, or the one that options describe.  Ends the program on an error, with exit code 2."""
    given = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if file is not None:
        said = {name: list(options[name]) if name in LISTS else options[name] for name in given & BESIDE}
        if given - BESIDE:
            first = min(given - BESIDE)
            fail(f"--{OPTION_NAMES.get(first, first)} cannot be combined with -f: set it in the file", 2)
        from tapmirror.cli.files import read_file

        return read_file(file, said, resolve, strict=strict)
    if resolve or strict:
        fail("--resolve and --strict are for files of Kubernetes (-f)", 2)
    return [spec_of(**options, probe_given="noise_probe" in given)]


def spec_of(
    *,
    iface: str | None,
    ports: tuple[int, ...],
    shadows: tuple[str, ...],
    host: str | None,
    protocol: str,
    capture: str,
    pacing: str,
    compare: str,
    noise_probe: float,
    probe_given: bool,
    **rest: Any,
) -> TapSpec:
    """The tap that options describe."""
    for name, value in (("iface", iface), ("port", ports), ("shadow", shadows)):
        if value is None or value == ():
            raise click.UsageError(f"Missing option '--{name}' (or '-f' with a file).")
    try:
        rewrite = Rewrite(host=host) if host is not None else Rewrite()
        spec = TapSpec(
            iface=iface or "",
            ports=ports,
            shadows=tuple(parse_shadow(shadow, rewrite=rewrite) for shadow in shadows),
            protocol=Protocol(protocol),
            capture=Capture(capture),
            pacing=Pacing(pacing),
            compare=Compare(level=Level(compare), noise_probe=noise_probe),
            **rest,
        )
        for field, message in spec.slips(probe_given=probe_given):
            raise SpecError(field.removeprefix("compare."), message)
        return spec
    except SpecError as error:
        for field, message in error.problems:
            click.echo(f"tapmirror: error: {as_option(f'{field}: {message}')}", err=True)
        raise SystemExit(2) from None
