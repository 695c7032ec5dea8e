"""Sign-in of operators by an OIDC issuer: the authorization code flow with PKCE (OpenID Connect Core 1.0 section 3.1,
RFC 7636, RFC 9207). Authlib speaks the protocol, `peerseal.transport` makes the calls, and `peerseal.verify` checks the
ID token. The steps:

1. `IssuerSignIn.address`: the address at the issuer, with ``state``, ``nonce`` and the challenge of one attempt
2. `Attempt.is_answered_by`: the answer is of this attempt
3. `IssuerSignIn.person`: the answer is of this issuer; the code becomes an ID token, which is signed by the issuer's
   key, for this client and this attempt, and valid now; the groups in it have a role
"""

import hmac
import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Lock
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from authlib.oauth2 import OAuth2Client, OAuth2Error

from peerseal.errors import (
    ConfigurationError,
    DocumentRefused,
    FetchError,
    MalformedToken,
    PeersealError,
    TokenError,
    TrustUnavailable,
)
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.tokens.claims import claim
from peerseal.protocol.tokens.oidc import MAX_DISCOVERY, UnverifiedToken, VerifiedClaims, audiences_of, read_discovery
from peerseal.runtime.limits import FetchLimits
from peerseal.transport.fetch import Answer, HttpFetcher, is_loopback, no_larger_than
from peerseal.verify.issuers import DISCOVERY, OidcIssuer, check_jwks_uri
from registry.domain.errors import OperatorRefused
from registry.domain.key_quality import check_quality
from registry.operator_issuer import OperatorIssuer
from registry.services.access.operators import Person, Role

log = logging.getLogger(__name__)

FETCH: Final = FetchLimits(connect_timeout=2.0, read_timeout=4.0, total_timeout=5.0, max_bytes=64 * 1024)
"""Of one call to the issuer: a person waits for it, and so does a thread of the worker."""
METADATA_KEPT: Final = 300.0
"""Seconds for which the issuer's discovery document is used."""
PAUSE: Final = 5.0
"""Seconds without a call for that document after one that failed: an issuer that hangs must not hold all threads."""
EXCHANGES: Final = 2
"""Codes that a worker exchanges at once. Others are refused: an issuer that hangs must not hold all threads."""
MOST_GROUPS: Final = 1_000
LONGEST_NAME: Final = 100
_ID_TOKEN_TYPES: Final = (None, "JWT")
_METHODS: Final = ("client_secret_basic", "client_secret_post")


@dataclass(frozen=True, slots=True)
class Attempt:
    """The secrets of one sign-in, in one browser."""

    state: str = field(repr=False)
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)

    def is_answered_by(self, state: str) -> bool:
        """Whether an answer with that ``state`` is of this attempt, so of the browser that began it."""
        return hmac.compare_digest(state.encode("utf-8", "replace"), self.state.encode())


@dataclass(frozen=True, slots=True)
class _Metadata:
    """What the issuer's discovery document says."""

    authorization_endpoint: str
    token_endpoint: str
    method: str
    names_itself: bool
    """Whether each of its answers has ``iss`` (RFC 9207 section 3)."""


