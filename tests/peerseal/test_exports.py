"""What `import peerseal` gives, and what it does not load."""

import importlib
import json
import subprocess
import sys
from types import ModuleType

import pytest

import peerseal
from peerseal import errors

HEAVY = (
    "confluent_kafka",
    "kombu",
    "amqp",
    "flask",
    "httpx",
    "werkzeug",
    "badkeys",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "gunicorn",
    "opentelemetry",
    "prometheus_client",
    "registry",
)
ADAPTERS = (
    "asgi",
    "asynchronous",
    "flask",
    "httpx",
    "inbox",
    "kafka",
    "logs",
    "messaging",
    "otel",
    "outbox",
    "prometheus",
    "rabbitmq",
    "requests",
    "testing",
    "wsgi",
)


def in_a_fresh_process(program: str) -> list[str]:
    """What the program prints as JSON."""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded: list[str] = json.loads(ended.stdout)
    return loaded


def test_exports_are_exactly_what_all_says() -> None:
    values = {name: getattr(peerseal, name) for name in dir(peerseal)}
    public = {name for name, value in values.items() if name[0] != "_" and not isinstance(value, ModuleType)}
    own = {name for name in public if getattr(values[name], "__module__", "").startswith("peerseal")}
    assert own | {"errors"} == set(peerseal.__all__)
    assert sorted(peerseal.__all__) == peerseal.__all__


def test_every_export_can_be_had() -> None:
    for name in peerseal.__all__:
        assert getattr(peerseal, name) is not None


def test_the_names_that_the_specification_fixes_are_there() -> None:
    for name in ("Identity", "TrustStore", "Verifier", "Peer", "EventVerifier", "ReplayGuard", "PeersealError"):
        assert name in peerseal.__all__


def test_importing_it_loads_no_framework_and_no_database() -> None:
    program = "import sys, json, peerseal; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    assert not set(HEAVY) & set(in_a_fresh_process(program))


def test_importing_it_loads_neither_requests_nor_jose_nor_cryptography() -> None:
    program = "import sys, json, peerseal; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    assert not {"requests", "urllib3", "jose", "cryptography"} & set(in_a_fresh_process(program))


def test_importing_it_starts_no_thread_and_touches_no_network_or_file() -> None:
    program = """
import json, sys
seen = []
watched = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.mkdir", "os.fork")
sys.addaudithook(lambda event, _: seen.append(event) if event in watched else None)
import peerseal, threading
print(json.dumps(seen + [thread.name for thread in threading.enumerate()]))
"""
    assert in_a_fresh_process(program) == ["MainThread"]


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_there_on_first_use(name: str) -> None:
    assert getattr(peerseal, name) is importlib.import_module(f"peerseal.{name}")


def test_packages_are_there_without_an_import_of_their_own() -> None:
    program = "import json, peerseal; print(json.dumps([peerseal.verify.request.__name__, peerseal.trust.__name__]))"
    assert in_a_fresh_process(program) == ["peerseal.verify.request", "peerseal.trust"]


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = peerseal.nonsense


def test_the_testing_registry_needs_nothing_of_the_server() -> None:
    program = (
        "import sys, json, peerseal.testing;print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    assert not set(HEAVY) & set(in_a_fresh_process(program))


def test_every_error_is_a_peerseal_error_with_a_code_of_its_own() -> None:
    tree = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(error, errors.PeersealError) for error in tree if issubclass(error, Exception))
    tokens = [error for error in tree if errors.TokenError in error.__bases__ or errors.Forbidden in error.__bases__]
    assert len({error.code for error in tokens}) == len(tokens) == 20
    assert {error.status for error in tokens} == {401, 403}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.PeersealError) and name != "CodedError":
            assert name in drawn


def test_an_error_of_an_application_may_derive_from_other_classes_too() -> None:
    derived: list[type] = []

    class Registered:
        def __init_subclass__(cls) -> None:
            derived.append(cls)

    class NotToday(errors.Forbidden, Registered):
        code = "not_today"

    assert derived == [NotToday]
    assert (NotToday.code, NotToday.status) == ("not_today", errors.Forbidden.status)
