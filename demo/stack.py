"""A registry and services as real processes in one folder, for ``make demo``, ``make up`` and the tests."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar, Unpack

import requests

from demo.broker import URL_PREFIX
from demo.domain import (
    CASES,
    CLIENT,
    DEAD_LETTERS,
    DOMAIN,
    INVOICING,
    LEGACY,
    LOGIN_ISSUER,
    PUBLISHERS,
    RESOURCE,
    TOPIC,
    domain_settings,
)
from demo.processes import BIN, LOOPBACK, ROOT, Process, Server, ServerOptions, environment, free_port, gunicorn

__all__ = ["CASES", "CLIENT", "DEAD_LETTERS", "DOMAIN", "INVOICING", "RESOURCE", "TOPIC", "CommandFailed", "Stack"]

P = TypeVar("P", bound=Process)

LOGIN = "login"
"""The identity provider, which is no service of the domain."""
OPERATOR_SECRET = "CLIENT_OPERATOR_SECRET"


class CommandFailed(RuntimeError):
    """``peerseal-registry`` ended with an exit code other than 0. The message has its output."""


@dataclass(frozen=True, slots=True)
class Running:
    """All that `Stack.start_all` has started."""

    registry: Server
    login: Server
    cases: Server
    resource: Server
    client: Server
    invoicing: Process
    broker_url: str


class Stack:
    """One trust domain under ``root``: the registry's home, each service's keys and cache, and all logs.

    Nothing runs before ``start_registry``. As a context manager it stops all processes at the end, the last one first.
    Without ``database_url`` the registry uses SQLite in its home.
    """

    def __init__(
        self, root: Path, *, database_url: str | None = None, domain: str = DOMAIN, registry_port: int = 0
    ) -> None:
        self.root = root
        self.domain = domain
        self.registry_port = registry_port or free_port()
        self.registry_url = f"http://{LOOPBACK}:{self.registry_port}"
        self.registry_settings = {"REGISTRY_HOME": str(root / "registry")}
        if database_url is not None:
            self.registry_settings["REGISTRY_DATABASE_URL"] = database_url
        self.settings: dict[str, str] = {}
        """Settings that every service gets."""
        self.launcher: Sequence[str] = ()
        """A command that starts the programs of registry and services, such as ``opentelemetry-instrument``."""
        self.login: Server | None = None
        """The identity provider, if one runs."""
        self.cases: Server | None = None
        """The third service of the chain, if one runs."""
        self._introspection_secret = secrets.token_urlsafe(24)
        self._running = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def keep(self, process: P) -> P:
        """The same ``process``, which is stopped when this stack stops."""
        self._running.enter_context(process)
        return process

    def log(self, name: str) -> Path:
        """The file that a process's output goes to."""
        return self.root / "logs" / f"{name}.log"

    def operate(self, *arguments: str) -> str:
        """What ``peerseal-registry ARGUMENTS`` prints, run on the registry's own database. Raises CommandFailed."""
        command = [str(BIN / "peerseal-registry"), *arguments]
        run = subprocess.run(
            command, cwd=ROOT, env=environment(self.registry_settings), capture_output=True, encoding="utf-8"
        )
        if run.returncode != 0:
            raise CommandFailed(f"peerseal-registry {' '.join(arguments)}: exit {run.returncode}\n{run.stderr}")
        return run.stdout

    def operate_json(self, *arguments: str) -> Any:
        """The same with ``--json``, parsed."""
        return json.loads(self.operate(*arguments, "--json"))

    def start_all(
        self,
        password: str,
        *,
        operator_secret: str | None = None,
        preload: bool = False,
        ports: Mapping[str, int] = MappingProxyType({}),
    ) -> Running:
        """Start identity provider, registry, broker, the three services and the consumer. ``password`` is that of all
        demo users; ``preload`` is for resource-service and client-service; ``ports`` has a port for each service, else
        any free port."""
        login = self.start_identity_provider(password, port=ports.get(LOGIN))
        registry = self.start_registry()
        self.let_users_in()
        broker_url = self.start_broker()
        cases = self.start_case_service(port=ports.get(CASES))
        resource = self.start_resource_service(port=ports.get(RESOURCE), preload=preload)
        client = self.start_client_service(
            resource.url,
            operator_secret=operator_secret,
            broker_url=broker_url,
            port=ports.get(CLIENT),
            preload=preload,
        )
        invoicing = self.start_invoicing(resource.url, broker_url)
        return Running(registry, login, cases, resource, client, invoicing, broker_url)

    def start_registry(self, *, workers: int = 2) -> Server:
        """Initialise the registry if necessary, start it, and wait until it is ready.

        May be called again after the process was stopped or killed: port, keys and data stay.
        """
        self.operate("init", "--trust-domain", self.domain)
        registry = gunicorn(
            "registry",
            "registry.wsgi:app",
            port=self.registry_port,
            log=self.log("registry"),
            settings=self.registry_settings,
            workers=workers,
            config="python:registry.gunicorn_conf",
            launcher=self.launcher,
        )
        return self.keep(registry).wait_until_answers(f"{self.registry_url}/readyz")

    def start_identity_provider(self, password: str, *, port: int | None = None) -> Server:
        """The issuer of users' tokens, which `let_users_in` waits for and lists. All demo users share ``password``."""
        port = port or free_port()
        settings = {
            "IDP_URL": f"http://{LOOPBACK}:{port}",
            "IDP_ISSUER": LOGIN_ISSUER,
            "IDP_PASSWORD": password,
            "IDP_INTROSPECTION_SECRET": self._introspection_secret,
        }
        target, log = "demo.identity_provider.app:create_app()", self.log(LOGIN)
        server = gunicorn(LOGIN, target, port=port, log=log, settings=settings, workers=1)
        self.login = self.keep(server)
        return server

    def let_users_in(self) -> None:
        """Set the domain document, as the operator: the issuer of users' tokens and the minters."""
        file = self.root / "domain.json"
        login: dict[str, Any] | None = None
        if self.login is not None:
            keys_url = f"{self.login.url}/.well-known/jwks.json"
            self.login.wait_until_answers(keys_url)
            keys = requests.get(keys_url, timeout=10)
            login = {"jwks": keys.json(), "introspection_url": f"{self.login.url}/introspect"}
        file.write_text(json.dumps(domain_settings(login)))
        self.operate("domain", "set", str(file))

    def join_token(self, service: str, *, uses: int = 1, ttl: str = "10m") -> str:
        """A new join token for ``service``, made with the operator's command."""
        arguments = ("join-token", "create", service, "--ttl", ttl, "--uses", str(uses))
        return str(self.operate_json(*arguments)["token"])

    def service_settings(self, service: str, *, host: str = "host") -> dict[str, str]:
        """The environment with which ``service`` runs on ``host``: keys and cache shared by all its processes there, a
        new join token in a 0600 file."""
        folder = self.root / service / host
        folder.mkdir(parents=True, exist_ok=True)
        token_file = folder / "join-token"
        write_secret(token_file, self.join_token(service))
        return self.settings | {
            "PEERSEAL_SERVICE": service,
            "PEERSEAL_REGISTRY_URL": self.registry_url,
            "PEERSEAL_JOIN_TOKEN_FILE": str(token_file),
            "PEERSEAL_KEY_DIR": str(folder / "keys"),
            "PEERSEAL_CACHE_DIR": str(folder / "cache"),
        }

    def start_service(
        self,
        service: str,
        target: str,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        **options: Unpack[ServerOptions],
    ) -> Server:
        """Serve ``target`` as ``service`` and wait until it shows its public credentials."""
        everything = self.service_settings(service) | dict(settings or {})
        options.setdefault("launcher", self.launcher)
        server = gunicorn(
            service, target, port=port or free_port(), log=self.log(service), settings=everything, **options
        )
        return self.keep(server).wait_until_answers(f"{server.url}/my-public-credentials")

    def start_case_service(self, *, port: int | None = None, **options: Unpack[ServerOptions]) -> Server:
        """The third service of the chain; a resource-service that starts later calls it."""
        options.setdefault("workers", 1)
        self.cases = self.start_service(CASES, "demo.case_service.app:create_app()", port=port, **options)
        return self.cases

    def start_resource_service(self, *, port: int | None = None, **options: Unpack[ServerOptions]) -> Server:
        """The example callee."""
        settings = {"CASE_SERVICE_URL": self.cases.url} if self.cases is not None else {}
        target = "resource_service.app:create_app()"
        return self.start_service(RESOURCE, target, settings=settings, port=port, **options)

    def start_client_service(
        self,
        resource_url: str,
        *,
        operator_secret: str | None = None,
        broker_url: str | None = None,
        port: int | None = None,
        **options: Unpack[ServerOptions],
    ) -> Server:
        """The example caller and edge, with 16 threads a worker."""
        given = {OPERATOR_SECRET: operator_secret, "BROKER_URL": broker_url}
        settings = {name: value for name, value in given.items() if value is not None}
        settings["RESOURCE_SERVICE_URL"] = resource_url
        if self.login is not None:
            settings |= {
                "CLIENT_LOGIN_URL": self.login.url,
                "PEERSEAL_INTROSPECTION_ISSUER": LOGIN_ISSUER,
                "PEERSEAL_INTROSPECTION_CLIENT_ID": CLIENT,
                "PEERSEAL_INTROSPECTION_SECRET": self._introspection_secret,
            }
        target = "client_service.app:create_app()"
        options.setdefault("threads", 16)  # more than the bulkhead of calls to resource-service
        return self.start_service(CLIENT, target, settings=settings, port=port, **options)

    def start_broker(self) -> str:
        """A broker with the topics of the examples; → its URL."""
        command = [sys.executable, "-m", "demo.broker", TOPIC, DEAD_LETTERS]
        return self.keep(Process("broker", command, log=self.log("broker"))).wait_until_prints(URL_PREFIX)

    def legacy_settings(self) -> dict[str, str]:
        """The environment of the program that exchanges users' tokens at the registry."""
        return self.service_settings(LEGACY)

    def start_invoicing(self, resource_url: str, broker_url: str) -> Process:
        """The example consumer, with an inbox of its own."""
        options = self.root / "broker.json"
        options.write_text(json.dumps({"group.protocol": "consumer"}))  # so that it joins its group at once
        settings = self.service_settings(INVOICING) | {
            "RESOURCE_SERVICE_URL": resource_url,
            "BROKER_URL": broker_url,
            "BROKER_CONFIG_FILE": str(options),
            "EVENTS_PUBLISHERS": ",".join(PUBLISHERS),
        }
        command = [*self.launcher, sys.executable, "-m", "resource_service.invoicing"]
        consumer = self.keep(Process(INVOICING, command, log=self.log(INVOICING), settings=settings))
        consumer.wait_until_prints("waiting for")
        return consumer


def write_secret(path: Path, secret: str) -> None:
    """Writes a file that only its owner can read, in place of an old one."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret)
