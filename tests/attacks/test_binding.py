"""Attacks on the binding: a good token with another request. Also what `routed_target` refuses to call a target."""

from types import MappingProxyType
from typing import Any

import pytest

from peerseal.errors import WrongBinding
from peerseal.protocol.encoding import digest_header
from peerseal.protocol.keys import KeyPair
from peerseal.verify.target import routed_target
from tests.attacks.forge import BODY, HEADERS, JTI, METHOD, TARGET, Callee, honest_token

OTHER_TARGETS = {
    "other path": "/orders/8?dry=1&full=yes",
    "parent": "/orders?dry=1&full=yes",
    "child": "/orders/7/items?dry=1&full=yes",
    "other query": "/orders/7?dry=0&full=yes",
    "query dropped": "/orders/7",
    "empty query": "/orders/7?",
    "query reordered": "/orders/7?full=yes&dry=1",
    "parameter added": "/orders/7?dry=1&full=yes&admin=1",
    "parameter twice": "/orders/7?dry=1&dry=0&full=yes",
    "ampersand at the end": "/orders/7?dry=1&full=yes&",
    "semicolon for ampersand": "/orders/7?dry=1;full=yes",
    "escaped letter": "/%6frders/7?dry=1&full=yes",
    "escaped slash": "/orders%2f7?dry=1&full=yes",
    "escaped dots": "/orders/%2e%2e/orders/7?dry=1&full=yes",
    "dots": "/orders/../orders/7?dry=1&full=yes",
    "dot": "/orders/./7?dry=1&full=yes",
    "two slashes": "/orders//7?dry=1&full=yes",
    "two slashes in front": "//orders/7?dry=1&full=yes",
    "slash at the end": "/orders/7/?dry=1&full=yes",
    "matrix parameter": "/orders/7;a=b?dry=1&full=yes",
    "upper case": "/Orders/7?dry=1&full=yes",
    "escaped query": "/orders/7%3fdry=1&full=yes",
    "escaped parameter": "/orders/7?dry=%31&full=yes",
    "plus": "/orders/7?dry=1&full=yes+",
    "fragment": "/orders/7?dry=1&full=yes#a",
    "absolute form": "http://resource-service/orders/7?dry=1&full=yes",
    "authority in front": "//resource-service/orders/7?dry=1&full=yes",
    "no slash": "orders/7?dry=1&full=yes",
    "blank at the end": "/orders/7?dry=1&full=yes ",
    "newline at the end": "/orders/7?dry=1&full=yes\n",
    "NUL": "/orders/7?dry=1&full=yes\0",
    "asterisk": "*",
    "empty": "",
    "UTF-8": "/orders/7?dry=1&full=yés",
    "half a surrogate pair": "/orders/7?dry=1&full=yes\ud800",
}


@pytest.mark.parametrize("target", OTHER_TARGETS.values(), ids=OTHER_TARGETS)
def test_other_target(callee: Callee, key: KeyPair, target: str) -> None:
    callee.refuses(honest_token(key), "wrong_binding", target=target)
    callee.accepts(honest_token(key))


@pytest.mark.parametrize(
    ("signed", "sent"), [("/%7ea", "/%7Ea"), ("/%7Ea", "/~a"), ("/a%2Fb", "/a%2fb"), ("/%61", "/a")]
)
def test_case_of_percent_escapes(callee: Callee, key: KeyPair, signed: str, sent: str) -> None:
    """Equal for RFC 3986, and two targets for us: the signature is over bytes."""
    token = honest_token(key, target_digest=digest_header(signed.encode()))
    callee.refuses(token, "wrong_binding", target=sent)
    callee.accepts(token, target=signed)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "post", "POST ", "", "POST\0", "PATCH", "ＰＯＳＴ"])
def test_other_method(callee: Callee, key: KeyPair, method: str) -> None:
    callee.refuses(honest_token(key), "wrong_binding", method=method)
    callee.refuses(honest_token(key, method=method), "wrong_binding")


