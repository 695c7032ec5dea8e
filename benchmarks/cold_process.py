"""One cold start, as a process of its own: prints ``{"import", "start", "generation"}`` in milliseconds.

``start`` is from the first line to the first signed request: the import, the registry's keys fetched and checked, the
key registered with a join token. The time in which `cryptography` generates the key is subtracted: it varies
at random between twenty milliseconds and half a second.
"""

import json
import sys
import time
from typing import Any

BEGAN = time.perf_counter()

import peerseal  # noqa: E402 - the import is what is timed

IMPORTED = time.perf_counter()


def main(service: str, registry: str, join_token: str) -> None:
    """Start the service's identity, sign, and print the durations."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    generation, generate = 0.0, rsa.generate_private_key

    def timed(public_exponent: int, key_size: int, backend: Any = None) -> rsa.RSAPrivateKey:
        nonlocal generation
        before = time.perf_counter()
        key = generate(public_exponent, key_size)
        generation += time.perf_counter() - before
        return key

    rsa.generate_private_key = timed
    identity = peerseal.Identity(service, registry=registry, join_token=join_token).start()
    identity.sign_request("resource-service", method="GET", target="/")
    total = time.perf_counter() - BEGAN
    times = {"import": IMPORTED - BEGAN, "start": total - generation, "generation": generation}
    print(json.dumps({name: seconds * 1e3 for name, seconds in times.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
