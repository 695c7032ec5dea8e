"""A real Apache Kafka: one node in KRaft mode, broker and controller in one process, on loopback.

Its jars are fetched once by ``make kafka``, into the virtual environment; Java has to be there.
"""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.cimpl import NewTopic

from demo.processes import LOOPBACK, ProcessFailed
from peerseal.messaging import DEAD_LETTERS
from tests.support.certificates import Authority
from tests.support.restartable import START, RestartableServer, lasting_port

JARS: Final = Path(os.environ.get("KAFKA_JARS") or Path(sys.prefix) / "kafka")
"""Where ``make kafka`` puts the jars."""

_ANSWER = 10  # seconds
_CLUSTER = "5L6g3nShT-eMCtK--X86sw"  # any; one made at random begins with a dash now and then, as an option does
_HEAP = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC")
_LOGGER = "-Dorg.slf4j.simpleLogger"
_LOG = (f"{_LOGGER}.defaultLogLevel=warn", f"{_LOGGER}.showDateTime=true", f"{_LOGGER}.dateTimeFormat=HH:mm:ss.SSS")


def need_kafka() -> None:
    """Skip the test where Apache Kafka or Java is missing; fail where CI is set."""
    if shutil.which("java") is None or not any(JARS.glob("kafka_*.jar")):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Apache Kafka is not here: `make kafka`, and Java 17")


@dataclass(frozen=True)
class OAuthBearer:
    """A second listener of a broker, over TLS, for those that log in with an access token of ``issuer`` for
    ``audience``, by the keys at ``jwks_url``. What they may do there, access control lists say; the plain listener is
    the administrator's."""

    jwks_url: str
    issuer: str
    audience: str
    authority: Authority

    def properties(self, folder: Path, plain: str, tls: str, controller: str) -> dict[str, str]:
        """The broker's settings, as docs/how-to/kafka-authentication.md has them."""
        certificate, key = self.authority.issue("kafka", server=True)
        keystore = folder / "kafka-keystore.pem"
        keystore.write_text(key.read_text() + certificate.read_text())
        kafkas, login = "org.apache.kafka.common.security.oauthbearer", "listener.name.sasl_ssl.oauthbearer"
        return {
            "listeners": f"PLAINTEXT://{plain},SASL_SSL://{tls},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{plain},SASL_SSL://{tls}",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
            "listener.name.sasl_ssl.ssl.keystore.type": "PEM",
            "listener.name.sasl_ssl.ssl.keystore.location": str(keystore),
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": "OAUTHBEARER",
            f"{login}.sasl.server.callback.handler.class": f"{kafkas}.OAuthBearerValidatorCallbackHandler",
            f"{login}.sasl.jaas.config": f"{kafkas}.OAuthBearerLoginModule required;",
            f"{login}.connections.max.reauth.ms": "5000",
            # Kafka 4.1's default is made for clients, and checks neither signature nor audience.
            "sasl.oauthbearer.jwt.validator.class": f"{kafkas}.BrokerJwtValidator",
            "sasl.oauthbearer.jwks.endpoint.url": self.jwks_url,
            "sasl.oauthbearer.expected.issuer": self.issuer,
            "sasl.oauthbearer.expected.audience": self.audience,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }


class ApacheKafka(RestartableServer):
    """One that tests start, stop, kill and look into: always on the same port, with the same data.

    As a context manager it is started at the beginning and stopped at the end. ``properties`` are the broker's own, and
    go before ours.
    """

    settings: Mapping[str, Any] = MappingProxyType({"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000})
    """Those of an inlet: see `tests.support.brokers.Broker`. The group misses a member that was killed after 6 seconds,
    the least that Kafka takes, and not only after 45."""

    def __init__(self, folder: Path, login: OAuthBearer | None = None, **properties: str) -> None:
        self.address = f"{LOOPBACK}:{lasting_port()}"
        """``host:port``, as librdkafka's ``bootstrap.servers`` takes it."""
        self.url = f"kafka://{self.address}"
        """As an application's configuration has it."""
        self._folder = folder / "kafka"
        super().__init__("kafka", self._folder / "kafka.log")
        controller = f"{LOOPBACK}:{lasting_port()}"
        self._properties = {**_properties(self._folder, self.address, controller), **properties}
        self._options: tuple[str, ...] = ()
        if login is not None:
            self.tls_address = f"{LOOPBACK}:{lasting_port()}"
            """``host:port`` of the listener for ``login``."""
            self._properties |= login.properties(folder, self.address, self.tls_address, controller)
            self._options = (f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={login.jwks_url}",)

    def start(self) -> None:
        """Start it, with the data that an earlier one left, and wait until it answers."""
        properties = self._folder / "server.properties"
        if not properties.exists():
            self._format(properties)
        command = ["java", *_HEAP, *_LOG, *self._options, "-cp", f"{JARS}/*", "kafka.Kafka", str(properties)]
        self._run(command)

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Make a topic that is not there yet."""
        admin = self._admin()
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1)
        admin.create_topics([topic])[name].result(_ANSWER)

    def let_write(self, user: str, topic: str) -> None:
        """Let the user write to a topic."""
        self._allow(user, AclOperation.WRITE, (ResourceType.TOPIC, topic))

    def let_read(self, user: str, topic: str, group: str) -> None:
        """Let the user read a topic, as a member of a group."""
        self._allow(user, AclOperation.READ, (ResourceType.TOPIC, topic), (ResourceType.GROUP, group))

    def _allow(self, user: str, operation: AclOperation, *resources: tuple[ResourceType, str]) -> None:
        who, allow = (f"User:{user}", "*", operation), AclPermissionType.ALLOW
        rules = [AclBinding(kind, name, ResourcePatternType.LITERAL, *who, allow) for kind, name in resources]
        admin = self._admin()
        for done in admin.create_acls(rules).values():
            done.result(_ANSWER)

    def new_topic(self) -> str:
        """The name of a fresh topic, which is there with its dead letters': see `tests.support.brokers.Broker`."""
        topic = f"topic-{uuid.uuid4().hex[:12]}"
        self.create_topic(topic, partitions=4)
        self.create_topic(topic + DEAD_LETTERS)
        return topic

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})

    def _answers(self) -> bool:
        with suppress(KafkaException):
            return bool(self._admin().list_topics(timeout=2).brokers)
        return False

    def _format(self, properties: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties.items()))
        command = ["java", "-XX:TieredStopAtLevel=1", *_LOG, "-cp", f"{JARS}/*", "kafka.tools.StorageTool"]
        command += ["format", "--cluster-id", _CLUSTER, "--config", str(properties)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START, check=False)
        if done.returncode:
            properties.unlink()
            raise ProcessFailed(f"kafka's folder cannot be made:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _properties(folder: Path, address: str, controller: str) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{address},CONTROLLER://{controller}",
        "log.dirs": str(folder / "data"),
        # One node is all there is.
        "offsets.topic.num.partitions": "1",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # After kill -9 the new broker is let in once the old one's session has ended: 9 s, by default.
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "3000",
        # Members come one by one in tests; a broker that waits for more only makes them slow.
        "group.initial.rebalance.delay.ms": "0",
    }
