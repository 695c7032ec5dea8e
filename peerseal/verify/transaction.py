"""Transaction tokens at work: verified at each hop, minted at the edge.

Verification is step 9 of a request's (`peerseal.verify.request`). Whatever is wrong with a transaction token is one
answer, `BadTransactionToken`; the log says which. Only that a key or the domain's settings cannot be had is another.
"""

from collections.abc import Mapping
from types import MappingProxyType

from peerseal.errors import BadTransactionToken, InvalidName, TokenError
from peerseal.protocol import jose
from peerseal.protocol.names import split_kid
from peerseal.protocol.tokens.claims import check_times
from peerseal.protocol.tokens.transaction import (
    TRANSACTION_LIFETIME_CAP,
    TRANSACTION_TYP,
    TransactionToken,
    transaction_hash,
)
from peerseal.trust.beliefs import KeySource, check_window
from peerseal.verify.context import Transaction
from peerseal.verify.derivation import derivation_fault
from peerseal.verify.received import value_of

TRANSACTION_HEADER = "txn-token"


def bound_transaction(
    trust: KeySource, claims: Mapping[str, object], headers: Mapping[str, str], *, now: float, leeway: int
) -> Transaction:
    """Step 9: the transaction that goes along with a request whose token says ``claims``.

    Raises BadTransactionToken, also where a transaction token came and none was bound, or the other way round, or
    TrustUnavailable.
    """
    token, bound = value_of(headers, TRANSACTION_HEADER), claims.get("tth")
    if token is None or bound is None:
        raise BadTransactionToken("a transaction token that is not bound, or a bound one that did not come")
    try:
        if transaction_hash(token) != bound:
            raise BadTransactionToken("another transaction token was bound")
        return read_transaction(trust, token, now=now, leeway=leeway)
    except BadTransactionToken:
        raise
    except (TokenError, InvalidName) as error:
        raise BadTransactionToken(f"{error.code}: {error}") from error


def read_transaction(trust: KeySource, token: str, *, now: float, leeway: int) -> Transaction:
    """The transaction that a token proves: steps 1 to 7 as for a request token, and its signer may mint. A derived
    scope is one that the domain's settings grant to the publisher of the event (``req_wl``).

    Raises TokenError, InvalidName or TrustUnavailable.
    """
    unverified = jose.parse(token)
    if unverified.header.typ != TRANSACTION_TYP:
        raise BadTransactionToken("not a transaction token")
    claimed = TransactionToken.read(unverified.payload)
    minter = split_kid(unverified.header.kid)[0]
    if minter not in trust.settings().minters:
        raise BadTransactionToken(f"{minter} may not mint")
    key = trust.key(unverified.header.kid)
    if unverified.header.alg != key.public.alg or not key.public.verify(unverified.signing_input, unverified.signature):
        raise BadTransactionToken("the signature does not verify")
    if claimed.issuer != key.service_id or claimed.audience != trust.domain:
        raise BadTransactionToken("iss is not the owner of the key, or aud not this trust domain")
    issued_at = claimed.issued_at
    check_times(issued_at, issued_at, claimed.expires_at, now=now, leeway=leeway, cap=TRANSACTION_LIFETIME_CAP)
    check_window(issued_at, key, leeway)
    fault = derivation_fault(trust, claimed.workload, claimed.scopes, claimed.authentication)
    if fault is not None:
        raise BadTransactionToken(fault)
    return transaction_of(claimed, token)


def transaction_of(verified: TransactionToken, token: str) -> Transaction:
    """The transaction of a token that was verified, or minted here."""
    return Transaction(
        id=verified.id,
        user=verified.user,
        scopes=verified.scopes,
        facts=MappingProxyType(dict(verified.facts)),
        authentication=MappingProxyType(dict(verified.authentication)),
        minter=verified.issuer,
        workload=verified.workload,
        carry=lambda: token,
        expires_at=verified.expires_at,
    )
