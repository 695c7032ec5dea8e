"""Attacks on ``kid``: an invalid name, another service's, or a way out of where keys are looked up."""

import pytest

from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair
from tests.attacks.forge import (
    ABSENT,
    CALLER,
    DOMAIN,
    OTHER,
    STRANGER,
    Callee,
    claims,
    forge,
    header,
    honest_token,
    kid_of,
    rsa_key,
)

THUMBPRINT = "N" * 42 + "A"

NO_KIDS = {
    "empty": "",
    "short name": f"client-service/{THUMBPRINT}",
    "no thumbprint": CALLER,
    "empty thumbprint": f"{CALLER}/",
    "thumbprint alone": THUMBPRINT,
    "dots": f"{DOMAIN}/../client-service/{THUMBPRINT}",
    "dots for the service": f"{DOMAIN}/../{THUMBPRINT}",
    "dots inside": f"{DOMAIN}/client-service/../billing/{THUMBPRINT}",
    "dots at the end": f"{CALLER}/{THUMBPRINT}/..",
    "one dot": f"{DOMAIN}/./{THUMBPRINT}",
    "escaped slash": f"{DOMAIN}%2fclient-service%2f{THUMBPRINT}",
    "escaped slash in the service": f"{DOMAIN}/client-service%2F..%2Fbilling/{THUMBPRINT}",
    "backslash": f"{DOMAIN}\\client-service\\{THUMBPRINT}",
    "query": f"{CALLER}/{THUMBPRINT}?seq=1",
    "fragment": f"{CALLER}/{THUMBPRINT}#a",
    "matrix parameter": f"{CALLER};a=b/{THUMBPRINT}",
    "NUL": f"{CALLER}\0/{THUMBPRINT}",
    "NUL at the end": f"{CALLER}/{THUMBPRINT}\0",
    "newline": f"{CALLER}\n/{THUMBPRINT}",
    "newline at the end": f"{CALLER}/{THUMBPRINT}\n",
    "newline in front": f"\n{CALLER}/{THUMBPRINT}",
    "header injection": f"{CALLER}/{THUMBPRINT}\r\nX-Peer: {OTHER}",
    "tab": f"{CALLER}\t/{THUMBPRINT}",
    "blank": f"{CALLER} /{THUMBPRINT}",
    "quotes": f"{CALLER}'/{THUMBPRINT}",
    "double quotes": f'{CALLER}"/{THUMBPRINT}',
    "SQL": f"{DOMAIN}/x' OR '1'='1/{THUMBPRINT}",
    "format string": f"{DOMAIN}/%s{{0}}/{THUMBPRINT}",
    "shell": f"{DOMAIN}/$(id)/{THUMBPRINT}",
    "upper case": f"{DOMAIN}/Client-Service/{THUMBPRINT}",
    "upper-case domain": f"{DOMAIN.upper()}/client-service/{THUMBPRINT}",
    "URL": f"https://{CALLER}/{THUMBPRINT}",
    "URL without scheme": f"//{CALLER}/{THUMBPRINT}",
    "file": "file:///dev/null",
    "path": "/dev/null",
    "slash in front": f"/{CALLER}/{THUMBPRINT}",
    "slash at the end": f"{CALLER}/{THUMBPRINT}/",
    "two slashes": f"{DOMAIN}//client-service/{THUMBPRINT}",
    "one part more": f"{CALLER}/x/{THUMBPRINT}",
    "port": f"{DOMAIN}:443/client-service/{THUMBPRINT}",
    "user": f"a@{CALLER}/{THUMBPRINT}",
    "underscore": f"{DOMAIN}/client_service/{THUMBPRINT}",
    "dash at the end": f"{DOMAIN}/client-service-/{THUMBPRINT}",
    "dash in front": f"{DOMAIN}/-client-service/{THUMBPRINT}",
    "dot at the end": f"{DOMAIN}/client-service./{THUMBPRINT}",
    "dot after the domain": f"{DOMAIN}./client-service/{THUMBPRINT}",
    "two dots": f"{DOMAIN}/client..service/{THUMBPRINT}",
    "thumbprint one short": f"{CALLER}/{THUMBPRINT[1:]}",
    "thumbprint one long": f"{CALLER}/A{THUMBPRINT}",
    "thumbprint with padding": f"{CALLER}/{THUMBPRINT}=",
    "thumbprint with trailing bits": f"{CALLER}/{THUMBPRINT[:-1]}B",
    "thumbprint in plain base64": f"{CALLER}/{THUMBPRINT[:-2]}+A",
    "fullwidth slash": f"{DOMAIN}／client-service／{THUMBPRINT}",
    "fullwidth letters": f"{DOMAIN}/ｃlient-service/{THUMBPRINT}",
    "Cyrillic letter": f"{DOMAIN}/сlient-service/{THUMBPRINT}",
    "letter that lowers to ASCII": f"{DOMAIN}/client-service\N{KELVIN SIGN}/{THUMBPRINT}",
    "digit of another script": f"{DOMAIN}/client-service١/{THUMBPRINT}",
    "soft hyphen": f"{DOMAIN}/client\N{SOFT HYPHEN}-service/{THUMBPRINT}",
    "zero-width space": f"{CALLER}\N{ZERO WIDTH SPACE}/{THUMBPRINT}",
    "right-to-left": f"\N{RIGHT-TO-LEFT OVERRIDE}{CALLER}/{THUMBPRINT}",
    "composed letter": f"{DOMAIN}/cli\u0065\u0301nt-service/{THUMBPRINT}",
    "line separator": f"{CALLER}/{THUMBPRINT}\N{LINE SEPARATOR}",
    "label of 64": f"{DOMAIN}/{'a' * 64}/{THUMBPRINT}",
    "service of 101": f"{DOMAIN}/{'a.' * 50}a/{THUMBPRINT}",
    "domain of 255": f"{'a.' * 127}a/client-service/{THUMBPRINT}",
    "a regular expression's nightmare": f"{DOMAIN}/{'a-' * 1500}!/{THUMBPRINT}",
}


