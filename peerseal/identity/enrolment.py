"""Enrolment: the calls that register, look up and retire a key, and what their answers mean (docs/protocol.md).

A service joins by the enrolment of its first key. The registry answers an enrolment by the admission of the key.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from peerseal.errors import (
    ConfigurationError,
    DocumentRefused,
    EnrolmentPending,
    EnrolmentRefused,
    FetchError,
    PeersealError,
    TrustUnavailable,
)
from peerseal.identity.enrolment_errors import code_of, enrolment_refused, no_answer
from peerseal.identity.key_folder import StoredKey
from peerseal.identity.signing import request_token
from peerseal.protocol.documents.key_set import ACTIVE
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.join import JoinToken, join_mac
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import REGISTRY, make_kid, registry_id, service_id
from peerseal.protocol.tokens.oidc import MAX_FOREIGN_TOKEN
from peerseal.protocol.tokens.proof import sign_proof
from peerseal.runtime.settings import read_text
from peerseal.session.problem import MAX_PROBLEM
from peerseal.transport.clocks import with_clocks
from peerseal.transport.fetch import Fetcher, is_confidential, no_larger_than
from peerseal.trust.store import TrustStore

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class PlatformToken:
    """A token in which the platform names the workload: of a Kubernetes service account, or of a CI job.

    ``get`` is called at every enrolment, because platforms replace these tokens long before a service's keys end.
    """

    get: Callable[[], str] = field(repr=False)

    @classmethod
    def of(cls, source: str | Callable[[], str]) -> Self:
        """From the text of a token, or from a function that returns the newest one."""
        return cls(source) if callable(source) else cls(lambda: source)

    @classmethod
    def in_file(cls, path: str | os.PathLike[str], name: str = "the platform's token") -> Self:
        """From the file in which the platform keeps the newest token; errors call it ``name``."""

        def read() -> str:
            text = read_text(Path(path), name) or ""
            if not text.isascii() or not text:
                raise ConfigurationError(f"{name}={path}: cannot be read as a token: it is empty, or no ASCII text")
            return text

        return cls(read)

    def text(self) -> str:
        """The newest token, without blanks around it. Raises ConfigurationError, which does not contain the token."""
        token = self.get().strip()
        if not token or not token.isascii() or len(token) > MAX_FOREIGN_TOKEN:
            raise ConfigurationError(f"the platform's token is no ASCII text of 1 to {MAX_FOREIGN_TOKEN} characters")
        return token


class Enrolment:
    """The keys of ``service``, a short name, at its registry."""

    def __init__(self, service: str, trust: TrustStore, clock: Callable[[], float]) -> None:
        self._service = service
        self._path = f"/v1/services/{service}/keys"
        self._trust = trust
        self._clock = clock

    def join(self, key: KeyPair, token: JoinToken | PlatformToken | None) -> KeyStatement:
        """Register the first key.

        The secret of a join token is not sent: it keys a MAC over the proof. A platform's token is sent as it is.
        Without a token the registry decides; ``serve --dev`` admits the key. Raises EnrolmentRefused, EnrolmentPending
        if an operator must approve the key, FetchError, TrustUnavailable, DocumentRefused, or ConfigurationError if
        there is no platform's token.
        """
        proof = self._proof(key)
        return self._register(key, canonical_json({"proof": proof, **_grounds(token, proof)}), {})

    def rotate(self, key: KeyPair, current: StoredKey) -> KeyStatement:
        """Register the next key. It signs a proof, and the ``current`` key vouches for it. Raises as `join` does."""
        body = canonical_json({"proof": self._proof(key)})
        return self._register(key, body, self._signed(current, "POST", self._path, body, {"content-type": JSON}))

    def statement(self, key: StoredKey) -> KeyStatement | None:
        """The registry's statement about a key; None if an unsigned answer says that there is no such key.

        Raises FetchError, TrustUnavailable or DocumentRefused.
        """
        owner = service_id(self._trust.domain, self._service)
        try:
            path = f"{self._path}/{key.thumbprint}.jwt"
            statement = self._trust.document(KeyStatement, path, owner, witnessed=False)
        except FetchError as error:
            if error.http_status == 404 and not error.by_mirror:
                return None
            raise
        return _about(key.kid, statement)

    def retire(self, thumbprint: str, signer: StoredKey) -> None:
        """Retire the key with that thumbprint; ``signer`` signs the call, and the registry accepts only the key itself.
        A key that is no longer active at the registry counts as retired.

        Raises FetchError if the registry does not answer, or refuses.
        """
        path = f"{self._path}/{thumbprint}?reason=retired"
        with no_larger_than(MAX_PROBLEM):
            headers = self._signed(signer, "DELETE", path, b"", {})
            answer = self._trust.fetcher.call("DELETE", path, headers=headers)
        if answer.status not in (204, 404) and code_of(answer) not in _ENDED:
            raise no_answer(answer)

    def _signed(self, key: StoredKey, method: str, path: str, body: bytes, headers: dict[str, str]) -> dict[str, str]:
        """The headers of a call to the registry with a request token of that key."""
        token = request_token(
            key,
            REGISTRY,
            method=method,
            target=self._trust.fetcher.target(path),
            body=body,
            headers=headers,
            now=self._clock(),
        )
        return {"Authorization": f"Bearer {token}"}

    def _proof(self, key: KeyPair) -> str:
        domain = self._trust.domain
        issuer, audience = service_id(domain, self._service), registry_id(domain)
        return sign_proof(key, issuer=issuer, audience=audience, now=self._clock())

    def _register(self, key: KeyPair, body: bytes, headers: dict[str, str]) -> KeyStatement:
        with no_larger_than(KeyStatement.MAX_SIZE):
            answer = self._trust.fetcher.call("POST", self._path, body=body, headers={"Content-Type": JSON, **headers})
        kid = make_kid(service_id(self._trust.domain, self._service), key.public.thumbprint)
        if answer.status in (429, 500, 503):
            raise no_answer(answer)
        if answer.status == 202:
            approve = f"`peerseal-registry approve {kid}`"
            raise EnrolmentPending(f"{kid} waits for an operator of the registry to approve it: {approve}")
        if answer.status not in (200, 201):
            raise enrolment_refused(answer, self._service, self._clock())
        try:
            statement = _about(kid, self._trust.read_statement(answer.body.decode("ascii", "replace")))
        except DocumentRefused as error:
            raise with_clocks(error, answer, self._clock()) from error
        if statement.state != ACTIVE:
            raise EnrolmentRefused(
                f"key_{statement.state}", f"the registry admitted the key as {statement.state}; expected {ACTIVE}"
            )
        return statement


def _about(kid: str, statement: KeyStatement) -> KeyStatement:
    if statement.kid != kid:
        raise DocumentRefused("document_wrong_subject", f"a statement about another key than {kid}")
    return statement


def _grounds(token: JoinToken | PlatformToken | None, proof: str) -> dict[str, object]:
    """The member of a registration that says why the key is to be admitted."""
    match token:
        case JoinToken():
            return {"join": {"id": token.id, "mac": join_mac(token.mac_key, proof)}}
        case PlatformToken():
            return {"oidc": token.text()}
        case None:
            return {}


_ENDED = ("revoked_key", "unknown_key", "expired")
"""Codes with which the registry refuses a call that an ended key signs."""

UNREACHABLE = (FetchError, TrustUnavailable)
"""The registry could not be asked: these errors say nothing about a key."""

TRY_AGAIN = (*UNREACHABLE, EnrolmentPending)
"""Errors after which the same key can be registered again later."""


def refusal_in(error: PeersealError) -> DocumentRefused | None:
    """The refusal of a document that caused a TrustUnavailable."""
    cause = error.__cause__
    return cause if isinstance(error, TrustUnavailable) and isinstance(cause, DocumentRefused) else None


def admission_token(
    join_token: str | None,
    oidc_token: str | Callable[[], str] | None,
    registry: str | Sequence[str],
    fetcher: Fetcher | None,
) -> JoinToken | PlatformToken | None:
    """The token that admits the first key. A platform's token is sent only over https or loopback, since anyone who
    reads it can use it. Raises ConfigurationError."""
    joining = JoinToken.parse(join_token) if join_token not in (None, "") else None
    if oidc_token is None:
        return joining
    if joining is not None:
        raise ConfigurationError("a join token and a platform's token: which one counts?")
    urls = registry.split(",") if isinstance(registry, str) else [*registry, ""]  # an empty list has no URL either
    confidential = is_confidential(urls[0].strip()) if fetcher is None else getattr(fetcher, "confidential", True)
    if not confidential:
        raise ConfigurationError(
            "a platform's token is sent over https or loopback only: use an https URL of the registry"
        )
    return PlatformToken.of(oidc_token)
