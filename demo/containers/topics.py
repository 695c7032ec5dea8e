"""The topics of the orders and each service's rights, at the broker of docker-compose.yml.

``python -m demo.containers.topics HOST:PORT`` makes them, at a listener where the caller is the administrator. A
consumer that waits for a missing topic would notice its creation only minutes later.
"""

import sys
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it marks no name as exported
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from demo.domain import CLIENT, DEAD_LETTERS, DOMAIN, INVOICING, LEGACY, TOPIC

PARTITIONS = 4
ANSWER = 30  # seconds
RIGHTS = (
    (CLIENT, AclOperation.WRITE, ResourceType.TOPIC, TOPIC),
    (LEGACY, AclOperation.WRITE, ResourceType.TOPIC, TOPIC),
    (INVOICING, AclOperation.READ, ResourceType.TOPIC, TOPIC),
    (INVOICING, AclOperation.READ, ResourceType.GROUP, INVOICING),
    (INVOICING, AclOperation.WRITE, ResourceType.TOPIC, DEAD_LETTERS),
)
"""All other access is refused. The broker knows a service by its id."""


def main(servers: str) -> int:
    """Make topics and rights; → the exit code. Raises KafkaException."""
    admin = AdminClient({"bootstrap.servers": servers})
    topics = [NewTopic(name, num_partitions=PARTITIONS, replication_factor=1) for name in (TOPIC, DEAD_LETTERS)]
    for made in admin.create_topics(topics).values():
        wait_for(made)
    for allowed in admin.create_acls([right(*given) for given in RIGHTS]).values():
        wait_for(allowed)
    return 0


def right(service: str, operation: AclOperation, kind: ResourceType, name: str) -> AclBinding:
    """The right of a service, from any host."""
    user = f"User:{DOMAIN}/{service}"
    return AclBinding(kind, name, ResourcePatternType.LITERAL, user, "*", operation, AclPermissionType.ALLOW)


def wait_for(answer: Future[Any]) -> None:
    """Wait until the topic exists; it may exist already."""
    try:
        answer.result(ANSWER)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