@pytest.mark.parametrize("kid", NO_KIDS.values(), ids=NO_KIDS)
def test_kid_that_is_no_kid(callee: Callee, key: KeyPair, kid: str) -> None:
    callee.refuses(forge(header(key, kid=kid), claims(), key.sign), "malformed_token")


@pytest.mark.parametrize("kid", [ABSENT, None, 7, True, ["a"], {"a": "b"}])
def test_kid_missing_or_no_string(callee: Callee, key: KeyPair, kid: object) -> None:
    callee.refuses(forge(header(key, kid=kid), claims(), key.sign), "malformed_token")


def test_kid_of_10_kb(callee: Callee, key: KeyPair) -> None:
    for kid in ("a" * 10_000, f"{DOMAIN}/{'a.' * 5000}a/{THUMBPRINT}"):
        callee.refuses(forge(header(key, kid=kid), claims(), key.sign), "malformed_token")


def test_kid_that_is_half_a_surrogate_pair(callee: Callee, key: KeyPair) -> None:
    head = canonical_json(header(key, kid="KID")).replace(b'"KID"', rb'"\ud800"')
    callee.refuses(forge(head, claims(), key.sign), "malformed_token")


def test_kid_of_another_service(callee: Callee, key: KeyPair) -> None:
    """Our own key signs, and the kid is that of a service that may call as well."""
    kid = kid_of(OTHER, rsa_key("other"))
    for issuer in (CALLER, OTHER):
        callee.refuses(forge(header(key, kid=kid), claims(issuer), key.sign), "bad_signature")


def test_kid_of_a_service_that_may_not_call(callee: Callee) -> None:
    callee.refuses(honest_token(rsa_key("stranger"), STRANGER), "caller_not_allowed")


def test_nothing_is_looked_up_for_services_that_may_not_call(callee: Callee, attacker: KeyPair) -> None:
    for number in range(50):
        callee.refuses(honest_token(attacker, f"{DOMAIN}/made-up-{number}"), "caller_not_allowed")
    assert callee.keys.asked == []


def test_kid_of_another_key_of_the_same_service(callee: Callee, key: KeyPair) -> None:
    second = rsa_key("caller's second")
    kid = callee.keys.add(CALLER, second)
    callee.refuses(forge(header(key, kid=kid), claims(), key.sign), "bad_signature")
    callee.refuses(forge(header(second, kid=kid_of(CALLER, key)), claims(), second.sign), "bad_signature")


def test_own_thumbprint_under_another_services_name(callee: Callee, key: KeyPair) -> None:
    callee.refuses(honest_token(key, OTHER), "unknown_key")


def test_key_that_nobody_registered(callee: Callee, attacker: KeyPair) -> None:
    callee.refuses(honest_token(attacker), "unknown_key")


def test_revoked_key(callee: Callee, key: KeyPair) -> None:
    token = honest_token(key)
    callee.keys.revoke(CALLER, key)
    callee.refuses(token, "revoked_key")


def test_key_revoked_after_its_header_was_remembered(callee: Callee, key: KeyPair) -> None:
    callee.accepts(honest_token(key, jti="BBBBBBBBBBBBBBBBBBBBBA"))
    callee.keys.revoke(CALLER, key)
    callee.refuses(honest_token(key), "revoked_key")


def test_caller_that_speaks_for_the_registry(callee: Callee, key: KeyPair) -> None:
    callee.refuses(honest_token(key, f"{DOMAIN}/registry"), "caller_not_allowed")


FOREIGN = ["evil.internal", f"{DOMAIN}.evil", f"evil.{DOMAIN}", f"{DOMAIN}x", DOMAIN.partition(".")[0], "x"]


@pytest.mark.parametrize("domain", FOREIGN)
def test_anyone_means_anyone_of_the_own_domain(key: KeyPair, domain: str) -> None:
    callee = Callee(allow={"*": {"orders:write"}})
    callee.refuses(honest_token(key, f"{domain}/client-service"), "caller_not_allowed")
    assert callee.accepts(honest_token(key)).id == CALLER


def test_kid_written_with_escapes_is_the_same_kid(callee: Callee, key: KeyPair) -> None:
    """Two spellings of one header are the signer's own business: both are signed, and name one key."""
    head = canonical_json(header(key)).replace(b"acme", rb"\u0061cme")
    callee.refuses(forge(head, claims(OTHER), key.sign), "wrong_issuer")
    assert callee.accepts(forge(head, claims(), key.sign)).id == CALLER


def test_thumbprint_is_of_the_key_and_not_of_its_der(callee: Callee, attacker: KeyPair) -> None:
    other = b64url(attacker.public.spki)[:42] + "A"
    callee.refuses(forge(header(attacker, kid=f"{CALLER}/{other}"), claims(), attacker.sign), "unknown_key")