class IssuerSignIn:
    """Finds out who signs in. Nothing is fetched before the first sign-in."""

    def __init__(self, settings: OperatorIssuer, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._issuer = OidcIssuer.configured(
            settings.issuer, ca_file=settings.ca_file, check_key=check_quality, clock=clock
        )
        self._metadata: _Metadata | None = None
        self._read_at = self._asked_at = -math.inf
        self._exchanges, self._verifying = BoundedSemaphore(EXCHANGES), Lock()

    def address(self, attempt: Attempt) -> str:
        """Where the browser goes. Raises TrustUnavailable."""
        metadata = self._discovered()
        url, _ = self._client(metadata).create_authorization_url(
            metadata.authorization_endpoint, state=attempt.state, nonce=attempt.nonce, code_verifier=attempt.verifier
        )
        return str(url)

    def person(self, attempt: Attempt, answer: Mapping[str, str]) -> tuple[Person, Role | None]:
        """Who signed in, and the highest role of the person's groups, if one of them has a role, by the parameters with
        which the browser came back, for `attempt.is_answered_by` them. Raises OperatorRefused, or TrustUnavailable also
        while the issuer is slow for others."""
        metadata = self._discovered()
        if answer.get("iss", None if metadata.names_itself else self._settings.issuer) != self._settings.issuer:
            raise OperatorRefused(f"the answer has iss {answer.get('iss')!r:.100}, expected {self._settings.issuer}")
        if "error" in answer or not answer.get("code"):
            raise OperatorRefused(f"the issuer answered {answer.get('error', 'without a code')!r:.60}")
        if not self._exchanges.acquire(blocking=False):
            raise TrustUnavailable(f"{EXCHANGES} sign-ins wait for the issuer: begin again", int(PAUSE))
        try:
            id_token = self._exchanged(metadata, answer["code"], attempt)
            with self._verifying:  # or the second of two would be refused while the first fetches the issuer's keys
                verified = self._verified(id_token, attempt)
        finally:
            self._exchanges.release()
        return _person(verified), self._role(verified)

    def _exchanged(self, metadata: _Metadata, code: str, attempt: Attempt) -> str:
        """The ID token for the code. Raises OperatorRefused or TrustUnavailable."""
        try:
            tokens = self._client(metadata).fetch_token(
                metadata.token_endpoint, grant_type="authorization_code", code=code, code_verifier=attempt.verifier
            )
        except OAuth2Error as error:
            raise OperatorRefused(f"the issuer refuses the code: {error.error!r:.60}") from error
        except FetchError as error:
            raise TrustUnavailable(f"the issuer gives no token: {error}") from error
        except (ValueError, TypeError, KeyError) as error:  # of Authlib, about an answer in another form
            raise OperatorRefused("the issuer's token endpoint answered in no known form") from error
        if not isinstance(id_token := tokens.get("id_token"), str):
            raise OperatorRefused("the issuer's answer holds no ID token")
        return id_token

    def _verified(self, id_token: str, attempt: Attempt) -> VerifiedClaims:
        """The claims (OpenID Connect Core section 3.1.3.7). Raises OperatorRefused or TrustUnavailable."""
        try:
            unverified = UnverifiedToken.parse(id_token, types=_ID_TOKEN_TYPES)
            verified = self._issuer.verify(unverified, audience=self._settings.client_id)
            nonce, authorized = claim(verified.claims, "nonce", str), verified.claims.get("azp")
        except TokenError as error:
            raise OperatorRefused(f"the ID token is refused: {error.code}: {error}") from error
        if not hmac.compare_digest(nonce.encode(), attempt.nonce.encode()):
            raise OperatorRefused("the ID token has the nonce of another sign-in")
        alone = audiences_of(verified.claims) == [self._settings.client_id]
        if authorized != self._settings.client_id and not (alone and "azp" not in verified.claims):
            raise OperatorRefused(f"the ID token has azp {authorized!r:.100}, expected {self._settings.client_id}")
        return verified

    def _role(self, verified: VerifiedClaims) -> Role | None:
        """The highest role; None, and a line in the log, where no group has one."""
        given = verified.claims.get(self._settings.groups_claim, [])
        groups = [given] if isinstance(given, str) else given
        if not isinstance(groups, list) or len(groups) > MOST_GROUPS:
            log.warning("the claim %s is no list of at most %d groups", self._settings.groups_claim, MOST_GROUPS)
            return None
        named = {group for group in groups if isinstance(group, str)} & self._settings.groups.keys()
        if not named:
            log.info("none of the %d groups in %s has a role here", len(groups), self._settings.groups_claim)
            return None
        return max(Role.of(self._settings.groups[group]) for group in named)

    def _client(self, metadata: _Metadata) -> Any:
        """Authlib's client, over our calls."""
        settings = self._settings
        return OAuth2Client(
            _Calls(settings),
            client_id=settings.client_id,
            client_secret=settings.client_secret,
            token_endpoint_auth_method=metadata.method if settings.client_secret else "none",
            scope="openid profile",
            redirect_uri=settings.redirect_uri,
            code_challenge_method="S256",
        )

    def _discovered(self) -> _Metadata:
        """The issuer's metadata; the known one while it answers nothing. Raises TrustUnavailable."""
        now, known = self._clock(), self._metadata
        if known is not None and 0 <= now - self._read_at < METADATA_KEPT:
            return known
        if not 0 <= now - self._asked_at < PAUSE:
            with suppress(FetchError, DocumentRefused, ConfigurationError, MalformedToken):
                self._asked_at = now  # before the call, which may hang
                self._metadata, self._read_at = self._fetched(), now
                self._asked_at = -math.inf
        if self._metadata is None:
            raise TrustUnavailable(f"the issuer {self._settings.issuer} gives no discovery document", int(PAUSE))
        return self._metadata

    def _fetched(self) -> _Metadata:
        """Raises FetchError, DocumentRefused, ConfigurationError or MalformedToken."""
        issuer = self._settings.issuer
        try:
            with no_larger_than(MAX_DISCOVERY):
                answer = _call(self._settings, "GET", issuer.rstrip("/") + DISCOVERY)
            if answer.status != 200:
                raise FetchError(f"it answered {answer.status}", answer.status)
            read_discovery(answer.body, issuer=issuer)
            document = strict_json_object(answer.body)
            endpoints = [claim(document, name, str) for name in ("authorization_endpoint", "token_endpoint")]
            for endpoint in endpoints:
                check_jwks_uri(endpoint, issuer)
        except PeersealError as error:
            log.warning("the discovery document of the operators' issuer cannot be had: %s", error)
            raise
        supported = document.get("token_endpoint_auth_methods_supported")
        methods = [method for method in _METHODS if method in supported] if isinstance(supported, list) else []
        names_itself = document.get("authorization_response_iss_parameter_supported") is True
        return _Metadata(endpoints[0], endpoints[1], (methods or _METHODS)[0], names_itself)


class _Calls:
    """What Authlib's client needs of a session of `requests`: one way to send a form."""

    def __init__(self, settings: OperatorIssuer) -> None:
        self._settings = settings

    def post(self, url: str, *, data: Mapping[str, str], headers: Mapping[str, str], auth: Any) -> "_Response":
        """Sends it, with the client's authentication. Raises FetchError."""
        url, headers, body = auth.prepare("POST", url, dict(headers), urlencode(data))
        return _Response(_call(self._settings, "POST", url, body.encode("ascii"), headers))


class _Response:
    """What it needs of an answer."""

    def __init__(self, answer: Answer) -> None:
        self.status_code = answer.status
        self._body = answer.body

    def json(self) -> Any:
        """The body. Raises ValueError."""
        try:
            return strict_json_object(self._body)
        except MalformedToken as error:
            raise json.JSONDecodeError(str(error), "", 0) from error

    def raise_for_status(self) -> None:
        """Raises FetchError for an error of the issuer."""
        if self.status_code >= 400:
            raise FetchError(f"the token endpoint answered {self.status_code}", self.status_code)


def _call(
    settings: OperatorIssuer, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """One call to the issuer, or to a server that its discovery document names. Raises FetchError or
    ConfigurationError."""
    parts, own = urlsplit(url), urlsplit(settings.issuer)
    elsewhere = not (is_loopback(settings.issuer) or (parts.scheme, parts.netloc) == (own.scheme, own.netloc))
    fetcher = HttpFetcher([f"{parts.scheme}://{parts.netloc}"], FETCH, ca_file=settings.ca_file, elsewhere=elsewhere)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return fetcher.call(method, path, body=body, headers=headers)
    finally:
        fetcher.close()


def _person(verified: VerifiedClaims) -> Person:
    """The person of these claims. ``preferred_username`` is for people to read: it may change, and others may take
    it."""
    name = verified.claims.get("preferred_username")
    shown = name if isinstance(name, str) and name.strip() else verified.subject
    return Person(verified.issuer, verified.subject, _readable(shown)[:LONGEST_NAME])


def _readable(text: str) -> str:
    """Without characters that change how the text around it looks, such as marks of direction."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