@pytest.mark.parametrize(
    "digest",
    [
        *("", "sha-256=::", digest_header(TARGET.encode()).upper(), digest_header(TARGET.encode()).strip("sha-256=:")),
        *(digest_header(TARGET.encode()) + " ", "sha-512=:AAAA:", "md5=:AAAA:", digest_header(b"")),
        digest_header(TARGET.encode()) + ", sha-512=:AAAA:",
    ],
)
@pytest.mark.parametrize("claim", ["target_digest", "content_digest"])
def test_digest_in_another_form(callee: Callee, key: KeyPair, claim: str, digest: str) -> None:
    callee.refuses(honest_token(key, **{claim: digest}), "wrong_binding")


def test_one_byte_of_the_body_changed(callee: Callee, key: KeyPair) -> None:
    token = honest_token(key)
    for place in range(len(BODY)):
        altered = BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :]
        callee.refuses(token, "wrong_binding", body=altered)
    callee.accepts(token)


@pytest.mark.parametrize("body", [b"", BODY[:-1], BODY + b" ", BODY + b"\n", BODY * 2, b"\xef\xbb\xbf" + BODY, b"\0"])
def test_body_dropped_cut_or_longer(callee: Callee, key: KeyPair, body: bytes) -> None:
    callee.refuses(honest_token(key), "wrong_binding", body=body)


def test_body_added_to_a_request_without_one(callee: Callee, key: KeyPair) -> None:
    bare = {"method": "GET", "content_digest": digest_header(b""), "headers": {}}
    callee.refuses(honest_token(key, **bare), "wrong_binding", method="GET", headers={}, body=b"{}")
    callee.accepts(honest_token(key, **bare), method="GET", headers={}, body=b"")


@pytest.mark.parametrize("name", ["content-type", "content-encoding"])
@pytest.mark.parametrize("spelling", [str.lower, str.title, str.upper])
def test_header_that_says_how_the_body_is_read(callee: Callee, key: KeyPair, name: str, spelling: Any) -> None:
    """Bound whether the signer thought of it or not: JSON must not be read as a form, nor gzip as it is."""
    without = {other: value for other, value in HEADERS.items() if other != name}
    signed = honest_token(key, headers={**without, name: "gzip"})
    for sent in ("deflate", "x-gzip", "GZIP", "gzip, br", "gzip; charset=utf-7", ""):
        callee.refuses(signed, "wrong_binding", headers={**without, spelling(name): sent})
    callee.refuses(signed, "wrong_binding", headers=without)
    callee.refuses(honest_token(key, headers=without), "wrong_binding", headers={**without, spelling(name): "gzip"})
    callee.accepts(signed, headers={**without, spelling(name): "gzip"})


@pytest.mark.parametrize(("signed", "received"), [("a", "a "), ("a", " \ta\t "), ("a ", "a"), ("\ta", "a ")])
def test_blanks_around_a_value_are_no_part_of_it(callee: Callee, key: KeyPair, signed: str, received: str) -> None:
    """RFC 9110 section 5.5: some servers leave them there, and some signers."""
    token = honest_token(key, headers={**HEADERS, "x-tenant": signed})
    callee.accepts(token, headers={**HEADERS, "X-Tenant": received})


@pytest.mark.parametrize("received", ["a\n", "a\xa0", "a\v", "a\u2003", "a b", "A"])
def test_other_white_space_is_part_of_a_value(callee: Callee, key: KeyPair, received: str) -> None:
    token = honest_token(key, headers={**HEADERS, "x-tenant": "a"})
    callee.refuses(token, "wrong_binding", headers={**HEADERS, "x-tenant": received})


