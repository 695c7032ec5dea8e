"""docs/how-to/moving-from-asap.md: its programs, with atlassian-jwt-auth and two repositories, step by step."""

import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
import responses
from atlassian_jwt_auth.contrib.requests import JWTAuth
from atlassian_jwt_auth.key import BasePrivateKeyRetriever, StaticPrivateKeyRetriever
from atlassian_jwt_auth.signer import JWTAuthSigner
from flask import Flask

from peerseal import Identity
from peerseal.protocol.keys import KeyPair
from tests.docs.pages import named_blocks
from tests.registry.driver import DOMAIN, Driver
from tests.registry.in_process import InProcess

BLOCKS = named_blocks("docs/how-to/moving-from-asap.md")
SHOP = f"{DOMAIN}/shop"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The programs of the page as modules."""
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for name, text in BLOCKS.items():
        (folder / name).write_text(text)
    names = [name.removesuffix(".py") for name in BLOCKS]
    yield {name: import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(sqlite_url, tmp_path / "registry")
    yield driver
    driver.close()


@pytest.fixture
def identity(registry: Driver, tmp_path: Path) -> Iterator[Callable[[str], Identity]]:
    """Makes a started identity."""
    started = []

    def start(service: str) -> Identity:
        options = {"registry": "https://registry.test", "fetcher": InProcess(registry), "key_dir": tmp_path / "keys"}
        started.append(Identity(service, join_token=registry.join_token(service).encode(), **options).start())
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def old_key() -> KeyPair:
    """The key that the service has in the old repository, as ``shop/2024-key``."""
    return KeyPair.generate("RS256")


@pytest.fixture
def billing(page: dict[str, ModuleType], registry: Driver, identity: Any, old_key: KeyPair) -> Iterator[Flask]:
    """The callee of the page at its URL, and the two repositories at theirs."""
    app: Flask = page["billing"].create_app(identity("billing"))
    pem = {"Content-Type": "application/x-pem-file"}
    with responses.RequestsMock(assert_all_requests_are_fired=False) as http:
        http.get("https://keys.example.com/shop/2024-key", old_key.public.pem(), headers=pem)
        for base, client in (
            ("https://registry.example.com", registry.client),
            ("http://billing:8080", app.test_client()),
        ):
            http.add_callback("GET", re.compile(f"{base}/.*"), lambda sent, to=client: answer(to, sent))
        yield app


def answer(client: Any, sent: requests.PreparedRequest) -> tuple[int, dict[str, str], bytes]:
    headers = {name: value.decode() if isinstance(value, bytes) else value for name, value in sent.headers.items()}
    got = client.get(sent.path_url, headers=headers)
    return got.status_code, {"Content-Type": got.content_type}, got.data


def asap(retriever: BasePrivateKeyRetriever, issuer: str) -> JWTAuth:
    """ASAP's login for requests, as a service has it today."""
    return JWTAuth(JWTAuthSigner(issuer, retriever), "billing")


def test_a_caller_that_did_not_change_is_served_and_reported(billing: Flask, old_key: KeyPair) -> None:
    today = asap(StaticPrivateKeyRetriever("shop/2024-key", old_key.to_pem()), "shop")
    assert requests.get("http://billing:8080/invoices/7", auth=today, timeout=10).json() == {"invoice": "7"}
    assert billing.auth.refusals == {"missing_token": 1}


def test_a_caller_with_both_headers_is_served_and_not_reported(
    billing: Flask, page: dict[str, ModuleType], identity: Any, old_key: KeyPair
) -> None:
    today = asap(StaticPrivateKeyRetriever("shop/2024-key", old_key.to_pem()), "shop")
    session = page["shop"].billing_session(identity("shop"), today)
    assert session.get("/invoices/7").json() == {"invoice": "7"}
    assert billing.auth.refusals == {}


def test_the_keys_of_peerseal_sign_asap_tokens_through_a_rotation(
    billing: Flask, page: dict[str, ModuleType], identity: Any, tmp_path: Path
) -> None:
    shop = identity("shop")
    by_sdk = page["asap_by_peerseal"].AsapByPeerseal(shop, "billing")
    by_folder = asap(page["key_folder"].KeyFolder(tmp_path / "keys/shop"), SHOP)
    for login in (by_sdk, by_folder):
        assert page["shop"].billing_session(shop, login).get("/invoices/7").status_code == 200
    shop.rotate()
    for login in (by_sdk, by_folder):
        assert page["shop"].billing_session(shop, login).get("/invoices/7").status_code == 200
    assert billing.auth.refusals == {}


def test_a_call_without_asap_is_refused_by_it(billing: Flask, page: dict[str, ModuleType], identity: Any) -> None:
    answered = page["shop"].billing_session(identity("shop"), lambda request: request).get("/invoices/7")
    assert (answered.status_code, answered.text) == (401, "Unauthorized")
