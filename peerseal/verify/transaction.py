"""Verification of the transaction token that goes along with a request: step 9 (`peerseal.verify.request`).

Each fault of a transaction token is a BadTransactionToken for the caller; the log says which fault it is. Only a key or
settings that cannot be had now are another error, TrustUnavailable.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from peerseal.errors import BadTransactionToken, InvalidName, MalformedToken, TokenError, TrustUnavailable
from peerseal.protocol import jose
from peerseal.protocol.documents.federation import FederatedDomain
from peerseal.protocol.names import split_service_id
from peerseal.protocol.tokens.claims import check_parties, check_times, owner_in
from peerseal.protocol.tokens.transaction import (
    TRANSACTION_LIFETIME_CAP,
    TRANSACTION_TYP,
    TransactionToken,
    transaction_hash,
)
from peerseal.trust.beliefs import KeySource, check_window
from peerseal.verify.border import crossing_scopes, foreign_minters
from peerseal.verify.context import Transaction
from peerseal.verify.derivation import derivation_fault
from peerseal.verify.received import by_lower_name, value_of

TRANSACTION_HEADER = "txn-token"


def bound_transaction(
    trust: KeySource,
    claims: Mapping[str, object],
    headers: Mapping[str, str],
    *,
    now: float,
    leeway: int,
    carried: FederatedDomain | None = None,
) -> Transaction:
    """Step 9: the transaction of a request whose token has these ``claims``. ``carried`` is the caller's entry in the
    federation, None for a caller of the own domain. Raises BadTransactionToken, also for a transaction token that the
    request token does not bind, and if the request token binds a transaction token that is missing. Raises
    TrustUnavailable, too."""
    token, bound = value_of(headers, TRANSACTION_HEADER), claims.get("tth")
    if token is None or bound is None:
        raise BadTransactionToken(
            "the request token binds no transaction token, but one was sent"
            if bound is None
            else "the request token binds a transaction token, but none was sent"
        )
    try:
        if transaction_hash(token) != bound:
            raise BadTransactionToken("the request token binds another transaction token")
        return read_transaction(trust, token, now=now, leeway=leeway, carried=carried)
    except (BadTransactionToken, TrustUnavailable) as error:
        error.at_step(9)
        raise
    except TokenError as error:
        raise BadTransactionToken(f"{error.code}: {error}") from error


def transaction_kid(headers: Mapping[str, str]) -> str | None:
    """The kid that a request's transaction token claims to be signed by; None where `bound_transaction` refuses the
    token before it needs a key."""
    try:
        token = value_of(by_lower_name(headers, {}), TRANSACTION_HEADER)
        return None if token is None else jose.parse(token).header.kid
    except TokenError:
        return None


def transaction_domain(headers: Mapping[str, str]) -> str | None:
    """The trust domain that a request's transaction token claims to be minted in; None where there is no such token, or
    none that can be read."""
    token = value_of(by_lower_name(headers, {}), TRANSACTION_HEADER)
    try:
        return None if token is None else split_service_id(owner_in(jose.parse(token).header, TRANSACTION_TYP))[0]
    except (TokenError, InvalidName):
        return None


def read_transaction(
    trust: KeySource, token: str, *, now: float, leeway: int, carried: FederatedDomain | None = None
) -> Transaction:
    """The transaction that a token proves: steps 1 to 7 as for a request token, and its signer must be a minter of the
    own domain; or of a foreign one, whose transactions may cross (`peerseal.verify.border`). ``carried`` is as in
    `bound_transaction`. Step 10: a derived scope must be one that the domain's settings grant to the publisher of the
    event (``req_wl``), see `derivation_fault`.

    Raises TokenError or TrustUnavailable; ``step`` of the error is one of these.
    """
    unverified = jose.parse(token)  # 1, 2
    minter, claimed = owner_in(unverified.header, TRANSACTION_TYP), _claims_of(unverified)
    if minter not in trust.settings().minters:  # 3
        trust = foreign_minters(trust, minter)
    key = trust.key(unverified.header.kid)
    if key.federated is not None and key.federated.domain != trust.domain:
        raise BadTransactionToken(f"{minter} is of another domain, and mints for {trust.domain}").at_step(3)
    limit = crossing_scopes(key.federated, carried)
    key.public.check_signature(unverified.header.alg, unverified.signing_input, unverified.signature)  # 4
    check_parties(claimed.issuer, key.service_id, claimed.audience, trust.domain)  # 5, 6
    issued_at = claimed.issued_at
    check_times(issued_at, issued_at, claimed.expires_at, now=now, leeway=leeway, cap=TRANSACTION_LIFETIME_CAP)  # 7
    check_window(issued_at, key, leeway)
    fault = derivation_fault(trust, claimed.workload, claimed.scopes, claimed.authentication)
    if fault is not None:  # 10
        raise BadTransactionToken(fault).at_step(10)
    transaction = transaction_of(claimed, token)
    return transaction if limit is None else replace(transaction, scopes=transaction.scopes & limit)


def _claims_of(unverified: jose.UnverifiedJws) -> TransactionToken:
    try:
        return TransactionToken.read(unverified.payload)
    except MalformedToken as error:
        error.at_step(2)
        raise


def transaction_of(verified: TransactionToken, token: str) -> Transaction:
    """The transaction of a token that was verified or minted here."""
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
