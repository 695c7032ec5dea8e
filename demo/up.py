"""``make up``: registry, identity provider, three services, consumer and broker on loopback, until Ctrl-C."""

import os
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from demo.processes import ProcessFailed, free_port
from demo.stack import CommandFailed, Stack

REGISTRY_PORT, CLIENT_PORT, RESOURCE_PORT, LOGIN_PORT, CASES_PORT = 8000, 8001, 8002, 8003, 8004
"""Where they listen, if nobody else does."""

LINES = """
Everything runs. Try, in another terminal (Ctrl-C here stops it all):

  http {client}/
  http {client}/my-public-credentials
  http {client}/profiles/1
  http POST {client}/refresh-my-credentials Operator-Secret:{secret}

  TOKEN=$(http --ignore-stdin -b POST {client}/authenticate user=ada password={password} | cut -d'"' -f4)
  http {client}/profiles/1 "Authorization:Bearer $TOKEN"
  http POST {client}/orders "Authorization:Bearer $TOKEN" items:='[{{"itemID": "pen", "quantity": 2}}]'
  http {client}/invoices "Authorization:Bearer $TOKEN"
  http {client}/cases "Authorization:Bearer $TOKEN"    # from a third service, by way of resource-service

  # in the browser, as ada with the password {password}
  {programs}/python -m demo.console_client --login {login} --edge {client}

  http {resource}/profiles/1                      # refused: no token
  http {registry}/v1/services/client-service/jwks.json
  http {registry}/v1/changes
  http {registry}/.well-known/peerseal-registry

  REGISTRY_HOME={home} {programs}/peerseal-registry services
  REGISTRY_HOME={home} {programs}/peerseal-registry keys client-service

http is {programs}/http; the broker is at {broker}; logs are in {logs}.
"""


def main() -> int:
    """Start everything, wait for Ctrl-C or SIGTERM, stop everything; → the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started us with it ignored
    with tempfile.TemporaryDirectory(prefix="peerseal-up-") as folder:
        try:
            with Stack(Path(folder), registry_port=free_port(REGISTRY_PORT)) as stack:
                start(stack)
                signal.pause()
        except KeyboardInterrupt:
            print("\nstopped")
        except (ProcessFailed, CommandFailed) as failure:
            print(failure, file=sys.stderr)
            return 1
    return 0


def start(stack: Stack) -> None:
    """Start everything and print what can be tried."""
    print("starting …", flush=True)
    secret, password = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
    login = stack.start_identity_provider(password, port=free_port(LOGIN_PORT))
    stack.start_registry()
    stack.let_users_in()
    _, broker_url = stack.start_broker()
    stack.start_case_service(port=free_port(CASES_PORT))
    resource = stack.start_resource_service(port=free_port(RESOURCE_PORT))
    client = stack.start_client_service(
        resource.url, operator_secret=secret, broker_url=broker_url, port=free_port(CLIENT_PORT)
    )
    stack.start_invoicing(resource.url, broker_url)
    lines = LINES.format(
        client=client.url,
        login=login.url,
        resource=resource.url,
        registry=stack.registry_url,
        secret=secret,
        password=password,
        broker=broker_url,
        home=stack.registry_settings["REGISTRY_HOME"],
        programs=os.path.relpath(Path(sys.executable).parent),
        logs=stack.root / "logs",
    )
    print(lines, flush=True)


if __name__ == "__main__":
    sys.exit(main())
