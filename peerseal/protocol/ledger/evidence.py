"""The evidence of an entry, checked long after the entry was written (docs/protocol.md).

For an admitted key it is the proof of possession, and the request token of the key that vouches, if one does. For a key
that retired or revoked itself, it is the request token of that call. The tokens have expired. These functions check who
signed them, and for what, but not whether they are still valid.
"""

from collections.abc import Mapping
from typing import Any, Final

from peerseal.errors import MalformedToken, WrongBinding, WrongIssuer, WrongType
from peerseal.protocol import jose
from peerseal.protocol.encoding import canonical_json, digest_header, strict_json_object
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.names import split_kid
from peerseal.protocol.tokens.claims import check_parties, time_claim
from peerseal.protocol.tokens.proof import Proof
from peerseal.protocol.tokens.request import REQUEST_TYP, check_request_claims

PROOF: Final = "proof"
VOUCH: Final = "vouch"
TOKEN: Final = "token"


def read_evidence(evidence: bytes) -> dict[str, str]:
    """``{"proof", "vouch"?}`` when a key is admitted, ``{"token"}`` when a service's key retires or revokes itself.
    Raises MalformedToken."""
    members = strict_json_object(evidence)
    if members.keys() not in ({PROOF}, {PROOF, VOUCH}, {TOKEN}) or any(
        type(one) is not str for one in members.values()
    ):
        raise MalformedToken("not the evidence of an entry")
    return members


def past_proof(jws: str, *, kid: str, registry: str) -> Proof:
    """The proof of possession of the key ``kid`` for the registry with that service id, checked at the
    time in its own ``iat``, since it has expired.

    Raises TokenError or KeyRefused.
    """
    owner, thumbprint = split_kid(kid)
    made_at = time_claim(strict_json_object(jose.parse(jws).payload), "iat")
    proof = Proof.read(jws, issuer=owner, audience=registry, now=made_at)
    if proof.public_key.thumbprint != thumbprint:
        raise WrongIssuer("the proof of another key")
    return proof


def past_request(token: str, *, key: PublicKey, kid: str, registry: str, method: str) -> Mapping[str, Any]:
    """The claims of a request token that the key ``kid`` signed for a call of that method to the registry.

    Raises TokenError.
    """
    read = jose.parse(token)
    if read.header.typ != REQUEST_TYP:
        raise WrongType("not a request token")
    if read.header.kid != kid:
        raise WrongIssuer(f"signed by {read.header.kid}, expected {kid}")
    key.check_signature(read.header.alg, read.signing_input, read.signature)
    claims = strict_json_object(read.payload)
    check_request_claims(claims)
    check_parties(claims["iss"], split_kid(kid)[0], claims["aud"], registry, subject=claims["sub"])
    if claims["method"] != method:
        raise WrongBinding(f"the request token is not for a {method}")
    return claims


def vouches_for(claims: Mapping[str, Any], proof: str) -> bool:
    """Whether the request token with these claims was signed for the body that registers this proof, in canonical JSON
    as our SDK writes it. Another client may spell the same body differently."""
    return bool(claims["content_digest"] == digest_header(canonical_json({PROOF: proof})))
