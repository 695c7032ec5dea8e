"""``make demo``: the whole idea on real processes. Ends with 1 where anything answers otherwise than promised."""

import os
import secrets
import sys
import tempfile
from pathlib import Path

import peerseal
from demo.httpie import HttpieFailed
from demo.processes import ProcessFailed
from demo.scenes import play
from demo.scenes.stage import Stage
from demo.show import Show, Unexpected
from demo.stack import CLIENT, CommandFailed, Stack

# So that the demo need not wait for the half minute that watching services have in earnest.
FAST_ROTATION = {"PEERSEAL_ROTATE_LEAD": "3", "PEERSEAL_ROTATE_OVERLAP": "5"}


def main() -> int:
    """Start everything, play the scenes, stop everything; → the exit code."""
    with tempfile.TemporaryDirectory(prefix="peerseal-demo-") as folder, Stack(Path(folder)) as stack:
        os.environ["NO_PROXY"] = "127.0.0.1,localhost"
        stack.settings.update(FAST_ROTATION)
        show = Show()
        try:
            stage = set_up(stack, show)
            play(stage)
            show.end()
            stage.client.stop()
        except (Unexpected, TimeoutError, ProcessFailed, CommandFailed, HttpieFailed) as failure:
            print(f"\nThe demo failed: {failure}", file=sys.stderr)
            for log in sorted(stack.root.glob("logs/*.log")):
                print(f"--- the end of {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
            return 1
    return 0


def set_up(stack: Stack, show: Show) -> Stage:
    """The registry on SQLite, identity provider, three services, the consumer and a broker, running."""
    show.say("Starting the registry (SQLite, 2 workers), resource-service and client-service (2 workers each),")
    show.say("an identity provider, case-service, the invoicing consumer and a broker …")
    secret, password = secrets.token_urlsafe(24), secrets.token_urlsafe(12)
    login = stack.start_identity_provider(password)
    stack.start_registry()
    stack.let_users_in()
    _, broker_url = stack.start_broker()
    cases = stack.start_case_service()
    resource = stack.start_resource_service(preload=True)
    client = stack.start_client_service(resource.url, operator_secret=secret, broker_url=broker_url, preload=True)
    stack.start_invoicing(resource.url, broker_url)
    show.say(f"registry {stack.registry_url}   resource-service {resource.url}   client-service {client.url}")
    show.say(f"identity provider {login.url}   case-service {cases.url}   broker, librdkafka's own: {broker_url}")
    identity = peerseal.Identity.from_env(stack.service_settings(CLIENT)).start()
    return Stage(show, stack, client.url, resource.url, cases.url, identity, secret, password, broker_url)


if __name__ == "__main__":
    sys.exit(main())
