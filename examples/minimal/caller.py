"""A caller: it signs each request to the callee, whose URL is its only argument, and prints the answer."""

import sys

import peerseal


def main(callee_url: str) -> None:
    """Ask for one greeting. The caller's name, registry and join token come from the environment."""
    identity = peerseal.Identity.from_env().start()
    with identity.session("callee", callee_url) as callee:
        answer = callee.get("/greetings/ada")
    print(answer.status_code, answer.json())


if __name__ == "__main__":
    main(sys.argv[1])
