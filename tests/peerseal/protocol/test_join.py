"""Join tokens and the MAC that stands for their secret."""

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal.errors import ConfigurationError
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.protocol.join import JoinToken, join_mac, join_mac_matches

PIN = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
TOKEN = JoinToken("AAECAwQFBgcICQoL", "8" * 42 + "A", PIN)


def test_a_token_comes_back_from_its_text() -> None:
    text = TOKEN.encode()
    assert text.split(".") == ["psj1", TOKEN.id, TOKEN.secret, PIN]
    for spelling in (text, f"{text}\n", f"  {text}\r\n"):
        assert JoinToken.parse(spelling) == TOKEN


def test_every_token_is_another() -> None:
    made = [JoinToken.generate(PIN) for _ in range(100)]
    assert len({token.id for token in made}) == len({token.secret for token in made}) == 100
    assert {len(b64url_decode(token.secret)) for token in made} == {32}


def test_the_secret_stays_out_of_texts_and_errors() -> None:
    assert TOKEN.secret not in repr(TOKEN)
    with pytest.raises(ConfigurationError) as caught:
        JoinToken.parse(TOKEN.encode() + "!")
    assert TOKEN.secret not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "...", "psj1", "psj1...", TOKEN.secret, f"psj2.{TOKEN.encode()[5:]}", f"PSJ1.{TOKEN.encode()[5:]}"),
        *(f"{TOKEN.encode()}.", f"{TOKEN.encode()}A", TOKEN.encode()[:-1], TOKEN.encode().rpartition(".")[0]),
        *(
            f"psj1.{TOKEN.secret}.{TOKEN.id}.{PIN}",
            f"psj1.{TOKEN.id}.{TOKEN.secret}=.{PIN}",
            TOKEN.encode().replace(".", " "),
        ),
        *(f"psj1.{TOKEN.id}.{TOKEN.secret}.{PIN[:-1]}t", f"psj1.{TOKEN.id}.{TOKEN.secret} .{PIN}", "é" * 90),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        JoinToken.parse(text)


@given(st.text(max_size=120))
@settings(deadline=None)
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        JoinToken.parse(text)


def test_the_mac_is_hmac_sha256_keyed_with_the_hash_of_the_secret() -> None:
    key = hashlib.sha256(b64url_decode(TOKEN.secret)).digest()
    assert TOKEN.mac_key == key
    assert join_mac(key, "a.b.c") == b64url(hmac.new(key, b"a.b.c", hashlib.sha256).digest())


def test_the_mac_is_over_one_proof_with_one_secret() -> None:
    mac = join_mac(TOKEN.mac_key, "a.b.c")
    assert join_mac_matches(TOKEN.mac_key, "a.b.c", mac)
    assert not join_mac_matches(TOKEN.mac_key, "a.b.d", mac)
    assert not join_mac_matches(JoinToken.generate(PIN).mac_key, "a.b.c", mac)


@pytest.mark.parametrize("other", ["", "A" * 43, "é", "a" * 100_000])
def test_other_macs_do_not_match(other: str) -> None:
    mac = join_mac(TOKEN.mac_key, "a.b.c")
    for given_mac in (other, mac + other, mac[:-1] + other, f"{mac}=", mac.swapcase()):
        assert join_mac_matches(TOKEN.mac_key, "a.b.c", given_mac) == (given_mac == mac)


def test_no_id_looks_like_an_option_on_a_command_line() -> None:
    assert not any(JoinToken.generate("A" * 43).id.startswith("-") for _ in range(1000))
