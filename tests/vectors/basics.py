"""Vectors for the basics: encodings, digests, names, keys, the Authorization header, join tokens, refusals."""

from typing import Any, Final

from peerseal import errors
from peerseal.protocol.encoding import b64url, canonical_json, digest_header, strict_json_object
from peerseal.protocol.join import JoinToken, join_mac
from peerseal.protocol.keys import PublicCredentials
from peerseal.protocol.problem_document import problem_of
from tests.vectors.requests import token
from tests.vectors.tokens import proof
from tests.vectors.world import CALLER, DOMAIN, Vectors, ec_key, kid_of, modulus, rsa_key, seed

REFUSALS: Final = (errors.TokenError, errors.Forbidden, errors.TrustUnavailable)


def base64url() -> Vectors:
    """Canonical base64url without padding."""
    made = Vectors("base64url", "Canonical base64url; `claims` has the bytes in hex.")
    for size in (0, 1, 2, 3, 4, 32):
        data = seed("base64url", size)
        made.good(f"bytes-{size}", f"{size} bytes", {"hex": data.hex()}, text=b64url(data))
    made.good("both-characters", "- and _", {"hex": "fbff"}, text="-_8")
    bad = {"padding": "AA==", "plus": "+_8", "slash": "-/8", "blank": "A A", "line-feed": "AA\n", "one": "A"}
    bad |= {"five": "AAAAA", "two-with-bits": "AB", "three-with-bits": "AAB", "not-ascii": "AÄAA", "dot": "A.AA"}
    for name, text in bad.items():
        made.bad(name, "malformed_token", "not canonical", text=text)
    return made


