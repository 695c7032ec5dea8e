"""``make demo``: the whole idea on real processes. Exits with 1 if any answer differs from the expected one."""

import logging
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

# Shorter than the default half minute, so that the demo is fast.
FAST_ROTATION = {"PEERSEAL_ROTATE_LEAD": "3", "PEERSEAL_ROTATE_OVERLAP": "5"}


def main() -> int:
    """Start everything, run the scenes, stop everything; → the exit code."""
    logging.basicConfig(level=logging.WARNING)
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
    running = stack.start_all(password, operator_secret=secret, preload=True)
    show.say(f"registry {running.registry.url}   identity provider {running.login.url}")
    show.say(f"client-service {running.client.url}   resource-service {running.resource.url}")
    show.say(f"case-service {running.cases.url}   broker, librdkafka's own: {running.broker_url}")
    identity = peerseal.Identity.from_env(stack.service_settings(CLIENT)).start()
    urls = running.client.url, running.resource.url, running.cases.url
    return Stage(show, stack, *urls, identity, secret, password, running.broker_url)


if __name__ == "__main__":
    sys.exit(main())
