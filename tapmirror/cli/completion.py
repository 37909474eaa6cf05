# SPDX-License-Identifier: Apache-2.0
"""`tapmirror completion`: what a shell needs to complete commands, options, files and the names of taps."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

CALLED_OR_REGISTERED: Final = """\
if [[ $funcstack[1] == _tapmirror ]]; then
    _tapmirror_completion "$@"
else
    compdef _tapmirror_completion tapmirror
fi"""
"""The end of what zsh reads, from a file of fpath or another."""

MENDED: Final = (
    # zsh: the file of fpath is run for each completion, and only the first time in the context that click looks for.
    ("$zsh_eval_context[-1] == loadautofunc", "$funcstack[1] == _tapmirror"),
    # The same for click 8.1, which only registers.
    ("\ncompdef _tapmirror_completion tapmirror;", f"\n{CALLED_OR_REGISTERED}"),
    # fish: a description may have commas.
    ('string split ","', 'string split --max 1 ","'),
)
"""In what click prints."""


@click.command(short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script with which a shell completes commands, options, files and names of the daemon's taps.

    It completes the names that the user of the shell may see.  If only root may, there are none, even behind sudo.

    \b
    Examples:
      source <(tapmirror completion bash)         # in this shell; or in ~/.bashrc
      source <(tapmirror completion zsh)          # in ~/.zshrc, after compinit
      tapmirror completion zsh > ~/.zfunc/_tapmirror   # or this way, with ~/.zfunc in fpath before compinit
      tapmirror completion fish > ~/.config/fish/completions/tapmirror.fish
    """  # noqa: D301 -- click wants the control character
    found = get_completion_class(shell)
    assert found is not None
    text = found(context.find_root().command, {}, "tapmirror", "_TAPMIRROR_COMPLETE").source()
    for old, new in MENDED:
        text = text.replace(old, new)
    click.echo(text)
