"""Services log in at a real Apache Kafka by their keys, and with no password (SASL_SSL, OAUTHBEARER): the broker checks
the registry's access tokens with the registry's JWK Set."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import jwt
import pytest
import requests
from confluent_kafka import KafkaException, Producer

from demo.stack import CLIENT, DEAD_LETTERS, DOMAIN, INVOICING, TOPIC, Stack
from peerseal import EventVerifier, Identity, RotationSchedule
from peerseal.errors import AccessTokenRefused, BrokerUnavailable, MessageNotTaken
from peerseal.kafka import KafkaOutlet, consumer, oauthbearer, producer
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from peerseal.protocol.tokens.assertion import CLIENT_ASSERTION_TYPE
from tests.support.apache_kafka import ApacheKafka, OAuthBearer, need_kafka
from tests.support.brokers import eventually
from tests.support.certificates import Authority

EVENTS = 1_000 if os.environ.get("CI") else 10_000
SECONDS = 25
"""The events take as long: a handful of re-authentications, and a new token each time but one."""
KAFKA, STORE = "https://kafka.demo.internal", "https://store.demo.internal"
LIFETIME = 10
REPORTING, STRANGER = "reporting", "stranger"
REGISTRY = f"{DOMAIN}/registry"
SCOPE, AUDIENCE = "trigger_invoicing", "jobs.example.com"
SOON = RotationSchedule(every=3600.0, lead=0.5, overlap=600.0)

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(300)]


class House:
    """A registry, a broker that believes it, and who they let in."""

    def __init__(self, stack: Stack, kafka: ApacheKafka, authority: Authority) -> None:
        self.stack = stack
        self.settings = {"bootstrap.servers": kafka.tls_address, "ssl.ca.location": str(authority.file)}

    def login(self, identity: Identity, **settings: Any) -> dict[str, Any]:
        return {**self.settings, **oauthbearer(identity, "kafka"), **settings}

    def tokens_issued(self, service: str) -> int:
        """How many access tokens the registry says it issued."""
        return self.stack.log("registry").read_text().count(f"issued access token client={DOMAIN}/{service} ")


@contextmanager
def started(stack: Stack, service: str) -> Iterator[Identity]:
    token = stack.join_token(service)
    identity = Identity(service, registry=stack.registry_url, join_token=token, rotation=SOON).start()
    try:
        yield identity
    finally:
        identity.stop()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    need_kafka()
    folder = tmp_path_factory.mktemp("oauthbearer")
    authority = Authority.make(folder, "authority")
    with Stack(folder) as stack:
        stack.start_registry()
        services = [CLIENT, INVOICING, REPORTING]
        broker = {"audience": KAFKA, "services": services, "scopes": ["kafka"], "lifetime": LIFETIME}
        store = {"audience": STORE, "services": services, "scopes": ["put"]}
        settings = {"minters": [], "issuers": [], "access_tokens": {"kafka": broker, "store": store}}
        (folder / "domain.json").write_text(json.dumps(settings))
        stack.operate("domain", "set", str(folder / "domain.json"))
        login = OAuthBearer(f"{stack.registry_url}/.well-known/jwks.json", REGISTRY, KAFKA, authority)
        with ApacheKafka(folder, login) as kafka:
            kafka.create_topic(TOPIC, 4)
            kafka.create_topic(DEAD_LETTERS)
            for service, topic in ((CLIENT, TOPIC), (REPORTING, TOPIC), (INVOICING, DEAD_LETTERS)):
                kafka.let_write(f"{DOMAIN}/{service}", topic)
            kafka.let_read(f"{DOMAIN}/{INVOICING}", TOPIC, INVOICING)
            yield House(stack, kafka, authority)


@pytest.fixture(scope="module")
def publisher(house: House) -> Iterator[Identity]:
    with started(house.stack, CLIENT) as identity:
        yield identity


def rotate(identity: Identity) -> str:
    """The kid that signs from now on."""
    kid = identity.rotate().key_id
    eventually(lambda: identity.credentials.key_id == kid, "the new key signs")
    return kid


def test_every_event_arrives_while_keys_are_rotated_and_logins_renewed(house: House, publisher: Identity) -> None:
    statistics: list[dict[str, Any]] = []
    watched = {"statistics.interval.ms": 1000, "stats_cb": lambda text: statistics.append(json.loads(text))}
    kids, arrived = {publisher.credentials.key_id}, set[str]()
    with started(house.stack, INVOICING) as invoicing:
        allow = {CLIENT: {SCOPE}}
        verifier = EventVerifier(invoicing.trust, audience=AUDIENCE, allow=allow, max_age=timedelta(hours=1))
        group = house.login(invoicing, **{"group.id": INVOICING})
        reader = consumer(invoicing, verifier, group, [TOPIC])
        reading = threading.Thread(target=reader.run, args=[lambda event: arrived.add(event.id)])
        reading.start()
        outbox = producer(publisher, house.login(publisher, **watched))
        began = time.monotonic()
        for number in range(EVENTS):
            if number % (EVENTS // 5) == EVENTS // 10:
                kids.add(rotate(publisher))
            ids = {"event_id": f"e-{number}", "transaction_id": f"t-{number}"}
            outbox.publish(TOPIC, b'{"number": %d}' % number, audience=AUDIENCE, scope=SCOPE, **ids)
            time.sleep(max(0.0, began + SECONDS * number / EVENTS - time.monotonic()))
        outbox.flush(60)
        eventually(lambda: len(arrived) == EVENTS, f"{EVENTS} arrived")
        reader.stop()
        reading.join(30)
    assert arrived == {f"e-{number}" for number in range(EVENTS)}
    assert reader.counts.refused == {}
    assert len(kids) == 6
    assert house.tokens_issued(CLIENT) >= 3
    connections = [broker for broker in statistics[-1]["brokers"].values() if broker["connects"]]
    assert connections
    assert [broker["disconnects"] for broker in connections] == [0] * len(connections), "re-authenticated in place"


# ---- who gets in, and who does not


def connects(house: House, token: Callable[[], str]) -> bool:
    """Whether the broker lets in who shows that token."""
    login = {"sasl.mechanisms": "OAUTHBEARER", "security.protocol": "SASL_SSL", "log_level": 0}
    client = Producer({**house.settings, **login, "oauth_cb": lambda _: (token(), time.time() + 60)})
    client.poll(0)  # librdkafka asks for the token here
    try:
        return bool(client.list_topics(timeout=4).brokers)
    except KafkaException:
        return False


STOLEN = KeyPair.generate("ES256")
"""A service that is not registered."""


def forged(house: House, **header: str) -> str:
    """All claims as the broker wants them, signed by a key that no service registered."""
    now = int(time.time())
    claims = {"iss": REGISTRY, "sub": f"{DOMAIN}/{CLIENT}", "client_id": f"{DOMAIN}/{CLIENT}", "aud": KAFKA}
    more = {"scope": "kafka", "iat": now, "exp": now + 60, "jti": "1"}
    return jwt.encode({**claims, **more}, STOLEN.to_pem(), "ES256", {"typ": "at+jwt", **header})


def kid_of_the_registry(publisher: Identity) -> str:
    kid: str = jwt.get_unverified_header(publisher.access_token("kafka").text)["kid"]
    return kid


FORGED: Mapping[str, Callable[[House, Identity], str]] = {
    "by an unregistered key": lambda h, _: forged(h, kid=make_kid(f"{DOMAIN}/{CLIENT}", STOLEN.public.thumbprint)),
    "by an unregistered key as the registry's": lambda h, p: forged(h, kid=kid_of_the_registry(p)),
    "without a signature": lambda h, p: p.access_token("kafka").text.rpartition(".")[0] + ".",
    "for another resource server": lambda h, p: p.access_token("store").text,
    "a service's own assertion": lambda h, p: p.sign_assertion(audience=KAFKA),
}


def test_a_token_of_the_registry_lets_in(house: House, publisher: Identity) -> None:
    assert connects(house, lambda: publisher.access_token("kafka").text)


@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED)
def test_another_token_lets_nobody_in(
    house: House, publisher: Identity, make: Callable[[House, Identity], str]
) -> None:
    token = make(house, publisher)
    assert not connects(house, lambda: token)


def test_a_service_without_a_registered_key_gets_no_token(house: House) -> None:
    now = int(time.time())
    claims = {"iss": f"{DOMAIN}/{CLIENT}", "sub": f"{DOMAIN}/{CLIENT}", "aud": REGISTRY, "jti": "1"}
    kid = make_kid(f"{DOMAIN}/{CLIENT}", STOLEN.public.thumbprint)
    assertion = jwt.encode({**claims, "iat": now, "exp": now + 60}, STOLEN.to_pem(), "ES256", {"kid": kid})
    form = {
        "grant_type": "client_credentials",
        "client_assertion_type": CLIENT_ASSERTION_TYPE,
        "client_assertion": assertion,
        "resource": KAFKA,
    }
    answer = requests.post(f"{house.stack.registry_url}/oauth2/token", data=form, timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


def test_a_service_without_a_grant_does_not_connect_and_its_log_says_why(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with started(house.stack, STRANGER) as stranger:
        with pytest.raises(BrokerUnavailable, match="no access token"):
            KafkaOutlet(house.login(stranger))
        with pytest.raises(AccessTokenRefused):
            stranger.access_token("kafka")
    assert "stranger cannot log in at kafka: invalid_target" in caplog.text


def test_the_broker_knows_a_service_by_its_id_and_lets_it_do_what_its_lists_say(house: House) -> None:
    with started(house.stack, INVOICING) as invoicing:
        outlet = KafkaOutlet(house.login(invoicing))
        outlet.send(TOPIC, b"{}", [])
        with pytest.raises(MessageNotTaken, match="authorization failed"):
            outlet.flush(20)
        outlet.close()


def test_a_revoked_service_is_out_when_its_last_token_ends(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with started(house.stack, REPORTING) as reporting:
        outlet = KafkaOutlet(house.login(reporting, **{"message.timeout.ms": 3000}))

        def sends() -> bool:
            outlet.send(TOPIC, b"{}", [("authorization", b"none")])
            try:
                outlet.flush(5)
            except BrokerUnavailable:
                return False
            return True

        assert sends()
        last = reporting.access_token("kafka").expires_at
        house.stack.operate("revoke", reporting.credentials.key_id)
        revoked = time.time()
        assert revoked < last
        while sends():
            assert time.time() < revoked + LIFETIME + 5, "still let in"
            time.sleep(0.2)
        assert "reporting cannot log in at kafka: invalid_client" in caplog.text
        assert not sends(), "nor does it come back"
        outlet.close()
