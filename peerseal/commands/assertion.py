"""``peerseal assertion``: proves to the registry's token endpoint which service asks, for programs without the SDK.

The service is the environment's, as for `peerseal.Identity.from_env`; its key is made and registered on first use, and
stays registered: ``PEERSEAL_KEY_DIR`` says where.
"""

import argparse
import json
import os

import peerseal
from peerseal.errors import ConfigurationError
from peerseal.protocol.assertions import ASSERTION_LIFETIME


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "assertion",
        help="print a client assertion for the registry's token endpoint",
        description="Prints a fresh client assertion (RFC 7523) of the service in PEERSEAL_SERVICE, good once.",
        epilog="Needs PEERSEAL_SERVICE, PEERSEAL_REGISTRY_URL, PEERSEAL_KEY_DIR, and a join token for the first key.",
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="with the service's id and the end")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints it. Raises ConfigurationError, EnrolmentRefused, FetchError or TrustUnavailable."""
    if not os.environ.get("PEERSEAL_KEY_DIR"):
        raise ConfigurationError("PEERSEAL_KEY_DIR is not set: the key would be gone with this command")
    identity = peerseal.Identity.from_env({**os.environ, "PEERSEAL_RETIRE_AT_EXIT": "0"}).start()
    try:
        assertion = identity.sign_assertion()
        said = {"client_assertion": assertion, "client_id": identity.id, "expires_in": ASSERTION_LIFETIME}
        print(json.dumps(said) if arguments.as_json else assertion)
    finally:
        identity.stop()
    return 0
