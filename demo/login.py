"""``make login``: a login in the browser, an order and its invoice, on real processes that end afterwards."""

import secrets
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from demo import console_client
from demo.processes import ProcessFailed
from demo.stack import CommandFailed, Stack


def main(arguments: Sequence[str] | None = None) -> int:
    """Start everything, run the console client with ``arguments``, stop everything; → the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    with tempfile.TemporaryDirectory(prefix="peerseal-login-") as folder, Stack(Path(folder)) as stack:
        try:
            login_url, edge_url, password = start(stack)
        except (ProcessFailed, CommandFailed) as failure:
            print(failure, file=sys.stderr)
            return 1
        print(f"Log in as ada, grace or katherine; the password is {password}", flush=True)
        return console_client.main(["--login", login_url, "--edge", edge_url, *given])


def start(stack: Stack) -> tuple[str, str, str]:
    """The console client's arguments: the URLs of login page and edge, and the demo users' password."""
    print("starting …", flush=True)
    password = secrets.token_urlsafe(12)
    running = stack.start_all(password)
    return running.login.url, running.client.url, password


if __name__ == "__main__":
    sys.exit(main())
