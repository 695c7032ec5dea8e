"""The one adapter over python-jose."""

import ast
from collections.abc import Callable
from pathlib import Path

import jose.backends
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from jose import jwk

import peerseal
from peerseal.errors import MalformedToken
from peerseal.protocol import jose as adapter
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair
from tests.attacks.forge import ec_key, rsa_key

HEADER = adapter.Header("RS256", "a/b/c", "peerseal-request+jwt")
MEMBERS = {"alg": HEADER.alg, "kid": HEADER.kid, "typ": HEADER.typ}


@pytest.mark.parametrize(("make", "other"), [(rsa_key, ec_key), (ec_key, rsa_key)])
def test_what_is_signed_verifies_and_nothing_else(
    make: Callable[[str], KeyPair], other: Callable[[str], KeyPair]
) -> None:
    key = make("caller")
    signature = key.sign(b"message")
    assert key.public.verify(b"message", signature)
    assert not key.public.verify(b"other", signature)
    assert not key.public.verify(b"message", signature[:-1])
    assert not key.public.verify(b"message", b"")
    assert not make("attacker").public.verify(b"message", signature)
    assert not other("caller").public.verify(b"message", signature)


def test_signature_sizes_are_those_of_rfc_7518() -> None:
    assert len(rsa_key("caller").sign(b"")) == 256
    assert {len(ec_key("caller").sign(bytes([n]))) for n in range(64)} == {64}, "never DER, never shortened"


def test_es256_signatures_are_those_of_python_jose() -> None:
    for pair in (ec_key("caller"), KeyPair.generate("ES256")):
        theirs = jwk.construct(pair.public.crypto, "ES256")
        for number in range(2_000):  # some halves begin with a zero byte, and some with a high bit
            message = number.to_bytes(2, "big")
            assert theirs.verify(message, pair.sign(message))


def test_cryptography_is_the_back_end() -> None:
    assert jose.backends.RSAKey.__module__ == "jose.backends.cryptography_backend"
    assert jose.backends.ECKey.__module__ == "jose.backends.cryptography_backend"
    assert isinstance(load_pem_private_key(rsa_key("caller").to_pem(), None), rsa.RSAPrivateKey)
    assert isinstance(load_pem_private_key(ec_key("caller").to_pem(), None), ec.EllipticCurvePrivateKey)


def test_nobody_else_imports_python_jose() -> None:
    root = Path(peerseal.__file__).parent
    users = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.Import) and any(name.name.partition(".")[0] == "jose" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").partition(".")[0] == "jose")
    }
    assert users == {"protocol/jose.py"}


def test_what_was_made_is_read_back() -> None:
    token = adapter.compact(adapter.encode_header(HEADER), b"payload", rsa_key("caller").sign)
    parsed = adapter.parse(token)
    assert (parsed.header, parsed.payload) == (HEADER, b"payload")
    assert parsed.signing_input == token.rpartition(".")[0].encode()
    assert rsa_key("caller").public.verify(parsed.signing_input, parsed.signature)


@given(st.builds(adapter.Header, *(st.text(st.characters(exclude_categories=["Cs"]), max_size=30) for _ in range(3))))
@settings(deadline=None)
def test_any_header_of_three_strings_is_read_back(header: adapter.Header) -> None:
    assert adapter.parse_header(adapter.encode_header(header).encode()) == header


@given(st.text(max_size=60) | st.text(st.sampled_from("AQgw-_.+= "), max_size=60))
@settings(deadline=None)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with pytest.raises(MalformedToken):
        adapter.parse(text)


@pytest.mark.parametrize(
    "members",
    [
        *(
            {},
            {"alg": "RS256"},
            {"alg": "RS256", "kid": "a"},
            {**MEMBERS, "crit": []},
            {**MEMBERS, "x": "y"},
        ),
        *({**MEMBERS, "alg": None}, {**MEMBERS, "kid": 1}, {**MEMBERS, "typ": ["a"]}),
    ],
)
def test_a_header_has_three_members_which_are_strings(members: dict[str, object]) -> None:
    with pytest.raises(MalformedToken):
        adapter.parse_header(b64url(canonical_json(members)).encode())


def test_a_token_has_three_segments_and_a_limit() -> None:
    head = adapter.encode_header(HEADER)
    for text in ("", head, f"{head}.", f"{head}.AA", f"{head}.AA.AA.AA", f"{head}.AA.AA."):
        with pytest.raises(MalformedToken):
            adapter.split_segments(text)
    longest = f"{head}.AA.{'A' * (adapter.MAX_TOKEN - len(head) - 4)}"
    assert adapter.split_segments(longest)[3] == f"{head}.AA".encode()
    for text in (f"{longest}A", longest):
        with pytest.raises(MalformedToken):
            adapter.split_segments(text, limit=len(longest) - (text == longest))


def test_verifying_never_raises() -> None:
    verifiers: list[Callable[[bytes, bytes], bool]] = [rsa_key("caller").public.verify, ec_key("caller").public.verify]
    for verify in verifiers:
        for size in (0, 1, 63, 64, 65, 255, 256, 257, 10_000):
            for filler in (b"\0", b"\xff"):
                assert verify(b"message", filler * size) is False
