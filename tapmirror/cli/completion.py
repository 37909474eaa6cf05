# SPDX-License-Identifier: Apache-2.0
"""`tapmirror completion`: what a shell needs to complete commands, options and the names of taps."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Print what makes a shell complete our commands.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and the names of the daemon's taps.

    \b
    Examples:
      source <(tapmirror completion bash)         # in this shell; or in ~/.bashrc
      tapmirror completion zsh > ~/.zfunc/_tapmirror
      tapmirror completion fish > ~/.config/fish/completions/tapmirror.fish
    """  # noqa: D301 -- click wants the control character
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, "tapmirror", "_TAPMIRROR_COMPLETE").source())
