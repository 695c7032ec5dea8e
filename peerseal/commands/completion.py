"""``peerseal completion``: the script with which a shell completes commands, options and file names."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peerseal.commands.arguments import Subcommands, add_command
from peerseal.errors import ConfigurationError
from peerseal.runtime.extras import missing
from peerseal.runtime.terminal import naming, say_json

SHELLS = ("bash", "zsh", "fish", "tcsh")
_FOLDERS = ("DIR", "FOLDER")
"""Names of arguments that are folders; other paths are files."""

Build = Callable[[type[argparse.ArgumentParser]], argparse.ArgumentParser]


def add_completion(commands: Subcommands, *, build: Build) -> None:
    """Adds the command. ``build`` makes the parser of the whole program, of parsers of the given class."""

    def run(arguments: argparse.Namespace) -> int:
        script = script_of(build, arguments.shell)
        if arguments.as_json:
            say_json({"shell": arguments.shell, "script": script})
        else:
            with naming("standard output"):
                print(script)
        return 0

    parser = add_command(
        commands,
        "completion",
        run,
        summary="print a script that completes commands in a shell",
        description="Prints a script with which the shell completes commands, options and file names of peerseal.",
        examples=(
            'eval "$(peerseal completion bash)"    # in ~/.bashrc',
            "peerseal completion fish > ~/.config/fish/completions/peerseal.fish",
        ),
        exit_codes="0 done, 2 wrong usage, or shtab is not installed: pip install 'peerseal[completion]'",
        as_json="as JSON, with the name of the shell",
    )
    parser.add_argument("shell", choices=SHELLS, help=f"one of {', '.join(SHELLS)}", metavar="SHELL")


def script_of(build: Build, shell: str) -> str:
    """The script for that shell, one of `SHELLS`. Raises ConfigurationError where shtab is not installed."""
    try:
        import shtab  # an extra, which services do not need
    except ModuleNotFoundError as error:
        raise ConfigurationError(str(missing(error, "completion"))) from error

    class Parser(argparse.ArgumentParser):
        """Tells shtab which arguments are files and folders, and describes a command in one sentence."""

        def __init__(self, *, description: str = "", **options: Any) -> None:
            super().__init__(description=" ".join(description.split()).partition(". ")[0], **options)

        def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
            """See argparse.ArgumentParser."""
            action = super().add_argument(*names, **options)
            if action.type is Path:
                kind = shtab.DIRECTORY if action.metavar in _FOLDERS else shtab.FILE
                action.complete = kind  # type: ignore[attr-defined]  # where shtab looks for it
            return action

    script: str = shtab.complete(build(Parser), shell)
    return script
