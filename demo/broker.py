"""librdkafka's mock broker as a process: the real protocol, without installation and without storage.

``python -m demo.broker TOPIC…`` makes the topics, prints the URL, and runs until SIGTERM.
"""

import signal
import sys
from collections.abc import Sequence

from confluent_kafka import Producer

URL_PREFIX = "kafka://"


def main(topics: Sequence[str]) -> int:
    """Run the broker; → the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = Producer({"bootstrap.servers": "nowhere:1", "test.mock.num.brokers": 1})
    for topic in topics:
        cluster.list_topics(topic, timeout=10)  # creates topics on demand
    address = next(iter(cluster.list_topics(timeout=10).brokers.values()))
    print(f"{URL_PREFIX}{address.host}:{address.port}", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        cluster.flush(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
