"""Who else is believed, and why: signed answers, and a registry that shows two histories."""

import shutil
import sqlite3
import subprocess
import textwrap
from contextlib import closing
from pathlib import Path

import peerseal
from demo.altering import altering
from demo.processes import BIN, environment
from demo.scenes.stage import Stage, wait_until
from demo.show import bearer
from demo.stack import RESOURCE, Stack
from peerseal.errors import ResponseRefused
from peerseal.protocol.join import JoinToken

TERMINAL = "httpservice"
"""The service as which people call from a terminal: the host that is deceived."""
DATABASE = "registry.sqlite3"


def altered_answer(stage: Stage) -> None:
    """A proxy alters an answer, with and without signed answers."""
    show, path = stage.show, "/profiles/1"
    show.scene(
        "An answer that was altered on its way",
        "resource-service signs an answer where the caller asks for it. A proxy on the way puts in another name.",
    )
    with altering(stage.resource_url, b"Ada Lovelace", b"Mallory") as proxy:
        taken = stage.client.session(RESOURCE, proxy).get(path).json()["name"]
        show.expect(taken == "Mallory", f"a caller that asks for no signature takes it: {taken}")
        code = "accepted"
        try:
            stage.client.session(RESOURCE, proxy, require_signed_response=True).get(path)
        except ResponseRefused as refused:
            code = refused.code
        show.expect(code == "wrong_binding", f"with require_signed_response it is refused before it is read: {code}")
    name = stage.client.session(RESOURCE, stage.resource_url, require_signed_response=True).get(path).json()["name"]
    show.expect(name == "Ada Lovelace", f"without the proxy the signed answer is accepted: {name}")


def two_histories(stage: Stage) -> None:
    """A thief of the registry's keys shows one host another history. It is found while other scenes go on."""
    show, stack = stage.show, stage.stack
    show.scene(
        "A registry that shows two histories",
        "A thief of the registry's keys shows one host a ledger in which a key may be that the others never see.",
    )
    settings = stack.service_settings(TERMINAL)
    peerseal.Identity.from_env(settings).start().stop()  # it joins the true domain
    other = Stack(stack.root / "another-history")
    copy_registry(stack.root / "registry", other.root / "registry")
    stack.keep(other.start_registry(workers=1))
    other.join_token("intruder")
    show.say(f"the true registry: {stack.registry_url}   with another history: {other.registry_url}")
    deceived = settings | {
        "PEERSEAL_REGISTRY_URL": other.registry_url,
        "PEERSEAL_CACHE_DIR": str(other.root / "cache"),
        "PEERSEAL_SHARE_CHECKPOINTS": "on",
    }
    caller = peerseal.Identity.from_env(deceived).start()
    try:
        token = caller.sign_request(RESOURCE, method="GET", target="/profiles/1")
    finally:
        caller.stop()
    title = "Its token tells resource-service which checkpoint it believes. The call itself goes on:"
    show.call(f"{stage.resource_url}/profiles/1", bearer(token), status=200, title=title)


def split_view(stage: Stage) -> None:
    """The evidence, checked offline."""
    show, stack = stage.show, stage.stack
    show.scene(
        "The split view is found",
        "resource-service has compared that checkpoint with its own, and kept the proof that they contradict.",
    )
    folder = stack.root / RESOURCE / "host/cache/split-views"
    wait_until(lambda: any(folder.glob("split-view-*.json")), timeout=60)
    pin = JoinToken.parse((stack.root / TERMINAL / "host/join-token").read_text()).pin
    command = ["evidence", "verify", str(next(folder.glob("split-view-*.json"))), "--pin", pin]
    show.say(f"$ peerseal evidence verify {Path(command[2]).name} --pin {pin}")
    run = subprocess.run(
        [str(BIN / "peerseal"), *command], capture_output=True, encoding="utf-8", env=environment({}), timeout=60
    )
    for line in run.stdout.splitlines():
        show.say(textwrap.fill(line, 105, initial_indent="  ", subsequent_indent="     ", break_on_hyphens=False))
    show.expect(
        run.returncode == 0 and run.stdout.startswith("PROVEN"),
        "the pin of the root key is enough to check it, offline",
    )


def copy_registry(home: Path, copy: Path) -> None:
    """Copies a registry that runs: its keys, and a consistent state of its database."""
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns(f"{DATABASE}*"))
    with closing(sqlite3.connect(home / DATABASE)) as source, closing(sqlite3.connect(copy / DATABASE)) as target:
        source.backup(target)
