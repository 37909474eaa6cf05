# SPDX-License-Identifier: Apache-2.0
"""`tapmirror spec` and `tapmirror explain`: what a file may contain, and what a given file will do."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import click

from tapmirror.cli.files import read_bytes, read_file
from tapmirror.cli.messages import fail, refuse_file, warn
from tapmirror.cli.numbers import WHOLE
from tapmirror.cli.options import beside, joined
from tapmirror.spec import nginx_syntax
from tapmirror.spec.document import FileError
from tapmirror.spec.gor import from_gor
from tapmirror.spec.nginx import from_nginx
from tapmirror.spec.translated import Translation


@click.command(short_help="Print the reference of the YAML file, or translate rules.")
@click.option("--schema", is_flag=True, help="Print a JSON Schema, for editors and validators.")
@click.option("--example", is_flag=True, help="Print an example with every field.")
@click.option("--from-gor", "gor", metavar="COMMAND", help="Translate a command line of GoReplay.")
@click.option(
    "--from-nginx",
    "nginx",
    type=click.Path(allow_dash=True, readable=False),
    metavar="FILE",
    help="Translate the `mirror` directives of nginx; - is standard input.",
)
@click.option(
    "--iface",
    multiple=True,
    callback=joined,
    metavar="IFACE",
    help="Interface of the tap, for --from-gor and --from-nginx.",
)
@click.option("--strict", is_flag=True, help="Refuse rules that have no equivalent, for the same two.")
def spec(*, schema: bool, example: bool, gor: str | None, nginx: str | None, iface: str | None, strict: bool) -> None:
    """Print the reference of the file for `tapmirror run -f`, or translate another tool's rules into such a file.

    Rules that have no equivalent are reported on standard error, and as comments in the file.

    \b
    Examples:
      tapmirror spec --example > tap.yaml
      tapmirror spec --schema > tapmirror.schema.json
      tapmirror spec --from-gor 'gor --input-raw :80 --output-http "http://staging:8080|10%"' --iface eth0
      nginx -T | tapmirror spec --from-nginx - --iface eth0
    """  # noqa: D301 -- click wants the control character
    if [schema, example, gor is not None, nginx is not None].count(True) != 1:
        fail("give one of --schema, --example, --from-gor and --from-nginx", 2)
    if schema or example:
        if iface is not None or strict:
            fail("--iface and --strict go with --from-gor and --from-nginx", 2)
        from tapmirror.spec import reference  # it reads the sources, so only when asked for

        click.echo(json.dumps(reference.schema(), indent=2) if schema else reference.example(), nl=schema)
        return
    if gor is not None:
        name = "--from-gor"
        read: Callable[[], Translation] = partial(from_gor, gor, iface)
    else:
        name = "standard input" if nginx == "-" else str(nginx)
        read = partial(from_nginx, read_bytes(str(nginx), "--from-nginx", nginx_syntax.MAX_BYTES), iface)
    try:
        found = read()
        if strict and found.left_out:
            raise FileError(found.left_out)
    except FileError as problems:
        refuse_file(name, problems)
    for problem in found.left_out:
        warn(problem.of(name))
    click.echo(found.text("a command line of GoReplay" if gor is not None else "a configuration of nginx"), nl=False)


@click.command(short_help="Describe in plain words what the taps of a file do.")
@click.option(
    "-f",
    "--file",
    type=click.Path(allow_dash=True, readable=False),
    metavar="FILE",
    required=True,
    help="Read taps from a YAML file; - is standard input.",
)
@click.option("--iface", multiple=True, callback=joined, metavar="IFACE", help="For Kubernetes files, as for `run`.")
@click.option("--port", "ports", type=WHOLE, multiple=True, metavar="PORT", help="For Kubernetes files, as for `run`.")
@click.option("--resolve", multiple=True, metavar="NAME=HOST:PORT", help="For Kubernetes files, as for `run`.")
@click.option("--strict", is_flag=True, help="For Kubernetes files, as for `run`.")
def explain(*, file: str, iface: str | None, ports: tuple[int, ...], resolve: tuple[str, ...], strict: bool) -> None:
    """Describe in plain words what each tap and rule will do, in which order, and what it costs.

    Words in parentheses, such as (no_rule), are the reasons by which the ledger counts what is not mirrored.  Touches
    no interface and needs no root.

    \b
    Example:
      tapmirror explain -f tap.yaml
    """  # noqa: D301 -- click wants the control character
    from tapmirror.spec.explain import explain as in_words

    for i, tap in enumerate(read_file(file, beside(iface, ports), resolve, strict=strict)):
        if i:
            click.echo()
        for line in in_words(tap):
            click.echo(line)
