"""``peerseal assertion``: proves to the registry's token endpoint which service asks, for programs without the SDK.

The service is the environment's, as for `peerseal.Identity.from_env`; its key is made and registered on first use, and
stays registered: ``PEERSEAL_KEY_DIR`` says where. Each call also replaces the key where that is due, so that a
call in each key's life (a week) needs no second join token.
"""

import argparse
import logging
import os

from peerseal.errors import ConfigurationError, PeersealError
from peerseal.identity.identity import Identity
from peerseal.protocol.tokens.assertion import ASSERTION_LIFETIME
from peerseal.runtime.settings import SettingsReader
from peerseal.runtime.terminal import say, say_json

PATIENCE = 10.0
"""Seconds for the attempt of a first registration; the next call continues with the same key."""

log = logging.getLogger(__name__)


def add_assertion(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "assertion",
        help="print a client assertion for the registry's token endpoint",
        description="Prints a fresh client assertion (RFC 7523) of the service in PEERSEAL_SERVICE, good once.",
        epilog="Needs PEERSEAL_SERVICE, PEERSEAL_REGISTRY_URL, PEERSEAL_KEY_DIR, and a join token for the first key.",
    )
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="as JSON, with the service's id and the lifetime"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the assertion. Raises ConfigurationError, EnrolmentRefused, EnrolmentPending, FetchError or
    TrustUnavailable."""
    if SettingsReader(os.environ).path("PEERSEAL_KEY_DIR") is None:
        raise ConfigurationError("PEERSEAL_KEY_DIR is not set: the key would be gone with this command")
    identity = Identity.from_env({**os.environ, "PEERSEAL_RETIRE_AT_EXIT": "0"}).start(timeout=PATIENCE)
    try:
        _look_after_keys(identity)
        assertion = identity.sign_assertion()
        answer = {"client_assertion": assertion, "client_id": identity.id, "expires_in": ASSERTION_LIFETIME}
        if arguments.as_json:
            say_json(answer)
        else:
            say(assertion)
    finally:
        identity.stop()
    return 0


def _look_after_keys(identity: Identity) -> None:
    """Replaces the key where that is due. The current key stays valid where that fails."""
    try:
        identity.look_after_keys()
    except PeersealError as error:
        log.warning("the next key of %s is not registered yet: %s", identity.service, error)
