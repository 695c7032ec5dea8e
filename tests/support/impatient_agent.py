"""``python -m tests.support.impatient_agent PLACE``: an agent with few connections, and little time for each.

PLACE is the path of a Unix socket, or HOST:PORT.
"""

import sys
from pathlib import Path

from peerseal.agent.application import Agent
from peerseal.agent.listening import loopback_socket, unix_socket, users_of
from peerseal.agent.serving import Limits, serve
from peerseal.commands.own_identity import own_identity

LIMITS = Limits(connections=10, transfer=1)


def main(place: str) -> None:
    on_loopback = ":" in place
    users = users_of(())
    listening = loopback_socket(place) if on_loopback else unix_socket(Path(place), users)
    with listening as listener, own_identity() as identity:
        agent = Agent(identity, allow={}, secret="0123456789abcdef" * 2 if on_loopback else None)
        serve(agent, listener, None if on_loopback else users, limits=LIMITS)


if __name__ == "__main__":
    main(sys.argv[1])