def strict_json() -> Vectors:
    """JSON objects, read strictly."""
    made = Vectors("json", "JSON objects, read strictly; `text` is base64url of the bytes.")
    good: dict[str, tuple[bytes, Any]] = {
        "empty": (b"{}", {}),
        "white-space": (b' {\t"a" :\r\n1 } ', {"a": 1}),
        "escapes": (b'{"\\u0061":"\\n\\/"}', {"a": "\n/"}),
        "utf-8": ('{"a":"é"}'.encode(), {"a": "é"}),
        "pair": (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
        "values": (b'{"a":[1,-1.5,true,false,null,""]}', {"a": [1, -1.5, True, False, None, ""]}),
        "32-levels": (b'{"a":' * 31 + b"[]" + b"}" * 31, None),
    }
    for name, (text, value) in good.items():
        made.good(name, "strict JSON", value, text=b64url(text))
    bad = {
        "nothing": b"",
        "array": b"[]",
        "number": b"1",
        "repeated": b'{"a":1,"a":1}',
        "repeated-inside": b'{"b":[{"a":1,"a":2}]}',
        "repeated-by-escape": b'{"a":1,"\\u0061":2}',
        "nan": b'{"a":NaN}',
        "minus-infinity": b'{"a":-Infinity}',
        "1e400": b'{"a":1e400}',
        "leading-zero": b'{"a":01}',
        "plus": b'{"a":+1}',
        "bare-point": b'{"a":1.}',
        "single-quotes": b"{'a':1}",
        "no-quotes": b"{a:1}",
        "trailing-comma": b'{"a":1,}',
        "two-values": b"{}{}",
        "byte-order-mark": b"\xef\xbb\xbf{}",
        "utf-16": '{"a":1}'.encode("utf-16-le"),
        "invalid-utf-8": b'{"a":"\xff"}',
        "overlong-utf-8": b'{"a":"\xc0\xaf"}',
        "surrogate-in-utf-8": b'{"a":"\xed\xa0\x80"}',
        "half-a-pair": b'{"a":"\\ud800"}',
        "half-a-pair-in-a-name": b'{"\\udc00":1}',
        "control-character": b'{"a":"\x01"}',
        "unknown-escape": b'{"a":"\\x41"}',
        "vertical-tab": b"{}\x0b",
        "33-levels": b'{"a":' * 32 + b"[]" + b"}" * 32,
    }
    for name, text in bad.items():
        made.bad(name, "malformed_token", "refused", text=b64url(text))
    return made


def canonical() -> Vectors:
    """Canonical JSON."""
    made = Vectors("canonical-json", "Strict JSON objects, and their one spelling; both are base64url of the bytes.")
    good = {
        "empty": b" { } ",
        "white-space": b'{"a" : [ 1 , true , false , null ] }',
        "names-sorted-inside": b'{"b":[{"d":1,"c":2}],"a":{"f":1,"e":2}}',
        "names-sorted-by-code-points": '{"\uffee":1,"😀":2,"é":3,"a":4,"Z":5,"":6}'.encode(),
        "names-like-numbers": b'{"9":1,"10":2,"a":3,"-1":4}',
        "names-of-javascript": b'{"constructor":1,"__proto__":{"b":1,"a":2}}',
        "name-sorted-by-its-value": b'{"\\u0062":1,"a":2}',
        "short-escapes": b'{"a":"\\u0008\\u0009\\u000a\\u000c\\u000d\\u0022\\u005c"}',
        "long-escapes": b'{"a":"\\u0000\\u001F\\u000b"}',
        "no-escapes": b'{"a":"\\/<>&\'\\u007f\\u00e9\\ud83d\\ude00"}',
        "line-separators": b'{"a":"\\u2028\\u2029"}',
        "like-a-line-separator": b'{"a":"\\\\u2028"}',
        "like-others": b'{"\\\\u2029":"\\\\u007f\\\\\\\\u2028"}',
        "like-and-real": b'{"a":"\\\\\\u2028\\\\u2028\\u2028"}',
    }
    for name, text in good.items():
        octets = canonical_json(strict_json_object(text))
        made.good(name, f"{len(octets)} bytes", {"canonical": b64url(octets)}, text=b64url(text))
    for name, text in {"list": b"[]", "repeated": b'{"a":1,"a":1}', "half-a-pair": b'{"a":"\\ud83d"}'}.items():
        made.bad(name, "malformed_token", "no strict JSON object", text=b64url(text))
    return made


def content_digests() -> Vectors:
    """Digests of bodies."""
    made = Vectors("content-digest", "Digests of a body's bytes (RFC 9530); `body` is base64url.")
    bodies = {"empty": b"", "json": b'{"item": 7}', "binary": bytes(range(256)), "utf-8": "é".encode()}
    for name, body in bodies.items():
        made.good(name, f"{len(body)} bytes", body=b64url(body), digest=digest_header(body))
    good = digest_header(b"")
    bad = {
        "other-body": digest_header(b"a"),
        "upper-case": good.replace("sha", "SHA"),
        "sha-512": good.replace("256", "512"),
        "no-colons": good.replace(":", ""),
        "base64url": good.replace("+", "-").replace("/", "_"),
        "no-padding": good.replace("=:", ":"),
        "blank": f" {good}",
        "two": f"{good}, {good}",
        "hex": "sha-256=:" + "e3b0c442" * 8 + ":",
    }
    for name, digest in bad.items():
        made.bad(name, "wrong_binding", "not the digest of no bytes", body="", digest=digest)
    return made


def target_digests() -> Vectors:
    """Digests of request-targets."""
    made = Vectors("target-digest", "Digests of a request-target in origin form, exactly as sent.")
    for name, target in {
        "root": "/",
        "path": "/orders/7",
        "query": "/orders?dry=1&full=yes",
        "empty-query": "/orders?",
        "escape": "/a%2fb",
        "escape-upper": "/a%2Fb",
        "dots": "/a/../b",
        "slashes": "//a",
        "plus": "/a+b?c=d+e",
    }.items():
        made.good(name, "as sent", target=target, digest=digest_header(target.encode()))
    others = {"case-of-escape": ("/a%2fb", "/a%2Fb"), "decoded": ("/a%2fb", "/a/b"), "empty-query": ("/a?", "/a")}
    others |= {"dots-resolved": ("/a/../b", "/b"), "with-fragment": ("/a#f", "/a"), "host": ("http://h/a", "/a")}
    for name, (target, signed) in others.items():
        digest = digest_header(signed.encode())
        made.bad(f"other-{name}", "wrong_binding", f"signed for {signed}", target=target, digest=digest)
    made.bad(
        "not-ascii", "wrong_binding", "no target has such a letter", target="/é", digest=digest_header("/é".encode())
    )
    return made


def kids() -> Vectors:
    """Kids and the names in them."""
    made = Vectors("kid", "Kids: which service owns the key, and its thumbprint.")
    thumbprint = ec_key("caller").public.thumbprint
    label, domain = "a" * 63, ".".join(["a" * 60] * 4)
    good = {CALLER: "usual", f"{DOMAIN}/a.b.c": "a service in a name space", "a/b": "one letter each"}
    good |= {f"{label}.b/{label}": "labels of 63 characters", f"{domain}/b": "a long domain", "1.2/3-4": "digits"}
    good |= {f"a/{'b' * 50}.{'c' * 49}": "a service of 100 characters"}
    for number, (owner, comment) in enumerate(good.items()):
        parts = {"service_id": owner, "thumbprint": thumbprint}
        made.good(f"good-{number}", comment, parts, kid=f"{owner}/{thumbprint}")
    bad = {
        "": "empty",
        thumbprint: "a thumbprint alone",
        f"{CALLER}/": "no thumbprint",
        f"{CALLER}/{thumbprint[:-1]}": "a short thumbprint",
        f"{CALLER}/{thumbprint}A": "a long thumbprint",
        f"{CALLER}/{thumbprint[:-1]}{chr(ord(thumbprint[-1]) + 1)}": "trailing bits",
        f"{CALLER}/{thumbprint}\n": "a line feed",
        f"Acme.internal/a/{thumbprint}": "an upper-case letter",
        f"a/-b/{thumbprint}": "a label begins with a hyphen",
        f"a/b-/{thumbprint}": "a label ends with a hyphen",
        f"a/b..c/{thumbprint}": "an empty label",
        f"a./b/{thumbprint}": "a dot at the end",
        f"a/b_c/{thumbprint}": "an underscore",
        f"a/é/{thumbprint}": "a letter beyond ASCII",
        f"{label}a/b/{thumbprint}": "a label of 64 characters",
        f"a/{'b' * 50}.{'c' * 50}/{thumbprint}": "a service of 101 characters",
        f"a/b/c/{thumbprint}": "four parts",
        f"/b/{thumbprint}": "no domain",
    }
    for number, (kid, comment) in enumerate(bad.items()):
        made.bad(f"bad-{number}", "invalid_name", comment, kid=kid)
    return made


def keys() -> Vectors:
    """Public keys, as they are registered."""
    made = Vectors("key", "JWKs: algorithm, thumbprint (RFC 7638), public credentials of client-service.")
    for name, key in {
        "ec": ec_key("caller").public,
        "ec-other": ec_key("billing").public,
        "rsa": rsa_key("caller").public,
    }.items():
        shown = PublicCredentials.of(CALLER, key).to_json()
        facts = {"alg": key.alg, "thumbprint": key.thumbprint, **shown}
        made.good(name, "a sound key", facts, jwk=dict(key.jwk))
        extra = {"kid": kid_of(CALLER, ec_key("caller")), "use": "sig", "alg": key.alg, "x": "y"} | dict(key.jwk)
        made.good(f"{name}-more-members", "other members do not count", {"thumbprint": key.thumbprint}, jwk=extra)
    _bad_keys(made)
    return made


def _bad_keys(made: Vectors) -> None:
    ec, rsa = dict(ec_key("caller").public.jwk), dict(rsa_key("caller").public.jwk)
    small, even = modulus(1024), modulus(2048) - 1
    off = seed("off the curve")
    bad: dict[str, tuple[str, dict[str, Any]]] = {
        "private-ec": ("key_private_members", {**ec, "d": b64url(bytes(32))}),
        "private-rsa": ("key_private_members", {**rsa, "p": "AQ"}),
        "symmetric": ("key_private_members", {"kty": "oct", "k": "AQ"}),
        "ed25519": ("key_type_unsupported", {"kty": "OKP", "crv": "Ed25519", "x": b64url(bytes(32))}),
        "p-384": ("key_type_unsupported", {**ec, "crv": "P-384"}),
        "no-kty": ("key_type_unsupported", {name: ec[name] for name in ("crv", "x", "y")}),
        "off-curve": ("key_off_curve", {**ec, "y": b64url(off)}),
        "zero-point": ("key_off_curve", {**ec, "x": b64url(bytes(32)), "y": b64url(bytes(32))}),
        "short-coordinate": ("key_malformed", {**ec, "x": b64url(seed("x", 31))}),
        "long-coordinate": ("key_malformed", {**ec, "x": b64url(b"\0" + seed("x"))}),
        "no-y": ("key_malformed", {name: ec[name] for name in ("kty", "crv", "x")}),
        "padded": ("key_malformed", {**ec, "x": f"{ec['x']}="}),
        "number": ("key_malformed", {**ec, "x": 7}),
        "rsa-1024": ("key_size_unsupported", {**rsa, "n": _number(small)}),
        "rsa-2047": ("key_size_unsupported", {**rsa, "n": _number(modulus(2048) >> 1 | 1)}),
        "rsa-e-3": ("key_exponent_unsupported", {**rsa, "e": "Aw"}),
        "rsa-even": ("key_even_modulus", {**rsa, "n": _number(even)}),
        "rsa-zero-byte": ("key_malformed", {**rsa, "n": b64url(b"\0" + modulus(2048).to_bytes(256, "big"))}),
        "alg-mismatch": ("key_alg_mismatch", {**ec, "alg": "RS256"}),
        "alg-pss": ("key_alg_mismatch", {**rsa, "alg": "PS256"}),
    }
    for name, (code, jwk) in bad.items():
        made.bad(name, code, "may not be registered", jwk=jwk)


def _number(value: int) -> str:
    return b64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def authorizations() -> Vectors:
    """Values of the Authorization header."""
    made = Vectors("authorization", "The Authorization header; `claims` has the token in it. null: no such header.")
    good = token()
    for name, value in {
        "usual": f"Bearer {good}",
        "lower-case": f"bearer {good}",
        "blanks": f" BEARER  {good} ",
    }.items():
        made.good(name, "one token", {"token": good}, authorization=value)
    missing = {"absent": None, "empty": "", "basic": "Basic YTpi", "no-scheme": good}
    for name, other in missing.items():
        made.bad(name, "missing_token", "no bearer token came", authorization=other)
    bad = {"two-values": f"Bearer {good}, Bearer {good}", "comma": f"Bearer {good},", "no-token": "Bearer "}
    bad |= {"two-tokens": f"Bearer {good} {good}", "tab": f"Bearer\t{good}", "quotes": f'Bearer "{good}"'}
    for name, text in bad.items():
        expected = "missing_token" if name == "tab" else "malformed_token"
        made.bad(name, expected, "not one bearer token", authorization=text)
    return made


def join_macs() -> Vectors:
    """Join tokens, and the MAC over a proof."""
    pin = ec_key("root").public.thumbprint
    joining = JoinToken(b64url(seed("join id", 12)), b64url(seed("join secret")), pin)
    text = joining.encode()
    made = Vectors(
        "join", "Join tokens, and the MAC over a proof. The secret is never sent.", defaults={"join_token": text}
    )
    made.defaults |= {"proof": proof(), "mac": join_mac(joining.mac_key, proof())}
    made.good("honest", "id, pin and MAC", {"id": joining.id, "pin": pin})
    made.good("line-feed", "white space around it", {"id": joining.id}, join_token=f" {text}\n")
    made.bad("other-proof", "join_refused", "the MAC is over another proof", proof=proof(rsa_key("caller")))
    other = JoinToken(joining.id, b64url(seed("other secret")), pin)
    made.bad("other-secret", "join_refused", "the MAC is by another secret", join_token=other.encode())
    made.bad("empty-mac", "join_refused", "no MAC", mac="")
    bad = {"prefix": text.replace("psj1", "psj2"), "three-parts": text.rpartition(".")[0], "five-parts": f"{text}.a"}
    bad |= {"short-secret": f"psj1.{joining.id}.AAAA.{pin}", "padding": f"{text}=", "empty": ""}
    for name, value in bad.items():
        made.bad(name, "configuration", "not a join token", join_token=value)
    return made


def refusals() -> Vectors:
    """How each refusal is answered."""
    made = Vectors("refusal", "Answers to a refused request (RFC 9457, RFC 6750), by code.")
    for kind in _leaves(errors.PeersealError):
        if not issubclass(kind, REFUSALS) and kind not in (errors.ContentTooLarge, errors.ContentUnreadable):
            continue
        answer = problem_of(kind("detail"))
        headers = {name.lower(): value for name, value in answer.headers.items()}
        facts = {"status": answer.status, "headers": headers}
        made.good(kind.code, (kind.__doc__ or "").partition("\n")[0].rstrip("."), facts, code=kind.code)
    return made


def _leaves(kind: type[errors.PeersealError]) -> list[type[errors.PeersealError]]:
    below = [leaf for child in kind.__subclasses__() if child.__module__ == errors.__name__ for leaf in _leaves(child)]
    return [kind, *below] if kind.code != errors.PeersealError.code else below
