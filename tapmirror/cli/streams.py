# SPDX-License-Identifier: Apache-2.0
"""`tapmirror streams`: what is in a capture file, stream by stream."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

import click
from rich.console import Console
from rich.progress import Progress

from tapmirror.cli.closed import Closed
from tapmirror.cli.messages import fail, warn
from tapmirror.cli.numbers import PORT
from tapmirror.offline import Options, Reader
from tapmirror.source.blocks import CaptureError
from tapmirror.source.files import CaptureFile
from tapmirror.spec import Limits

BIG: Final = 32 << 20
"""Bytes of a file from which on a progress bar is shown."""


@click.command(short_help="List the TCP streams of a capture file.")
@click.argument("file", type=click.Path(allow_dash=True, readable=False), metavar="FILE")
@click.option(
    "--port",
    "ports",
    type=PORT,
    multiple=True,
    help="Only connections with this port; repeatable.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False), metavar="FILE.jsonl", help="Write to this file, not to standard output."
)
@click.option(
    "--payload-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the bytes of each direction to a file in this directory.",
)
@click.option("--http", is_flag=True, help="Also list each HTTP/1 request.")
@click.option("--decap/--no-decap", default=True, show_default=True, help="Decode tunnels.")
@click.option("--verify-checksums", is_flag=True, help="Leave out segments with a wrong TCP checksum.")
def streams(
    *,
    file: str,
    ports: tuple[int, ...],
    out: str | None,
    payload_dir: Path | None,
    http: bool,
    decap: bool,
    verify_checksums: bool,
) -> None:
    """List the TCP streams of a capture FILE as JSON, one per line.

    FILE is a pcap or pcapng file, or one of these compressed with gzip; `-` is standard input.  Decoding, reassembly
    and framing are the same as in a live tap.  A damaged file gives the streams up to the damage, one line that says
    where it is, and exit code 2.

    \b
    Examples:
      tapmirror streams traffic.pcap
      tapmirror streams traffic.pcapng.gz --port 80 --http --out streams.jsonl
      tcpdump -i eth0 -s 0 -w - tcp port 6379 | tapmirror streams - --payload-dir payloads
    """  # noqa: D301 -- click wants the control character
    options = Options(ports=ports, http=http, payload_dir=payload_dir, tunnels=decap, checksums=verify_checksums)
    try:
        capture = CaptureFile(file)
    except CaptureError as error:
        fail(f"{file}: {error}", 2)
    if out is not None and capture.is_same(out):
        fail(f"--out {out}: that is the capture file itself", 2)
    if out is None and isinstance(sys.stdout, Closed):
        fail("standard output is closed (see --out)", 2)
    try:
        with contextlib.closing(capture), _output(out) as output, _progress(capture):
            reader = Reader(capture, options, Limits())
            for record in reader.records():
                output.write(json.dumps(record) + "\n")
            output.flush()
    except CaptureError as error:
        fail(f"{file}: {error}", 2)
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- or the interpreter tries again at its end
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe
            raise SystemExit(1) from None
        fail(f"{error.filename or out or 'standard output'}: {error.strerror}", 2)
    for remark in reader.remarks():
        warn(f"{file}: {remark}")


@contextlib.contextmanager
def _output(out: str | None) -> Iterator[TextIO]:
    """The output for the records.  What was written stays there if an error follows."""
    if out is None:
        yield sys.stdout
    else:
        with open(out, "w", encoding="utf-8") as file:
            yield file


@contextlib.contextmanager
def _progress(capture: CaptureFile) -> Iterator[None]:
    """A progress bar, for a big file on a terminal."""
    if capture.size < BIG or not sys.stderr.isatty():
        yield
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=capture.size)
        capture.on_read = functools.partial(progress.advance, task)
        yield
