"""``peerseal agent``: signs and verifies requests for the programs of a host that are without the SDK."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from peerseal import logs
from peerseal.commands.arguments import Subcommands, add_command
from peerseal.commands.own_identity import own_identity
from peerseal.commands.verification import allowed
from peerseal.errors import ConfigurationError
from peerseal.runtime.terminal import say, say_json

if TYPE_CHECKING:
    import socket


def add_agent(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "agent",
        _run_agent,
        summary="sign and verify requests for local programs without the SDK",
        description="Signs and verifies requests for local programs, over HTTP on a Unix socket or on loopback.",
        examples=(
            "peerseal agent --socket /run/peerseal/agent.sock --allow shop=orders:read",
            "peerseal agent --listen 127.0.0.1:7070 --secret-file agent.secret",
        ),
        exit_codes="0 ended by a signal, 1 an error, 2 wrong usage, 3 the registry cannot be reached, 5 the key waits"
        " for an operator",
        as_json="say as JSON where the agent listens",
        log=logs.configure,
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", type=Path, metavar="PATH", help="the Unix socket to listen on")
    place.add_argument("--listen", metavar="HOST:PORT", help="a loopback address to listen on; needs --secret-file")
    parser.add_argument(
        "--allow-user",
        action="append",
        default=[],
        metavar="USER",
        help="a user, besides the agent's own, that may use the socket; repeatable",
    )
    parser.add_argument("--secret-file", type=Path, metavar="FILE", help="the secret of each call on loopback")
    parser.add_argument(
        "--allow",
        action="append",
        metavar="CALLER=SCOPES",
        help="a service that may call, and its scopes joined by commas; repeatable",
    )


def _run_agent(arguments: argparse.Namespace) -> int:
    """Serves until a signal ends it. Raises ConfigurationError, and as `own_identity` does."""
    try:
        # loaded here: other commands do without uvicorn
        from peerseal.agent.application import Agent
        from peerseal.agent.serving import serve
    except ModuleNotFoundError as error:
        raise ConfigurationError(str(error)) from error
    allow = allowed(arguments.allow) or {}
    with _place(arguments) as place, own_identity() as identity:
        agent = Agent(identity, allow=allow, secret=place.secret)
        identity.is_ready()  # fetches the registry's keys before the first question
        if arguments.as_json:
            say_json({"service": identity.service, "listens": place.shown})
        else:
            say(f"the agent of {identity.service} listens on {place.shown}")
        serve(agent, place.listener, place.users)
    return 0


class _Place(NamedTuple):
    """Where the agent listens, and for which users, or with which secret."""

    listener: "socket.socket"
    shown: str
    users: frozenset[int] | None = None
    secret: str | None = None


@contextmanager
def _place(arguments: argparse.Namespace) -> Iterator[_Place]:
    """Raises ConfigurationError."""
    from peerseal.agent.listening import loopback_socket, secret_in, unix_socket, users_of

    if arguments.socket is not None:
        if arguments.secret_file is not None:
            raise ConfigurationError("--secret-file is for --listen: on a Unix socket the kernel tells who asks")
        users = users_of(arguments.allow_user)
        with unix_socket(arguments.socket, users) as listener:
            yield _Place(listener, str(arguments.socket), users=users)
        return
    if arguments.secret_file is None or arguments.allow_user:
        raise ConfigurationError("--listen needs --secret-file and takes no --allow-user: every user can connect there")
    secret = secret_in(arguments.secret_file)
    with loopback_socket(arguments.listen) as listener:
        host, port = listener.getsockname()[:2]
        yield _Place(listener, f"http://{f'[{host}]' if ':' in host else host}:{port}", secret=secret)
