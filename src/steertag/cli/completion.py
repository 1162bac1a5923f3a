"""`stag completion`: the script that teaches a shell to complete `stag`."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

_SHELLS: dict[str, type[ShellComplete]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


@click.command()
@click.argument("shell", type=click.Choice(tuple(_SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script for SHELL.

    \b
    bash:  eval "$(stag completion bash)"      in ~/.bashrc
    zsh:   eval "$(stag completion zsh)"       in ~/.zshrc
    fish:  stag completion fish | source       in ~/.config/fish/config.fish
    """
    root = ctx.find_root().command
    script = _SHELLS[shell](root, {}, "stag", "_STAG_COMPLETE")
    # Not script.source(): for bash that starts one to ask its version. `complete -o nosort`
    # needs 4.4, of 2016.
    click.echo(script.source_template % script.source_vars())
