# SPDX-License-Identifier: Apache-2.0
"""`tapmirror spec` and `tapmirror explain`: what a file may say, and what one says."""

from __future__ import annotations

import json
from typing import Any

import click

from tapmirror.cli.files import read_file
from tapmirror.cli.messages import fail


@click.command(short_help="What a file of taps may say.")
@click.option("--schema", is_flag=True, help="As JSON Schema, for editors and checkers.")
@click.option("--example", is_flag=True, help="As an example with every field.")
def spec(*, schema: bool, example: bool) -> None:
    """Print the reference of the file that `tapmirror run -f` takes.

    \b
    Examples:
      tapmirror spec --example > tap.yaml
      tapmirror spec --schema > tapmirror.schema.json
    """  # noqa: D301 -- click wants the control character
    from tapmirror.spec import reference  # reads the sources: only here

    if schema == example:
        fail("give --schema or --example", 2)
    click.echo(json.dumps(reference.schema(), indent=2) if schema else reference.example(), nl=schema)


@click.command(short_help="Say in plain words what the taps of a file do.")
@click.option("-f", "--file", metavar="FILE", required=True, help="Taps of a YAML file; - is standard input.")
@click.option("--iface", metavar="IFACE", help="For files of Kubernetes, as of `run`.")
@click.option("--port", "ports", type=int, multiple=True, help="The same.")
@click.option("--resolve", multiple=True, metavar="NAME=HOST:PORT", help="The same.")
@click.option("--strict", is_flag=True, help="The same.")
def explain(*, file: str, iface: str | None, ports: tuple[int, ...], resolve: tuple[str, ...], strict: bool) -> None:
    """Say in plain words what each tap and rule will do, in which order, and what it costs.

    Touches no interface and needs no root.

    \b
    Example:
      tapmirror explain -f tap.yaml
    """  # noqa: D301 -- click wants the control character
    from tapmirror.spec.explain import explain as in_words

    given: dict[str, Any] = {"ports": list(ports)} if ports else {}
    if iface is not None:
        given["iface"] = iface
    for i, tap in enumerate(read_file(file, given, resolve, strict=strict)):
        if i:
            click.echo()
        for line in in_words(tap):
            click.echo(line)
