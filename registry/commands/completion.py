"""``peerseal-registry completion``: the script with which a shell completes commands and options."""

import click
from click.shell_completion import get_completion_class

from registry.commands.common import json_option, show

_PROGRAM = "peerseal-registry"
_VARIABLE = "_PEERSEAL_REGISTRY_COMPLETE"
"""The variable by which the script asks the program for completions, as click names it."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def completion(context: click.Context, shell: str, as_json: bool) -> None:
    """Prints a script with which the shell completes commands and options.

    For bash, write this line into ~/.bashrc: eval "$(peerseal-registry completion bash)"
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click has no completion for {shell}")
    script = kind(context.find_root().command, {}, _PROGRAM, _VARIABLE).source()
    show({"shell": shell, "script": script}, as_json, script.rstrip("\n"))
