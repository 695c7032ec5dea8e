"""``make up``: registry, identity provider, three services, consumer and broker on loopback, until Ctrl-C."""

import secrets
import signal
import sys
import tempfile
from pathlib import Path

import requests

from demo.processes import ProcessFailed, free_port
from demo.stack import CASES, CLIENT, LOGIN, RESOURCE, CommandFailed, Stack

REGISTRY_PORT = 8000
PORTS = {CLIENT: 8001, RESOURCE: 8002, LOGIN: 8003, CASES: 8004}
"""The preferred ports; any free port replaces one that is taken."""

LINES = """
Everything runs. Try, in another terminal (Ctrl-C here stops it all):

  # first, once: the programs, the secrets, and the service of `peerseal` and `demo.publish`
  {exports}

  http {client}/my-public-credentials
  http {client}/profiles/1
  http POST {client}/refresh-my-credentials Operator-Secret:$CLIENT_OPERATOR_SECRET

  # as a user; `http {client}/` lists every route with its line
  {login_line}
  http {client}/profiles/1 -A bearer -a $TOKEN
  http POST {client}/orders 'items[0][itemID]=pen' 'items[0][quantity]:=2' -A bearer -a $TOKEN
  http {client}/invoices -A bearer -a $TOKEN
  http {client}/cases -A bearer -a $TOKEN         # from a third service, through resource-service

  # a program without the SDK: the user's token is exchanged at the registry for an event's, and the order is published
  {exchange}
  python -m demo.publish /tmp/order.json $EVENT_TOKEN
  http {client}/invoices -A bearer -a $TOKEN

  # in the browser, as ada with the password $CLIENT_DEMO_PASSWORD
  python -m demo.console_client --login {login} --edge {client}

  http {resource}/profiles/1                      # refused: no token
  http {registry}/v1/services/client-service/jwks.json
  http {registry}/v1/changes
  http {registry}/.well-known/peerseal-registry

  peerseal-registry services
  peerseal-registry keys client-service
  peerseal-registry domain explain

The broker is at {broker}; logs are in {logs}.
"""


def main() -> int:
    """Start everything, wait for Ctrl-C or SIGTERM, stop everything; → the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if a shell started us with SIGINT ignored
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
    """Start everything and print lines to try."""
    print("starting …", flush=True)
    secret, password = secrets.token_hex(12), secrets.token_hex(12)
    ports = {name: free_port(port) for name, port in PORTS.items()}
    running = stack.start_all(password, operator_secret=secret, ports=ports)
    shown = requests.get(running.client.url, timeout=10).json()
    settings = {
        "PATH": f"{Path(sys.executable).parent}:$PATH",
        "CLIENT_DEMO_PASSWORD": password,
        "CLIENT_OPERATOR_SECRET": secret,
        "REGISTRY_HOME": stack.registry_settings["REGISTRY_HOME"],
        "BROKER_URL": running.broker_url,
        **stack.legacy_settings(),
    }
    lines = LINES.format(
        exports="\n  ".join(f"export {name}={value}" for name, value in settings.items()),
        login_line=shown["login"],
        exchange="\n  ".join(shown["exchange"]),
        client=running.client.url,
        login=running.login.url,
        resource=running.resource.url,
        registry=running.registry.url,
        broker=running.broker_url,
        logs=stack.root / "logs",
    )
    print(lines, flush=True)


if __name__ == "__main__":
    sys.exit(main())