def test_a_header_that_stands_twice_in_a_mapping(callee: Callee, key: KeyPair) -> None:
    twice = {"content-type": "application/json", "Content-Type": "text/html"}
    callee.refuses(honest_token(key), "wrong_binding", headers=twice)
    callee.refuses(honest_token(key), "wrong_binding", headers=dict(reversed(twice.items())))


def test_header_that_the_application_bound(callee: Callee, key: KeyPair) -> None:
    token = honest_token(key, headers={**HEADERS, "x-tenant": "7"})
    for sent in ({}, {"x-tenant": "8"}, {"x-tenant": ""}, {"x-tenants": "7"}, {"x_tenant": "7"}):
        callee.refuses(token, "wrong_binding", headers={**HEADERS, **sent})
    callee.accepts(token, headers={**HEADERS, "X-Tenant": "7", "x-other": "a"})


def test_headers_in_another_mapping(callee: Callee, key: KeyPair) -> None:
    """An adapter's mapping is looked up by lower-case names and never walked through."""
    token = honest_token(key)
    callee.refuses(token, "wrong_binding", headers=MappingProxyType({"content-type": "text/plain"}))
    callee.refuses(token, "wrong_binding", headers=MappingProxyType({}))
    callee.refuses(token, "bad_transaction_token", headers=MappingProxyType({**HEADERS, "txn-token": "a"}))
    callee.accepts(token, headers=MappingProxyType(HEADERS))


def test_the_body_is_read_last_and_once(callee: Callee, key: KeyPair) -> None:
    reads = []

    def body() -> bytes:
        reads.append(1)
        return BODY

    for token, request in (
        (honest_token(key), {"target": "/other"}),
        (honest_token(key), {"method": "PUT"}),
        (honest_token(key), {"headers": {}}),
        (honest_token(key, exp=NOW_LONG_AGO), {}),
    ):
        with pytest.raises(Exception, match=r"signed|exp is not after iat"):
            callee.verifier.verify(
                token, **{"method": METHOD, "target": TARGET, "headers": HEADERS, **request}, body=body
            )
    assert reads == []
    callee.verifier.verify(
        honest_token(key, jti=f"B{JTI[1:]}"), method=METHOD, target=TARGET, headers=HEADERS, body=body
    )
    assert reads == [1]


NOW_LONG_AGO = 1

NO_TARGETS = [
    *("", "*", "orders", "http://h/orders", "https://h/orders", "h:443", "/a#b", "/#", "/a b", "/a\tb", "/a\n", "/a\0"),
    *("/a\r\nX: y", "/é", "/\N{FULLWIDTH SOLIDUS}", "/a\x7f", "?a", "\\a", " /a", "/a\N{LINE SEPARATOR}", "/\ud800"),
]


@pytest.mark.parametrize("raw", NO_TARGETS)
def test_request_target_that_is_not_in_origin_form(raw: str) -> None:
    with pytest.raises(WrongBinding):
        routed_target(raw, "", raw.partition("?")[0])


MISROUTED = [
    ("/admin/x", "", "/x"),
    ("/admin/x", "/admin", "/y"),
    ("/a%2fb", "", "/a%2fb"),
    ("/a%252fb", "", "/a/b"),
    ("/a/../b", "", "/b"),
    ("/a//b", "", "/a/b"),
    ("/a;b=c/d", "", "/a/d"),
    ("/A", "", "/a"),
    ("/a/", "", "/a"),
    ("/a", "", "/a/"),
    ("/a", "/", "a/"),
    ("/a?b", "", "/a?b"),
    ("/%c3%a9", "", "/é"),
    ("/%00", "", "/"),
    ("/a%", "", "/a"),
    ("/%zz", "", "/zz"),
    ("/a", "", "/\u0430"),
]


@pytest.mark.parametrize(("raw", "script_name", "path_info"), MISROUTED)
def test_request_target_that_is_not_what_was_routed(raw: str, script_name: str, path_info: str) -> None:
    with pytest.raises(WrongBinding):
        routed_target(raw, script_name, path_info)
